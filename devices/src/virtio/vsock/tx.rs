//! From the guest: each packet is dealt with at once, and never waits for a slow program of the
//! host's.

use event_manager::EventOps;

use super::BUDGET;
use super::hub::Hub;
use super::packet::Header;
use crate::virtio::{Chain, QueueError, VirtQueue};

/// The transmit queue of an active device.
#[derive(Debug)]
pub(super) struct Tx {
    queue: VirtQueue,
    chain: Chain,
    /// No packet is taken before the guest has taken some of the resets that it was sent.
    pub(super) is_blocked: bool,
}

impl Tx {
    pub(super) fn new(queue: VirtQueue) -> Self {
        Self {
            chain: Chain::new(queue.memory()),
            queue,
            is_blocked: false,
        }
    }

    /// The queue, to be stopped or signalled.
    pub(super) fn queue(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    /// Takes what there is, up to a budget; then the queue kicks itself.
    pub(super) fn run(&mut self, hub: &mut Hub, ops: &mut EventOps) -> Result<(), QueueError> {
        self.is_blocked = false;
        self.queue.disable_kicks();
        for _ in 0..BUDGET {
            if hub.is_full() {
                // Kicks stay off: there is nothing to do before the receive queue moves.
                self.is_blocked = true;
                return Ok(());
            }
            if !self.queue.pop(&mut self.chain)? {
                if self.queue.enable_kicks() {
                    continue;
                }
                return Ok(());
            }
            let header = Header::take(&mut self.chain.readable)?;
            hub.receive(&header, &mut self.chain.readable, ops);
            self.queue.complete(self.chain.head(), 0);
        }
        self.queue.kick_again();
        Ok(())
    }
}
