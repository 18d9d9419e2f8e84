//! From the tap to the guest: each frame comes into guest memory by one readv.
//!
//! The tap does not say how long the next frame is, so there must be room for the longest before
//! it is read. The buffers for that are taken from the ring ahead and kept from frame to frame.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};

use super::BUDGET;
use super::link::Link;
use crate::virtio::buffers::MAX_PIECES;
use crate::virtio::net::tap::HEADER;
use crate::virtio::{Chain, QueueError, VirtQueue};

/// Where in a frame's header the number of buffers is that it takes.
const NUM_BUFFERS: usize = 10;

/// How a driver takes frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// A frame may take several chains (VIRTIO_NET_F_MRG_RXBUF).
    pub(super) is_mergeable: bool,
    /// Bytes of the longest frame to expect, with its header.
    pub(super) longest: usize,
}

/// The receive queue of an active device.
#[derive(Debug)]
pub(super) struct Rx {
    queue: VirtQueue,
    shape: Shape,
    /// Chains that were taken from the ring and not yet completed.
    held: VecDeque<Chain>,
    /// Bytes in all of them.
    room: usize,
    /// No system call takes more pieces than they have.
    is_full: bool,
    /// Chains to be filled again.
    spare: Vec<Chain>,
    /// Room for the longest frame was lacking, and the driver was asked to kick.
    is_starved: bool,
    /// Even after its last kick the driver gave less room than the longest frame takes: it must
    /// know what it does, and frames are read into what there is.
    is_sparse: bool,
    /// The next kick is our own.
    kicked_again: bool,
}

impl Rx {
    pub(super) fn new(queue: VirtQueue, shape: Shape) -> Self {
        Self {
            queue,
            shape,
            held: VecDeque::new(),
            room: 0,
            is_full: false,
            spare: Vec::new(),
            is_starved: true,
            is_sparse: false,
            kicked_again: false,
        }
    }

    /// The queue, to be stopped.
    pub(super) fn queue(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    /// The driver gave buffers.
    pub(super) fn kicked(&mut self, link: &mut Link) -> Result<(), QueueError> {
        if !std::mem::take(&mut self.kicked_again) {
            self.take_stock()?;
        }
        self.run(link)
    }

    fn take_stock(&mut self) -> Result<(), QueueError> {
        if std::mem::take(&mut self.is_starved) {
            self.queue.disable_kicks()?;
        }
        self.refill()?;
        self.is_sparse = self.is_short();
        Ok(())
    }

    /// Receives what there is, up to a budget; then the queue kicks itself.
    pub(super) fn run(&mut self, link: &mut Link) -> Result<(), QueueError> {
        let mut pieces = Vec::new();
        let mut used = Vec::new();
        for _ in 0..BUDGET {
            self.refill()?;
            if self.is_short() && (self.held.is_empty() || !self.is_sparse) {
                self.is_starved = true;
                if self.queue.enable_kicks()? {
                    continue;
                }
                return self.queue.signal();
            }
            match self.read_frame(link, &mut pieces) {
                Ok(len) => {
                    link.worked();
                    self.deliver(len, link, &mut used)?;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    if e.kind() != ErrorKind::WouldBlock {
                        link.failed(&e);
                    }
                    return self.queue.signal();
                }
            }
        }
        self.queue.signal()?;
        self.kicked_again = true;
        self.queue.kick_again();
        Ok(())
    }

    /// Whether a frame of the longest kind may not fit.
    fn is_short(&self) -> bool {
        match self.shape.is_mergeable {
            true => self.room < self.shape.longest && !self.is_full,
            false => self.held.is_empty(),
        }
    }

    /// Takes chains from the ring until there is room for the longest frame, or no chain.
    fn refill(&mut self) -> Result<(), QueueError> {
        // A bound for a driver that gives useless chains as fast as they are refused.
        for _ in 0..=self.queue.size() {
            if !self.is_short() {
                break;
            }
            let mut chain = match self.spare.pop() {
                Some(chain) => chain,
                None => Chain::new(self.queue.memory()),
            };
            if !self.queue.pop(&mut chain)? {
                self.spare.push(chain);
                break;
            }
            // One piece is ours. A chain alone has far fewer than that.
            if self.pieces() + chain.writable.iovecs().len() >= MAX_PIECES {
                self.queue.undo_pop();
                self.is_full = true;
                self.spare.push(chain);
                break;
            }
            // The driver must give at least a header's room, and nothing to read.
            if chain.writable.len() < HEADER || !chain.readable.is_empty() {
                self.queue.complete(chain.head(), 0)?;
                self.spare.push(chain);
                continue;
            }
            self.room += chain.writable.len();
            self.held.push_back(chain);
        }
        Ok(())
    }

    /// Pieces of all chains that are held.
    fn pieces(&self) -> usize {
        let pieces = |chain: &Chain| chain.writable.iovecs().len();
        self.held.iter().map(pieces).sum()
    }

    /// Reads a frame into the chains that are held. A length over their room says that it did not
    /// fit. `pieces` is scratch.
    fn read_frame(&self, link: &Link, pieces: &mut Vec<libc::iovec>) -> io::Result<usize> {
        // A tap cuts a frame that does not fit, silently. A byte of ours at the end tells.
        let mut overflow = 0u8;
        pieces.clear();
        for chain in &self.held {
            pieces.extend_from_slice(chain.writable.iovecs());
        }
        pieces.push(libc::iovec {
            iov_base: (&raw mut overflow).cast(),
            iov_len: 1,
        });
        // `refill` keeps them below MAX_PIECES.
        let count = libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `count` counts the pieces; all but the last lie in guest memory that the chains
        // keep mapped, the last is `overflow`, which lives during the call.
        let len = unsafe { libc::readv(link.tap.as_fd().as_raw_fd(), pieces.as_ptr(), count) };
        match usize::try_from(len) {
            // A tap has no empty frames: this is the end of something that somebody gave us for one.
            Ok(0) => Err(io::Error::from_raw_os_error(libc::EBADFD)),
            Ok(len) => Ok(len),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Hands the chains that `len` bytes went into to the driver. `used` is scratch.
    fn deliver(
        &mut self,
        len: usize,
        link: &Link,
        used: &mut Vec<(u16, u32)>,
    ) -> Result<(), QueueError> {
        if !(HEADER..=self.room).contains(&len) {
            link.drop_received();
            return self.refuse(len);
        }
        used.clear();
        self.is_full = false;
        let mut left = len;
        let mut first = None;
        while left > 0
            && let Some(chain) = self.held.pop_front()
        {
            let part = chain.writable.len().min(left);
            left -= part;
            self.room -= chain.writable.len();
            // At most `longest`, far below 4 GiB.
            used.push((chain.head(), u32::try_from(part).unwrap_or(u32::MAX)));
            match first {
                None => first = Some(chain),
                Some(_) => self.spare.push(chain),
            }
        }
        if let Some(mut chain) = first {
            let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
            chain.writable.advance(NUM_BUFFERS);
            chain.writable.write(&count.to_le_bytes());
            self.spare.push(chain);
        }
        self.queue.complete_all(used)
    }

    /// A frame was dropped for want of room, or was none. A single chain that was too small would
    /// stay in the way of the next frame too, so the driver gets it back, empty.
    fn refuse(&mut self, len: usize) -> Result<(), QueueError> {
        if self.shape.is_mergeable || len < HEADER {
            return Ok(());
        }
        let Some(chain) = self.held.pop_front() else {
            return Ok(());
        };
        self.room = 0;
        let head = chain.head();
        self.spare.push(chain);
        self.queue.complete(head, 0)
    }
}
