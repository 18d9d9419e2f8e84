//! A pseudo-terminal of our own that a terminal program opens by its path.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub(super) struct Pty {
    host: OwnedFd,
    /// Kept open, or our end would report a hang-up without end whenever no program has it open.
    _terminal: OwnedFd,
    path: PathBuf,
}

impl Pty {
    pub(super) fn open() -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let host = openpt(flags)?;
        grantpt(&host)?;
        unlockpt(&host)?;
        fcntl_setfl(&host, OFlags::RDWR | OFlags::NONBLOCK)?;
        let terminal = ioctl_tiocgptpeer(&host, flags)?;
        // A fresh terminal echoes: the guest would get its own output as input.
        let mut modes = tcgetattr(&terminal)?;
        modes.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &modes)?;
        let path = PathBuf::from(OsStr::from_bytes(ptsname(&host, Vec::new())?.as_bytes()));
        Ok(Self {
            host,
            _terminal: terminal,
            path,
        })
    }

    /// Our end, in non-blocking mode.
    pub(super) fn host(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }

    /// The end that programs open.
    #[cfg(test)]
    pub(super) fn terminal(&self) -> BorrowedFd<'_> {
        self._terminal.as_fd()
    }

    /// Where programs open it.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
