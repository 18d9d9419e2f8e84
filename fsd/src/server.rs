//! The server: virtiofsd's file system, behind its vhost-user back end.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use virtiofsd::filesystem::FileSystem;
use virtiofsd::passthrough::read_only::PassthroughFsRo;
use virtiofsd::passthrough::{Config, PassthroughFs};
use virtiofsd::soft_idmap::cmdline::IdMap;
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory_017::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::checked::Checked;
use crate::filter::{self, FilterError};
use crate::monitor;
use crate::sandbox::Sandbox;

/// Descriptors that the process needs for itself: a memory table's, the rings', its own.
const OWN_FILES: u64 = 100;
/// How long the guest may believe what it knows of a file before it asks again.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No connection to be had.
    #[error("cannot make a connection for the monitor")]
    Connection(#[source] io::Error),
    /// The file system cannot be set up.
    #[error("cannot set up the file system")]
    FileSystem(#[source] io::Error),
    /// The back end cannot be set up.
    #[error("cannot set up the vhost-user back end: {0}")]
    Backend(String),
    /// The system calls cannot be filtered.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// Sends the monitor a connection and serves it until it hangs up. `read_only` refuses what would
/// change anything before the kernel has to.
pub fn serve(socket: &UnixStream, sandbox: Sandbox, read_only: bool) -> Result<(), ServerError> {
    let (listener, connection) = connect().map_err(ServerError::Connection)?;
    let config = config(sandbox);
    // Before the first thread, so that it holds for all of them.
    filter::apply()?;
    let hand_over = || monitor::hand_over(socket, &connection).map_err(ServerError::Connection);
    if read_only {
        let fs = PassthroughFsRo::new(config).map_err(ServerError::FileSystem)?;
        hand_over()?;
        drop(connection);
        run(fs, listener)
    } else {
        let fs = PassthroughFs::new(config).map_err(ServerError::FileSystem)?;
        hand_over()?;
        drop(connection);
        run(fs, listener)
    }
}

/// The back end wants to accept its connection: it gets one from ourselves, in a network namespace
/// where there is nobody else.
fn connect() -> io::Result<(Listener, UnixStream)> {
    let address = SocketAddr::from_abstract_name("fsd")?;
    let listener = UnixListener::bind_addr(&address)?;
    let connection = UnixStream::connect_addr(&address)?;
    Ok((listener.into(), connection))
}

fn config(sandbox: Sandbox) -> Config {
    // Who is the only user there makes all files, whoever makes them in the guest.
    let squash = sandbox.is_single_user.then(|| {
        vec![IdMap::SquashGuest {
            from_guest: 0,
            to_host: 0,
            count: u32::MAX,
        }]
    });
    Config {
        entry_timeout: TIMEOUT,
        attr_timeout: TIMEOUT,
        xattr: true,
        proc_sfd_rawfd: Some(sandbox.proc_self_fd),
        // Files of two file systems may have one number.
        announce_submounts: true,
        guest_fd_limit: sandbox.max_files.saturating_sub(OWN_FILES),
        uid_map: squash.clone(),
        gid_map: squash,
        ..Config::default()
    }
}

fn run<F>(fs: F, mut listener: Listener) -> Result<(), ServerError>
where
    F: FileSystem + Send + Sync + 'static,
{
    let failed = |error: &dyn std::fmt::Debug| ServerError::Backend(format!("{error:?}"));
    // Without a pool of threads: requests are answered in their order, which is how the monitor
    // knows what is left to answer when this process dies.
    let backend = VhostUserFsBackendBuilder::default()
        .build(Checked(fs))
        .map_err(|error| failed(&error))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("fsd".to_owned(), Arc::new(backend), memory)
        .map_err(|error| failed(&error))?;
    daemon
        .start(&mut listener)
        .map_err(|error| failed(&error))?;
    // It ends when the monitor hangs up, which is how it should end.
    let _ = daemon.wait();
    Ok(())
}
