//! From the guest to the host: each frame goes from guest memory by one system call.

use std::io::ErrorKind;

use super::link::Link;
use super::{BUDGET, MAX_FRAME};
use crate::virtio::net::tap::HEADER;
use crate::virtio::{Chain, QueueError, VirtQueue};

/// The transmit queue of an active device.
#[derive(Debug)]
pub(super) struct Tx {
    queue: VirtQueue,
    chain: Chain,
    state: State,
}

/// What has become of the frame in `chain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is gone, and the next may come.
    Idle,
    /// The rate limit holds it back; its timer says when to ask again.
    Limited,
    /// The host took it in part or not at all; the event loop says when it takes more.
    Blocked,
}

impl Tx {
    pub(super) fn new(queue: VirtQueue) -> Self {
        Self {
            chain: Chain::new(queue.memory()),
            queue,
            state: State::Idle,
        }
    }

    /// Stops the device if `result` says that the ring is broken; false if so.
    pub(super) fn stop_on(&mut self, result: Result<(), QueueError>) -> bool {
        result.inspect_err(|error| self.queue.fail(error)).is_ok()
    }

    /// Whether a frame waits for the host.
    pub(super) fn is_blocked(&self) -> bool {
        self.state == State::Blocked
    }

    /// The host may take frames again.
    pub(super) fn writable(&mut self, link: &mut Link) -> Result<(), QueueError> {
        match self.is_blocked() {
            true => self.run(link),
            false => Ok(()),
        }
    }

    /// Sends what there is, up to a budget; then the queue kicks itself.
    pub(super) fn run(&mut self, link: &mut Link) -> Result<(), QueueError> {
        self.queue.disable_kicks();
        for _ in 0..BUDGET {
            if self.state == State::Idle && !self.queue.pop(&mut self.chain)? {
                self.queue.signal();
                if self.queue.enable_kicks() {
                    continue;
                }
                return Ok(());
            }
            self.state = self.advance(link);
            if self.state != State::Idle {
                // Kicks stay off: there is nothing to do before the host or the timer says so.
                self.queue.signal();
                return Ok(());
            }
            self.queue.complete(self.chain.head(), 0);
        }
        self.queue.signal();
        self.queue.kick_again();
        Ok(())
    }

    /// Sends the frame in `chain` if it may go.
    fn advance(&mut self, link: &mut Link) -> State {
        // A frame that waits for the host has taken its share.
        if self.state != State::Blocked
            && let Some(limiter) = &mut link.limiters.tx
        {
            let len = self.chain.readable.len().saturating_sub(HEADER);
            if !limiter.admit(u64::try_from(len).unwrap_or(u64::MAX)) {
                return State::Limited;
            }
        }
        match self.send(link) {
            true => State::Idle,
            false => State::Blocked,
        }
    }

    /// Sends the frame in `chain`, or drops it; false if the host has no room.
    fn send(&mut self, link: &mut Link) -> bool {
        let is_begun = self.is_blocked();
        let frame = &mut self.chain.readable;
        // A frame that was begun is finished, whatever its rest looks like.
        let is_frame = is_begun || (HEADER + 1..=MAX_FRAME).contains(&frame.len());
        if !is_frame || !link.is_up() {
            link.drop_sent();
            return true;
        }
        loop {
            match link.backend.send(frame) {
                Ok(()) => link.worked(),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(e) => {
                    link.failed(&e);
                    link.drop_sent();
                }
            }
            return true;
        }
    }
}
