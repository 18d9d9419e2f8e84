//! What frames come from and go to: a tap, or a stream that carries them to another process.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::stream::Stream;
use super::tap::Tap;
use crate::virtio::{Buffers, Chain};

/// The host's side of a queue pair.
#[derive(Debug)]
pub enum Backend {
    /// An interface of the host.
    Tap(Tap),
    /// A process that speaks Ethernet over a socket.
    Stream(Stream),
}

impl Backend {
    /// The TUN_F_* that it knows.
    pub(super) fn offloads(&self) -> u32 {
        match self {
            Self::Tap(tap) => tap.offloads(),
            Self::Stream(_) => 0,
        }
    }

    /// Says what the reader of its frames can take: `offloads` is a set of TUN_F_*.
    pub(super) fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.set_offloads(offloads),
            Self::Stream(_) => Ok(()),
        }
    }

    /// Whether frames come from and go to this one of a tap's several queues. A back end that has one
    /// only is always in use.
    pub(super) fn set_attached(&self, is_attached: bool) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.set_attached(is_attached),
            Self::Stream(_) => Ok(()),
        }
    }

    /// Bytes of room that the next frame takes with its header. A tap does not tell, so there it is
    /// `longest`; a stream tells once the frame's length has come.
    pub(super) fn next_frame(&mut self, longest: usize) -> io::Result<usize> {
        match self {
            Self::Tap(_) => Ok(longest),
            Self::Stream(stream) => stream.next_frame(),
        }
    }

    /// Reads a frame with its header into `chains`, which have `room` bytes. Returns its length; if
    /// that is over `room`, the frame is lost. After WouldBlock the frame may be half there: the
    /// next call gets the same chains. `pieces` is scratch.
    pub(super) fn receive(
        &mut self,
        chains: &VecDeque<Chain>,
        room: usize,
        pieces: &mut Vec<libc::iovec>,
    ) -> io::Result<usize> {
        match self {
            Self::Tap(tap) => tap.receive(chains, pieces),
            Self::Stream(stream) => stream.receive(chains, room, pieces),
        }
    }

    /// Whether a frame that is received comes with all of its header but the number of buffers.
    pub(super) fn writes_header(&self) -> bool {
        matches!(self, Self::Tap(_))
    }

    /// Sends a frame with its header. After WouldBlock the frame may be half gone: the next call
    /// gets the rest of the same one.
    pub(super) fn send(&mut self, frame: &mut Buffers) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.send(frame),
            Self::Stream(stream) => stream.send(frame),
        }
    }

    /// Frames that are half read or half sent will not be finished.
    pub(super) fn abandon(&mut self) {
        if let Self::Stream(stream) = self {
            stream.abandon();
        }
    }
}

impl From<Tap> for Backend {
    fn from(tap: Tap) -> Self {
        Self::Tap(tap)
    }
}

impl From<Stream> for Backend {
    fn from(stream: Stream) -> Self {
        Self::Stream(stream)
    }
}

impl AsRawFd for Backend {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tap(tap) => tap.as_raw_fd(),
            Self::Stream(stream) => stream.as_raw_fd(),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(tap) => write!(f, "tap {}", tap.name()),
            Self::Stream(stream) => f.write_str(stream.name()),
        }
    }
}

/// One `readv`: first into the writable buffers of `chains` from byte `skip` on, `len` bytes at most,
/// then into `tail`. `pieces` is scratch. The chains and the tail are at most MAX_PIECES pieces.
pub(super) fn read_into(
    fd: RawFd,
    chains: &VecDeque<Chain>,
    mut skip: usize,
    mut len: usize,
    tail: &mut [u8],
    pieces: &mut Vec<libc::iovec>,
) -> io::Result<usize> {
    pieces.clear();
    for piece in chains.iter().flat_map(|chain| chain.writable.iovecs()) {
        let skipped = skip.min(piece.iov_len);
        let taken = len.min(piece.iov_len - skipped);
        skip -= skipped;
        len -= taken;
        if taken > 0 {
            pieces.push(libc::iovec {
                iov_base: piece.iov_base.cast::<u8>().wrapping_add(skipped).cast(),
                iov_len: taken,
            });
        }
    }
    pieces.push(libc::iovec {
        iov_base: tail.as_mut_ptr().cast(),
        iov_len: tail.len(),
    });
    let count = libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: `count` counts the pieces; all but the last are parts of pieces in guest memory that
    // the chains keep mapped, the last is `tail`, which is borrowed during the call.
    let done = unsafe { libc::readv(fd, pieces.as_ptr(), count) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}
