//! What goes wrong in the agent, and how the host learns of it.

use std::error::Error as _;
use std::io;

use ttrpc::Code;

/// Why the agent does not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such container or process.
    #[error("there is no {0}")]
    NotFound(String),
    /// The request makes no sense, or asks for what does not exist here.
    #[error("{what}: {why}")]
    Invalid {
        /// The field, with its value where that helps.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// It cannot be done now.
    #[error("{what} {why}")]
    State {
        /// The container or process.
        what: String,
        /// Its state.
        why: String,
    },
    /// The program that a process shall run is not there.
    #[error("there is no program {0} in the container ($PATH was searched if it has no slash)")]
    NoProgram(String),
    /// It is there, and the kernel does not run it.
    #[error("cannot execute {program}")]
    NotExecutable {
        /// Its path.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("cannot {doing}")]
    System {
        /// What was tried, naming the thing.
        doing: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The process that sets a container up said why it gave up.
    #[error("{text}")]
    Setup {
        /// As of [`Error::code`].
        code: Code,
        /// All of it.
        text: String,
    },
}

/// The result of most things here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(what: impl ToString, why: impl ToString) -> Self {
        Self::Invalid {
            what: what.to_string(),
            why: why.to_string(),
        }
    }

    /// ttrpc's code for it.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::Invalid { .. } => Code::INVALID_ARGUMENT,
            Self::State { .. } => Code::FAILED_PRECONDITION,
            Self::NoProgram(_) => Code::UNAVAILABLE,
            Self::NotExecutable { .. } => Code::PERMISSION_DENIED,
            Self::System { .. } => Code::INTERNAL,
            Self::Setup { code, .. } => *code,
        }
    }

    /// It and its causes, in one line.
    pub fn text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.text()))
    }
}

/// Says what was being done when the kernel refused.
pub trait Context<T> {
    /// `doing` goes on from "cannot ".
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::System {
            doing: doing(),
            source: source.into(),
        })
    }
}
