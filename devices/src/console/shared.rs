//! Descriptors that other processes share, such as the standard streams.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How to use a descriptor without ever waiting for whoever is at its other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Just so: it is non-blocking, or a file, for whose disk we wait.
    Directly,
    /// By the calls of sockets, which can be told not to wait.
    AsSocket,
    /// After asking: it may block.
    AfterPoll,
}

/// A descriptor like `fd` for ourselves, and how to use it. Non-blocking mode is not ours to set on
/// `fd`: it belongs to what is open, which the shell that started us has open too. So we open what
/// it leads to once more, with `access`, where that is possible.
pub(super) fn open_again(fd: BorrowedFd<'_>, access: &mut OpenOptions) -> io::Result<(File, How)> {
    let file = File::from(fd.try_clone_to_owned()?);
    let kind = file.metadata()?.file_type();
    if kind.is_socket() {
        return Ok((file, How::AsSocket));
    }
    if !kind.is_char_device() && !kind.is_fifo() {
        return Ok((file, How::Directly));
    }
    let again = access
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    Ok(match again {
        Ok(own) => (own, How::Directly),
        // Another user's terminal after su, or no /proc.
        Err(_) => (file, How::AfterPoll),
    })
}

/// Whether `fd` reports one of `flags`, an error or a hang-up, within `time`.
pub(super) fn ready(fd: BorrowedFd<'_>, flags: PollFlags, time: std::time::Duration) -> bool {
    let Ok(time) = Timespec::try_from(time) else {
        return false;
    };
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    matches!(poll(&mut fds, Some(&time)), Ok(n) if n > 0)
}
