//! The file-system process: it serves directories of the host to one guest, over vhost-user, from a
//! sandbox in which there is nothing else.
//!
//! The monitor starts it with one end of a socket as its standard input. It builds its sandbox
//! ([`sandbox`]), opens a vhost-user connection to itself in it, sends the monitor one end of that
//! ([`monitor`]), gives up what it does not need ([`filter`]) and serves the other ([`server`]). The
//! file system itself is virtiofsd's.

mod backend;
mod checked;
mod filter;
mod holders;
mod logger;
mod monitor;
mod sandbox;
mod server;
mod share;
mod unnamed;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use clap::Parser;

use sandbox::SandboxError;
use server::ServerError;
use share::{Rights, Share};

/// Exit code for a host that cannot; the monitor's has the same meaning.
const EXIT_HOST: u8 = 3;

/// Serve directories to a guest, from a sandbox; 'cofferdam boot --fs' starts this process
///
/// Standard input is a Unix socket, over which the process sends one end of a vhost-user connection
/// when it is ready, or says why it is not. It ends when that connection does.
#[derive(Debug, Parser)]
#[command(name = "cofferdam-fsd", bin_name = "cofferdam fsd", version)]
struct Args {
    /// Directory (repeatable): [name=NAME,][ro,]path=DIR
    #[arg(long = "share", value_name = "path=DIR", required = true)]
    shares: Vec<Share>,
    #[command(flatten)]
    rights: Rights,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
enum FsdError {
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

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // In all other cases the monitor has been told, and tells the user, if there is one.
            if let FsdError::Socket(_) = error {
                eprintln!("cofferdam fsd: {}", Causes(&error));
            }
            ExitCode::from(EXIT_HOST)
        }
    }
}

/// Serves directories to the monitor at the other end of standard input until it hangs up. What goes
/// wrong before is said to the monitor.
fn run(args: &Args) -> Result<(), FsdError> {
    let socket = take_stdin().map_err(FsdError::Socket)?;
    logger::init().map_err(FsdError::Log)?;
    let result = serve(&socket, args);
    if let Err(error) = &result {
        monitor::report(&socket, &Causes(error).to_string());
    }
    result
}

fn serve(socket: &UnixStream, args: &Args) -> Result<(), FsdError> {
    let sandbox = sandbox::enter(&args.shares, args.rights)?;
    let read_only = args.shares.iter().all(|share| share.ro);
    let holders = holders::Holders::of(&args.shares);
    Ok(server::serve(
        socket,
        sandbox,
        holders,
        read_only,
        args.rights,
    )?)
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
