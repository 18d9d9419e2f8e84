//! From the guest to the tap: each frame goes from guest memory by one writev.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use super::link::Link;
use super::{BUDGET, MAX_FRAME};
use crate::virtio::net::tap::HEADER;
use crate::virtio::{Chain, QueueError, VirtQueue};

/// The transmit queue of an active device.
#[derive(Debug)]
pub(super) struct Tx {
    queue: VirtQueue,
    chain: Chain,
    /// The tap was full; the event loop says when it is not.
    is_blocked: bool,
}

impl Tx {
    pub(super) fn new(queue: VirtQueue) -> Self {
        Self {
            chain: Chain::new(queue.memory()),
            queue,
            is_blocked: false,
        }
    }

    /// The queue, to be stopped.
    pub(super) fn queue(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    /// The tap may take frames again.
    pub(super) fn writable(&mut self, link: &mut Link) -> Result<(), QueueError> {
        match self.is_blocked {
            true => self.run(link),
            false => Ok(()),
        }
    }

    /// Sends what there is, up to a budget; then the queue kicks itself.
    pub(super) fn run(&mut self, link: &mut Link) -> Result<(), QueueError> {
        self.is_blocked = false;
        self.queue.disable_kicks()?;
        for _ in 0..BUDGET {
            if !self.queue.pop(&mut self.chain)? {
                self.queue.signal()?;
                if self.queue.enable_kicks()? {
                    continue;
                }
                return Ok(());
            }
            if !self.send(link) {
                // Kicks stay off: there is nothing to do before the tap says so.
                self.queue.undo_pop();
                self.is_blocked = true;
                return self.queue.signal();
            }
            self.queue.complete(self.chain.head(), 0)?;
        }
        self.queue.signal()?;
        self.queue.kick_again();
        Ok(())
    }

    /// Sends the frame in `chain`, or drops it; false if the tap is full.
    fn send(&mut self, link: &mut Link) -> bool {
        let frame = &mut self.chain.readable;
        if !(HEADER + 1..=MAX_FRAME).contains(&frame.len()) {
            link.drop_sent();
            return true;
        }
        loop {
            match frame.write_to(link.tap.as_fd()) {
                Ok(_) => link.worked(),
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
