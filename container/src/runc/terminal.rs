//! The host's side of a container's terminal: a pseudo-terminal whose master the engine gets. Its
//! slave is raw, since it is the guest's terminal that knows what keys mean.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub(super) enum TerminalError {
    /// None can be made.
    #[error("cannot make a terminal")]
    Make(#[source] io::Error),
    /// The engine does not take it.
    #[error("cannot hand the terminal out at {path}")]
    Send {
        /// The engine's socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A terminal: what is written to it shows, what is read from it was typed.
#[derive(Debug)]
pub(super) struct Terminal {
    slave: File,
}

impl Terminal {
    /// Makes one, which becomes this process's own (it must lead a session), and gives its master to
    /// who listens at `socket`. `size`: rows and columns at first.
    pub(super) fn new(socket: &Path, size: Option<(u16, u16)>) -> Result<Self, TerminalError> {
        let (master, slave, name) = open(size).map_err(TerminalError::Make)?;
        send(socket, &master, &name).map_err(|source| TerminalError::Send {
            path: socket.to_owned(),
            source,
        })?;
        Ok(Self {
            slave: slave.into(),
        })
    }

    /// Another handle on it.
    pub(super) fn file(&self) -> io::Result<File> {
        self.slave.try_clone()
    }
}

/// Rows and columns of a terminal.
pub(super) fn size_of(terminal: impl AsFd) -> Option<(u16, u16)> {
    let size = tcgetwinsize(terminal).ok()?;
    (size.ws_row != 0 && size.ws_col != 0).then_some((size.ws_row, size.ws_col))
}

fn open(size: Option<(u16, u16)>) -> io::Result<(OwnedFd, OwnedFd, Vec<u8>)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
    let mut modes = tcgetattr(&slave)?;
    modes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    if let Some((rows, columns)) = size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size)?;
    }
    // So that we hear of changes of its size.
    ioctl_tiocsctty(&slave)?;
    Ok((master, slave, name.into_bytes()))
}

fn send(socket: &Path, master: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let socket = UnixStream::connect(socket)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let master = [master.as_fd()];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&master)) {
        return Err(io::Error::other("there is no room for a descriptor"));
    }
    sendmsg(
        &socket,
        &[IoSlice::new(name)],
        &mut ancillary,
        SendFlags::empty(),
    )?;
    Ok(())
}
