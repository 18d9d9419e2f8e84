//! Files between the host and containers, as tar archives on a stream.

mod exchange;
mod extract;
mod files;
mod pack;

use std::io::{self, Read, Write};

use cofferdam_agent_protocol::ClientError;

pub use exchange::{Exchange, Incoming};
pub use extract::{Owner, directory as extract_directory, file as extract_file};
pub use files::Files;
pub use pack::{From, open, pack};

/// Why files did not come or go.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The agent says no.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// The archive, or a file on the host.
    #[error("cannot {action}")]
    Io {
        /// What was tried: "read the archive".
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Copies bytes; a reader that is gone is no failure of the writer's.
pub fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    io::copy(from, to)?;
    to.flush()
}
