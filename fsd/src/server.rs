//! The server: virtiofsd's file system, behind its vhost-user back end.

use std::fs::File;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use virtiofsd::passthrough::read_only::PassthroughFsRo;
use virtiofsd::passthrough::{Config, PassthroughFs};
use virtiofsd::soft_idmap::cmdline::IdMap;
use vm_memory_017::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::backend::{Backend, Named};
use crate::checked::Checked;
use crate::filter::{self, FilterError};
use crate::holders::Holders;
use crate::monitor;
use crate::sandbox::Sandbox;
use crate::share::Rights;
use crate::unnamed::Unnamed;

/// Descriptors that the process needs for itself: a memory table's, the rings', its own.
const OWN_FILES: u64 = 100;
/// One in so many descriptors may be of a file without a name.
const UNNAMED_PART: u64 = 16;
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
pub fn serve(
    socket: &UnixStream,
    sandbox: Sandbox,
    holders: Holders,
    read_only: bool,
    rights: Rights,
) -> Result<(), ServerError> {
    let (listener, connection) = connect().map_err(ServerError::Connection)?;
    let descriptors = sandbox.proc_self_fd.try_clone();
    let descriptors = descriptors.map_err(ServerError::FileSystem)?;
    let unnamed = Unnamed::new(unnamed_files(&sandbox), sandbox.is_single_user, TIMEOUT);
    let config = config(sandbox);
    // Before the first thread, so that it holds for all of them.
    filter::apply()?;
    let hand_over = || monitor::hand_over(socket, &connection).map_err(ServerError::Connection);
    if read_only {
        let fs = PassthroughFsRo::new(config).map_err(ServerError::FileSystem)?;
        hand_over()?;
        drop(connection);
        run(checked(fs, holders, rights), unnamed, descriptors, listener)
    } else {
        let fs = PassthroughFs::new(config).map_err(ServerError::FileSystem)?;
        hand_over()?;
        drop(connection);
        run(checked(fs, holders, rights), unnamed, descriptors, listener)
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

/// How many files without names the guest may have.
fn unnamed_files(sandbox: &Sandbox) -> usize {
    usize::try_from(sandbox.max_files / UNNAMED_PART).unwrap_or(usize::MAX)
}

/// How many descriptors the guest may have of other files.
fn named_files(sandbox: &Sandbox) -> u64 {
    let others = sandbox.max_files / UNNAMED_PART + OWN_FILES;
    sandbox.max_files.saturating_sub(others)
}

fn config(sandbox: Sandbox) -> Config {
    let guest_fd_limit = named_files(&sandbox);
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
        // Else the guest asks for a file's capabilities before each write.
        killpriv_v2: true,
        guest_fd_limit,
        uid_map: squash.clone(),
        gid_map: squash,
        ..Config::default()
    }
}

fn checked<F>(fs: F, holders: Holders, rights: Rights) -> Checked<F> {
    Checked {
        fs: Arc::new(fs),
        holders,
        set_id: rights.suid,
    }
}

fn run<F: Named>(
    fs: Checked<F>,
    unnamed: Unnamed,
    descriptors: File,
    mut listener: Listener,
) -> Result<(), ServerError> {
    let failed = |error: &dyn std::fmt::Debug| ServerError::Backend(format!("{error:?}"));
    let backend = Backend::new(fs, unnamed, descriptors);
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
