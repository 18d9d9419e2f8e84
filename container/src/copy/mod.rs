//! Files between the host and containers, as tar archives on a stream of the agent's.

mod extract;
mod pack;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, ScopedJoinHandle};

use cofferdam_agent_protocol::stream::Name;
use cofferdam_agent_protocol::{Client, ClientError, api};

pub use extract::{Owner, directory as extract_directory, file as extract_file};
pub use pack::{From, pack};

/// What a call that goes with an archive ends with.
type Called = Result<api::Empty, ClientError>;

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

/// An archive that comes from a container. A call that fails is an error where the archive would end.
#[derive(Debug)]
pub struct Incoming<'scope> {
    stream: UnixStream,
    call: Option<ScopedJoinHandle<'scope, Called>>,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(buffer) {
            Ok(0) if !buffer.is_empty() => match self.call.take() {
                None => Ok(0),
                Some(call) => join(call).map(|_| 0).map_err(io::Error::other),
            },
            other => other,
        }
    }
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Makes a call that sends an archive on the stream of `token`, and gives the archive to `take`.
pub fn receive<T>(
    agent: &Client,
    token: &str,
    call: impl FnOnce(&Client) -> Called + Send,
    take: impl FnOnce(Incoming<'_>) -> T,
) -> Result<T, ClientError> {
    let stream = agent.stream(Name::Archive, token)?;
    thread::scope(|scope| {
        let call = scope.spawn(calling(agent, &stream, call));
        let call = Some(call);
        Ok(take(Incoming { stream, call }))
    })
}

/// Makes a call that takes an archive from the stream of `token`, which `fill` writes.
pub fn send(
    agent: &Client,
    token: &str,
    call: impl FnOnce(&Client) -> Called + Send,
    fill: impl FnOnce(&mut UnixStream) -> io::Result<()>,
) -> Result<(), CopyError> {
    let mut stream = agent.stream(Name::Archive, token)?;
    thread::scope(|scope| {
        let call = scope.spawn(calling(agent, &stream, call));
        let filled = fill(&mut stream);
        // Its end.
        let _ = stream.shutdown(Shutdown::Both);
        let called = join(call);
        let gone = |error: &io::Error| {
            use io::ErrorKind::{BrokenPipe, ConnectionReset};
            matches!(error.kind(), BrokenPipe | ConnectionReset)
        };
        match (filled, called) {
            // Who sends learns only that nobody listens; why, the call says.
            (Err(error), Err(call)) if gone(&error) => Err(call.into()),
            (Err(source), _) => Err(CopyError::Io {
                action: "send the archive".into(),
                source,
            }),
            (Ok(()), called) => Ok(called.map(drop)?),
        }
    })
}

/// The call; should it fail before the agent has taken the stream, the stream ends all the same.
fn calling<'a>(
    agent: &'a Client,
    stream: &UnixStream,
    call: impl FnOnce(&Client) -> Called + Send + 'a,
) -> impl FnOnce() -> Called + Send + 'a {
    let stream = stream.try_clone();
    move || {
        let called = call(agent);
        if let (Err(_), Ok(stream)) = (&called, stream) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        called
    }
}

/// Copies bytes; a reader that is gone is no failure of the writer's.
pub fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    io::copy(from, to)?;
    to.flush()
}
