//! Where a console's input comes from.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::net::RecvFlags;

use super::shared::{How, open_again, ready};

/// Something that input can be read from without waiting.
#[derive(Debug)]
pub(super) struct Input {
    file: File,
    how: How,
}

impl Input {
    /// A descriptor in non-blocking mode.
    pub(super) fn own(file: impl Into<OwnedFd>) -> Self {
        Self {
            file: File::from(file.into()),
            how: How::Directly,
        }
    }

    /// A descriptor that other processes share.
    pub(super) fn shared(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let (file, how) = open_again(fd, OpenOptions::new().read(true))?;
        Ok(Self { file, how })
    }

    /// Reads what is there now, 0 bytes at the end of input.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.how {
            How::AsSocket => {
                let (n, _) = rustix::net::recv(&self.file, bytes, RecvFlags::DONTWAIT)?;
                Ok(n)
            }
            How::AfterPoll if !ready(self.as_fd(), PollFlags::IN, Duration::ZERO) => {
                Err(ErrorKind::WouldBlock.into())
            }
            How::Directly | How::AfterPoll => self.file.read(bytes),
        }
    }
}

impl AsFd for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
