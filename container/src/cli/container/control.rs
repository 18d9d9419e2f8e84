//! The way to a container's shim and to the agent in its VM.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use cofferdam_agent_protocol::{Client, ClientError};

use crate::options::Isolation;
use crate::shim::READY;
use crate::shim::wire::{Failure, Reply, Request, ask};
use crate::state::{Container, StateError, Status};

/// Why a shim does not do what it should.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum ControlError {
    /// There is none.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// It is on the host's own kernel.
    #[error("container {0} has no VM, and this is not there yet for --isolation=process")]
    NoVm(String),
    /// It does not answer.
    #[error("the shim of container {name} does not answer")]
    Lost {
        /// The container's.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It cannot be started.
    #[error("the shim of container {name} did not start: {said}")]
    Start {
        /// The container's.
        name: String,
        /// Its last words.
        said: String,
    },
    /// It says no.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The container's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] ClientError),
}

impl ControlError {
    /// Docker's exit code.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Failed(failure) => failure.code,
            Self::Agent(error) if error.is_no_such_program() => 127,
            Self::Agent(error) if error.is_not_executable() => 126,
            _ => super::EXIT_FAILED,
        }
    }
}

/// With Docker's exit code.
pub(super) fn failed(error: ControlError) -> super::Failed {
    super::Failed {
        code: error.code(),
        error: Box::new(error),
    }
}

/// A connection to a shim, after its answer to a request.
pub(in crate::cli) struct Answered {
    /// For what is said to it.
    pub(super) stream: UnixStream,
    /// For what it says.
    pub(super) reader: Box<dyn Read + Send>,
}

/// Asks a container's shim.
pub(super) fn request(container: &Container, what: &Request) -> Result<Answered, ControlError> {
    let name = || container.record.name.clone();
    let stream = UnixStream::connect(container.socket()).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NotRunning(name())
        }
        _ => ControlError::Lost {
            name: name(),
            source,
        },
    })?;
    let answer = ask(&stream, what).map_err(|source| ControlError::Lost {
        name: name(),
        source,
    });
    match answer? {
        (Reply::Done, reader) => Ok(Answered {
            stream,
            reader: Box::new(reader),
        }),
        (Reply::Failed(failure), _) => Err(failure.into()),
    }
}

/// A shim that was started and will run its container when it is told to. Dropped before, it gives up.
pub(in crate::cli) struct Starter<'a> {
    container: &'a Container,
    _hold: ChildStdin,
}

/// Starts a container's shim, and with it its VM.
pub(super) fn start_shim(container: &Container) -> Result<Starter<'_>, ControlError> {
    // Says better what is wrong than the shim could.
    drop(container.lock()?);
    let name = container.record.name.clone();
    let start = |said: String| ControlError::Start { name, said };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return Err(start(error.to_string())),
    };
    let log = container.dir.join("shim.log");
    let spawn = || {
        let mut child = Command::new(program)
            .args(["shim", &container.record.id])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        let mut ready = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut ready)?;
        }
        Ok((child.stdin.take(), ready))
    };
    match spawn() {
        Ok((Some(hold), ready)) if ready == READY => Ok(Starter {
            container,
            _hold: hold,
        }),
        Ok(_) => Err(start(last_line(&log))),
        Err(error) => {
            let error: io::Error = error;
            Err(start(error.to_string()))
        }
    }
}

impl Starter<'_> {
    /// Runs the container.
    pub(super) fn start(self) -> Result<(), ControlError> {
        request(self.container, &Request::Start).map(drop)
    }
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let last = text.lines().last().unwrap_or("it says nothing");
    last.trim_start_matches("cofferdam: ").to_owned()
}

/// The agent in a container's VM.
pub(super) fn agent(container: &Container) -> Result<Client, ControlError> {
    let name = || container.record.name.clone();
    if container.record.options.isolation == Isolation::Process {
        return Err(ControlError::NoVm(name()));
    }
    match container.state()?.status {
        Status::Running | Status::Paused => Ok(Client::connect(&container.vsock())?.0),
        _ => Err(ControlError::NotRunning(name())),
    }
}
