//! An archive on its way: a stream, and who is at its other end meanwhile.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, ScopedJoinHandle};

use cofferdam_agent_protocol::stream::Name;
use cofferdam_agent_protocol::{Client, ClientError, api};

use super::CopyError;

type Called = Result<(), CopyError>;

/// A stream for an archive, and the call that sends it or takes it.
pub struct Exchange<'a> {
    stream: UnixStream,
    call: Box<dyn FnOnce() -> Called + Send + 'a>,
}

impl std::fmt::Debug for Exchange<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

impl<'a> Exchange<'a> {
    /// With an agent, which is told the stream's `token` by the call.
    pub fn agent(
        agent: &'a Client,
        token: &str,
        call: impl FnOnce(&Client) -> Result<api::Empty, ClientError> + Send + 'a,
    ) -> Result<Self, CopyError> {
        let stream = agent.stream(Name::Archive, token)?;
        let theirs = stream.try_clone();
        let call = Box::new(move || {
            let called = call(agent);
            // Should it fail before the agent has taken the stream, that ends all the same.
            if let (Err(_), Ok(stream)) = (&called, theirs) {
                let _ = stream.shutdown(Shutdown::Both);
            }
            Ok(called.map(drop)?)
        });
        Ok(Self { stream, call })
    }

    /// With a thread of ours, which does `action`.
    pub fn here(
        action: &str,
        work: impl FnOnce(UnixStream) -> io::Result<()> + Send + 'a,
    ) -> Result<Self, CopyError> {
        let action = action.to_owned();
        let pair = UnixStream::pair().map_err(|source| CopyError::Io {
            action: "make a stream".into(),
            source,
        });
        let (stream, theirs) = pair?;
        let call = move || work(theirs).map_err(|source| CopyError::Io { action, source });
        let call = Box::new(call);
        Ok(Self { stream, call })
    }

    /// Gives the archive that comes to `take`.
    pub fn receive<T>(self, take: impl FnOnce(Incoming<'_>) -> T) -> T {
        let Self { stream, call } = self;
        thread::scope(|scope| {
            let call = Some(scope.spawn(call));
            take(Incoming { stream, call })
        })
    }

    /// Sends the archive that `fill` writes.
    pub fn send(
        self,
        fill: impl FnOnce(&mut UnixStream) -> io::Result<()>,
    ) -> Result<(), CopyError> {
        let Self { mut stream, call } = self;
        thread::scope(|scope| {
            let call = scope.spawn(call);
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
                (Err(error), Err(call)) if gone(&error) => Err(call),
                (Err(source), _) => Err(CopyError::Io {
                    action: "send the archive".into(),
                    source,
                }),
                (Ok(()), called) => called,
            }
        })
    }
}

/// An archive that comes. A call that fails is an error where the archive would end.
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
                Some(call) => join(call).map(|()| 0).map_err(io::Error::other),
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
