//! The file-system process: it serves directories of the host to one guest, over vhost-user, from a
//! sandbox in which there is nothing else.
//!
//! The monitor starts it ([`Daemon`]) with one end of a socket as its standard input. It builds its
//! sandbox ([`sandbox`]), opens a vhost-user connection to itself in it, sends the monitor one end
//! of that, gives up what it does not need ([`filter`]) and serves the other ([`server`]). The file
//! system itself is virtiofsd's.

mod checked;
mod daemon;
mod filter;
mod logger;
mod sandbox;
mod server;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

pub use daemon::{Daemon, DaemonError};
pub use filter::FilterError;
pub use sandbox::SandboxError;
pub use server::ServerError;

/// A directory that the guest gets to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The directory.
    pub path: PathBuf,
    /// Its name in the root of what the guest mounts; without one it is that root.
    pub name: Option<String>,
    /// The guest may not write.
    pub ro: bool,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum FsdError {
    /// Standard input is not what the monitor makes it.
    #[error(
        "standard input is not the monitor's socket; 'cofferdam boot --fs' starts this process"
    )]
    Socket(#[source] io::Error),
    /// Nothing can be said.
    #[error("cannot set up the log")]
    Log(#[source] io::Error),
    /// The sandbox cannot be built.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The file system cannot be served.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Serves `shares` to the monitor at the other end of standard input until it hangs up. What goes
/// wrong before is said to the monitor.
pub fn run(shares: &[Share]) -> Result<(), FsdError> {
    let socket = take_stdin().map_err(FsdError::Socket)?;
    logger::init().map_err(FsdError::Log)?;
    let result = serve(&socket, shares);
    if let Err(error) = &result {
        daemon::report(&socket, &Causes(error).to_string());
    }
    result
}

fn serve(socket: &UnixStream, shares: &[Share]) -> Result<(), FsdError> {
    let sandbox = sandbox::enter(shares)?;
    let read_only = shares.iter().all(|share| share.ro);
    Ok(server::serve(socket, sandbox, read_only)?)
}

/// Standard input, if it is a socket; what is left in its place is empty. Whatever else the monitor
/// may have left open is closed.
fn take_stdin() -> io::Result<UnixStream> {
    sandbox::close_all();
    let stdin = rustix::stdio::stdin();
    rustix::net::sockopt::socket_type(stdin)?;
    let socket: OwnedFd = rustix::io::fcntl_dupfd_cloexec(stdin, 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(socket.into())
}

/// An error and what caused it, in one line.
struct Causes<'a>(&'a dyn std::error::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.ends_with(&said) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        f.write_str(&text)
    }
}
