//! Frames over a stream socket, each behind its length in four bytes, big-endian: what passt speaks,
//! and QEMU's `-netdev stream`. There is no virtio-net header on the wire, hence no offloads.
//!
//! A socket may take or give any part of a frame, so the place in the one under way is kept here.
//! Nothing else is: frames go between the socket and guest memory.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, ioctl_fionbio, read};
use rustix::net::{SendFlags, send};

use super::backend::read_into;
use super::tap::HEADER;
use crate::virtio::buffers::MAX_PIECES;
use crate::virtio::{Buffers, Chain};

/// Bytes of a frame's length.
const PREFIX: usize = 4;
/// Bytes of the shortest and of the longest frame: an Ethernet header, and what passt takes.
const FRAME: std::ops::RangeInclusive<usize> = 14..=65535;

/// A connected stream socket that carries frames.
#[derive(Debug)]
pub struct Stream {
    socket: OwnedFd,
    name: &'static str,
    incoming: Incoming,
    outgoing: Outgoing,
}

/// The frame that is being read.
#[derive(Debug, Default)]
struct Incoming {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that are there.
    prefix_len: usize,
    /// Bytes of the frame that are read.
    done: usize,
    /// The rest of the frame is for nobody.
    is_abandoned: bool,
}

impl Incoming {
    /// The frame's length, if it is known.
    fn frame(&self) -> Option<usize> {
        let len = usize::try_from(u32::from_be_bytes(self.prefix)).unwrap_or(usize::MAX);
        (self.prefix_len == PREFIX).then_some(len)
    }
}

/// The frame that is being sent.
#[derive(Debug, Default)]
struct Outgoing {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that are not sent.
    prefix_left: usize,
    /// Bytes of the frame that are not sent.
    left: usize,
    /// The rest of the frame comes from nobody.
    is_abandoned: bool,
}

impl Outgoing {
    fn new(len: u32) -> Self {
        Self {
            prefix: len.to_be_bytes(),
            prefix_left: PREFIX,
            // Fits: `FRAME` bounds it.
            left: usize::try_from(len).unwrap_or(0),
            is_abandoned: false,
        }
    }

    /// What is left of the prefix.
    fn prefix(&self) -> &[u8] {
        let sent = PREFIX.saturating_sub(self.prefix_left);
        self.prefix.get(sent..).unwrap_or_default()
    }

    fn sent(&mut self, count: usize) {
        let of_prefix = count.min(self.prefix_left);
        self.prefix_left -= of_prefix;
        self.left = self.left.saturating_sub(count - of_prefix);
    }

    fn is_done(&self) -> bool {
        self.prefix_left + self.left == 0
    }
}

