//! The file-system process, `cofferdam-fsd`, as the monitor sees it: started, and its connection had.

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::config::FsConfig;

/// The program, which lies beside ours.
pub const PROGRAM: &str = "cofferdam-fsd";
/// How long the process may take to build its sandbox.
const PATIENCE: Duration = Duration::from_secs(30);
/// Its whole message when a connection comes with it; else the message is why not. The other side is
/// in fsd/src/monitor.rs.
const READY: u8 = 0;
/// Bytes of that message at most.
const MESSAGE: usize = 4096;

/// Why there is no file-system process.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It cannot be started.
    #[error("the file-system process cannot be started")]
    Start(#[source] io::Error),
    /// It ended, or said nothing.
    #[error("the file-system process does not answer")]
    Silent(#[source] io::Error),
    /// It said why it cannot serve.
    #[error("the file-system process: {0}")]
    Refused(String),
}

/// A file-system process that is ready.
#[derive(Debug)]
pub struct Daemon {
    /// The process. It ends when the connection does; its end, and only that, ends the connection.
    pub child: Child,
    /// Where it speaks vhost-user.
    pub socket: UnixStream,
}

impl Daemon {
    /// Starts `program` for the directories `shares` and waits until it is ready.
    pub fn start(program: &Path, shares: &[&FsConfig]) -> Result<Self, DaemonError> {
        let (ours, theirs) = UnixStream::pair().map_err(DaemonError::Start)?;
        ours.set_read_timeout(Some(PATIENCE))
            .map_err(DaemonError::Start)?;
        let mut command = Command::new(program);
        for option in shares.iter().copied().filter_map(option) {
            command.arg("--share").arg(option);
        }
        // All shares of a device have the same.
        let suid = shares.iter().any(|share| share.suid).then_some("--suid");
        let dev = shares.iter().any(|share| share.dev).then_some("--dev");
        let mut child = command
            .args(suid.into_iter().chain(dev))
            .env_clear()
            // A terminal's Ctrl-C is for the monitor, whose guest may still have files to write.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(DaemonError::Start)?;
        // The command has our copy of the socket's other end, which must be gone for a hang-up.
        drop(command);
        match connection(&ours) {
            Ok(socket) => Ok(Self { child, socket }),
            Err(error) => {
                // Fails only if it has ended already.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}

/// A directory as the process's command line has it: `[name=NAME,][ro,]path=DIR`.
fn option(share: &FsConfig) -> Option<OsString> {
    let path = share.path.as_ref()?;
    let mut option = OsString::new();
    if let Some(name) = &share.name {
        option.push(format!("name={name},"));
    }
    if share.ro {
        option.push("ro,");
    }
    // The last one: there may be commas in it.
    option.push("path=");
    option.push(path);
    Some(option)
}

/// Waits for the process's one message.
fn connection(socket: &UnixStream) -> Result<UnixStream, DaemonError> {
    let silent = |errno: rustix::io::Errno| DaemonError::Silent(errno.into());
    let mut message = [0; MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut message)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::io::retry_on_intr(|| recvmsg(socket, &mut parts, &mut control, flags))
        .map_err(silent)?;
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    match (message.get(..got.bytes), file) {
        (Some([READY]), Some(file)) => Ok(file.into()),
        (Some([]) | None, _) => Err(DaemonError::Silent(io::ErrorKind::UnexpectedEof.into())),
        (Some(text), _) => Err(DaemonError::Refused(String::from_utf8_lossy(text).into())),
    }
}
