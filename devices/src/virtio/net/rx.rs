//! From the host to the guest: each frame comes into guest memory by one readv.
//!
//! A tap does not say how long the next frame is, so there must be room for the longest before
//! it is read. The buffers for that are taken from the ring ahead and kept from frame to frame.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

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
    /// Bytes of room that the next frame may take.
    need: usize,
    /// No system call takes more pieces than they have.
    is_full: bool,
    /// The length of the frame in the first of them, which the rate limit holds back.
    limited: Option<usize>,
    /// Chains to be filled again.
    spare: Vec<Chain>,
    /// Room for the next frame was lacking, and the driver was asked to kick.
    is_starved: bool,
    /// Even after its last kick the driver gave less room than the next frame takes: it must
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
            need: shape.longest,
            is_full: false,
            limited: None,
            spare: Vec::new(),
            is_starved: true,
            is_sparse: false,
            kicked_again: false,
        }
    }

    /// Stops the device if `result` says that the ring is broken; false if so.
    pub(super) fn stop_on(&mut self, result: Result<(), QueueError>) -> bool {
        result.inspect_err(|error| self.queue.fail(error)).is_ok()
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
            self.queue.disable_kicks();
        }
        self.refill()?;
        self.is_sparse = self.is_short();
        Ok(())
    }

    /// Receives what there is, up to a budget; then the queue kicks itself.
    pub(super) fn run(&mut self, link: &mut Link) -> Result<(), QueueError> {
        let is_over = self.receive(link)?;
        self.queue.signal();
        if !is_over {
            self.kicked_again = true;
            self.queue.kick_again();
        }
        Ok(())
    }

    /// Receives what there is, up to a budget; false if there may be more.
    fn receive(&mut self, link: &mut Link) -> Result<bool, QueueError> {
        let mut pieces = Vec::new();
        let mut used = Vec::new();
        if let Some(len) = self.limited.take()
            && !self.accept(len, link, &mut used)?
        {
            return Ok(true);
        }
        for _ in 0..BUDGET {
            match link.backend.next_frame(self.shape.longest) {
                Ok(need) => self.need = need,
                Err(e) if Self::is_over(link, &e) => return Ok(true),
                Err(_) => continue,
            }
            self.refill()?;
            self.is_sparse &= self.is_short();
            if self.is_short() && (self.held.is_empty() || !self.is_sparse) {
                self.is_starved = true;
                if self.queue.enable_kicks() {
                    continue;
                }
                return Ok(true);
            }
            match link.backend.receive(&self.held, self.room, &mut pieces) {
                Ok(len) => {
                    link.worked();
                    if !self.accept(len, link, &mut used)? {
                        return Ok(true);
                    }
                }
                Err(e) if Self::is_over(link, &e) => return Ok(true),
                Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Whether there is nothing more to receive for now, as `error` says.
    fn is_over(link: &mut Link, error: &io::Error) -> bool {
        match error.kind() {
            ErrorKind::Interrupted => return false,
            ErrorKind::WouldBlock => {}
            _ => link.failed(error),
        }
        true
    }

    /// Whether the next frame may not fit.
    fn is_short(&self) -> bool {
        match self.shape.is_mergeable {
            true => self.room < self.need && !self.is_full,
            false => self.held.is_empty(),
        }
    }

    /// Takes chains from the ring until there is room for the next frame, or no chain.
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
                self.queue.complete(chain.head(), 0);
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

    /// Hands a frame of `len` bytes that was received to the driver, or drops it; false if the rate
    /// limit holds it back, and what comes after it.
    fn accept(
        &mut self,
        len: usize,
        link: &mut Link,
        used: &mut Vec<(u16, u32)>,
    ) -> Result<bool, QueueError> {
        let bytes = u64::try_from(len.saturating_sub(HEADER)).unwrap_or(u64::MAX);
        if len <= self.room
            && let Some(limiter) = &mut link.limiters.rx
            && !limiter.admit(bytes)
        {
            self.limited = Some(len);
            return Ok(false);
        }
        self.deliver(len, link, used);
        Ok(true)
    }

    /// Hands the chains that `len` bytes went into to the driver. `used` is scratch.
    fn deliver(&mut self, len: usize, link: &Link, used: &mut Vec<(u16, u32)>) {
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
            match link.backend.writes_header() {
                true => chain.writable.advance(NUM_BUFFERS),
                false => {
                    chain.writable.write(&[0; NUM_BUFFERS]);
                }
            }
            chain.writable.write(&count.to_le_bytes());
            self.spare.push(chain);
        }
        self.queue.complete_all(used);
    }

    /// A frame was dropped for want of room, or was none. A single chain that was too small would
    /// stay in the way of the next frame too, so the driver gets it back, empty.
    fn refuse(&mut self, len: usize) {
        if self.shape.is_mergeable || len < HEADER {
            return;
        }
        let Some(chain) = self.held.pop_front() else {
            return;
        };
        self.room = 0;
        let head = chain.head();
        self.spare.push(chain);
        self.queue.complete(head, 0);
    }
}