impl Stream {
    /// Frames over `socket`. `name` is that of the other end, for messages.
    pub fn new(socket: OwnedFd, name: &'static str) -> io::Result<Self> {
        ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket,
            name,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
        })
    }

    /// What the other end is.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Bytes of room that the next frame takes with its header.
    pub(super) fn next_frame(&mut self) -> io::Result<usize> {
        self.finish_reading()?;
        loop {
            let incoming = &mut self.incoming;
            if let Some(len) = incoming.frame() {
                return match FRAME.contains(&len) {
                    true => Ok(HEADER + len),
                    false => Err(ErrorKind::InvalidData.into()),
                };
            }
            let rest = incoming.prefix.get_mut(incoming.prefix_len..);
            incoming.prefix_len += some(read(&self.socket, rest.unwrap_or_default()))?;
        }
    }

    /// Reads what has come of the frame that [`Self::next_frame`] told of, and with its end the
    /// beginning of what follows. See [`Backend::receive`](super::backend::Backend::receive).
    pub(super) fn receive(
        &mut self,
        chains: &VecDeque<Chain>,
        room: usize,
        pieces: &mut Vec<libc::iovec>,
    ) -> io::Result<usize> {
        let incoming = &mut self.incoming;
        let len = incoming.frame().ok_or(ErrorKind::WouldBlock)?;
        if HEADER + len > room {
            incoming.is_abandoned = true;
            return Ok(HEADER + len);
        }
        while incoming.done < len {
            let mut next = [0; PREFIX];
            let (skip, rest) = (HEADER + incoming.done, len - incoming.done);
            let fd = self.socket.as_raw_fd();
            let count = match read_into(fd, chains, skip, rest, &mut next, pieces)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => count,
            };
            incoming.done += count.min(rest);
            if let Some(of_next @ 1..) = count.checked_sub(rest) {
                *incoming = Incoming {
                    prefix: next,
                    prefix_len: of_next,
                    ..Incoming::default()
                };
                return Ok(HEADER + len);
            }
        }
        *incoming = Incoming::default();
        Ok(HEADER + len)
    }

    /// Reads to the end of a frame that nobody wants. It is bounded by the longest one.
    fn finish_reading(&mut self) -> io::Result<()> {
        let incoming = &mut self.incoming;
        while incoming.is_abandoned {
            let mut scratch = [0; 4096];
            let rest = incoming.frame().unwrap_or(0) - incoming.done;
            if rest == 0 {
                *incoming = Incoming::default();
                break;
            }
            let end = rest.min(scratch.len());
            incoming.done += some(read(&self.socket, &mut scratch[..end]))?;
        }
        Ok(())
    }

    /// Sends a frame, or the rest of it. See [`Backend::send`](super::backend::Backend::send).
    pub(super) fn send(&mut self, frame: &mut Buffers) -> io::Result<()> {
        self.finish_sending()?;
        if self.outgoing.is_done() {
            frame.advance(HEADER);
            if !FRAME.contains(&frame.len()) {
                return Err(ErrorKind::InvalidInput.into());
            }
            self.outgoing = Outgoing::new(u32::try_from(frame.len()).map_err(io::Error::other)?);
        }
        while !self.outgoing.is_done() {
            let count = send_both(&self.socket, self.outgoing.prefix(), frame)?;
            self.outgoing.sent(count);
        }
        Ok(())
    }

    /// Whoever reads the stream waits for the rest of a frame whose sender is gone: zeros do.
    fn finish_sending(&mut self) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let outgoing = &mut self.outgoing;
        while outgoing.is_abandoned {
            let rest = match outgoing.prefix() {
                [] => ZEROS.get(..outgoing.left).unwrap_or(&ZEROS),
                prefix => prefix,
            };
            let count = send(&self.socket, rest, SendFlags::NOSIGNAL)?;
            outgoing.sent(count);
            outgoing.is_abandoned = !outgoing.is_done();
        }
        Ok(())
    }

    /// The guest's driver is gone, and with it what it was to receive or send.
    pub(super) fn abandon(&mut self) {
        self.incoming.is_abandoned |= self.incoming.done > 0;
        match self.outgoing.prefix_left {
            PREFIX => self.outgoing = Outgoing::default(),
            _ => self.outgoing.is_abandoned = !self.outgoing.is_done(),
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What a read returned; nothing is the end of the stream.
fn some(read: Result<usize, Errno>) -> io::Result<usize> {
    match read? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}

/// One `sendmsg` of `first` and then of `frame`. Returns how many bytes went, and consumes those of
/// the frame among them.
fn send_both(socket: &OwnedFd, first: &[u8], frame: &mut Buffers) -> io::Result<usize> {
    let mut pieces = Vec::with_capacity(1 + frame.iovecs().len());
    pieces.push(libc::iovec {
        iov_base: first.as_ptr().cast_mut().cast(),
        iov_len: first.len(),
    });
    // What does not fit goes with the next call.
    pieces.extend(frame.iovecs().iter().take(MAX_PIECES - 1));
    // SAFETY: all zeros is a message without address, pieces and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_mut_ptr();
    message.msg_iovlen = pieces.len();
    // SAFETY: the kernel only reads the pieces: the first is borrowed during the call, the others
    // lie in guest memory that `frame` keeps mapped.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    let sent = usize::try_from(sent).map_err(|_| io::Error::last_os_error())?;
    frame.advance(sent.saturating_sub(first.len()));
    Ok(sent)
}
