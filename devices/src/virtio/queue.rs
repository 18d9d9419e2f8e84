//! A virtqueue as its device owns it: the ring loop, notification and what a hostile ring can be.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::ring::Ring;
use super::{Chain, Interrupt};
use crate::GuestMemory;
use crate::log_limit::log_limited;

/// Chains that one call of [`VirtQueue::drain`] serves at most, so that a driver that never pauses
/// leaves the event loop to others.
pub const DRAIN_CHAINS: usize = 64;

/// What a ring or a chain can be that no honest driver makes. The device stops until its driver
/// resets it.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The available index is further ahead than the ring has entries.
    #[error("the available index {index} is over {size} entries ahead of {next}")]
    AvailIndex {
        /// What the driver wrote.
        index: u16,
        /// The device's next entry.
        next: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A descriptor number that its table does not have.
    #[error("descriptor {index} of a table of {size}")]
    DescriptorIndex {
        /// What the driver wrote.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// More descriptors than a chain may have, which is also what a loop looks like.
    #[error("a chain of more than {limit} descriptors, or one that loops")]
    ChainTooLong {
        /// Descriptors that a chain may have.
        limit: u16,
    },
    /// 2^32 bytes or more in one chain.
    #[error("a chain of more than 4 GiB")]
    ChainLength,
    /// More separate pieces of host memory than one system call takes.
    #[error("a chain of more than {} pieces", super::buffers::MAX_PIECES)]
    Pieces,
    /// A readable buffer behind a writable one.
    #[error("a readable buffer behind a writable one")]
    Order,
    /// A buffer that is not in guest memory, or not all of it.
    #[error("a buffer at {addr:#x}+{len:#x}, which is not guest memory")]
    Buffer {
        /// Its guest physical address.
        addr: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// A descriptor table that is not in guest memory.
    #[error("a descriptor table at {addr:#x}, which is not guest memory")]
    Table {
        /// Its guest physical address.
        addr: u64,
    },
    /// An indirect descriptor inside an indirect table, or one that goes on.
    #[error("an indirect descriptor in an indirect table, or with a successor")]
    IndirectPlace,
    /// An indirect table that is empty, no whole number of descriptors, or too long.
    #[error("an indirect table of {len} bytes")]
    IndirectLength {
        /// What the driver wrote.
        len: u32,
    },
    /// A chain that holds no request of the device's kind.
    #[error("{0}")]
    Request(&'static str),
}

/// Where a ring lies in guest memory (virtio 1.2, section 2.7); all of it is checked.
#[derive(Clone, Copy, Debug)]
pub struct RingLayout {
    /// Entries.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: GuestAddress,
    /// The available ring, the driver's area.
    pub driver: GuestAddress,
    /// The used ring, the device's area.
    pub device: GuestAddress,
}

/// A virtqueue that is set up, with its way to ring the driver. A device owns it from activation
/// to reset.
///
/// `virtio_queue::Queue` checks how a ring is set up. What happens to it afterwards is done here:
/// its ring is looked up in guest memory again at each access, and its iterators end silently where
/// a driver lies.
#[derive(Debug)]
pub struct VirtQueue {
    /// For messages: device and number.
    name: String,
    ring: Ring,
    mem: GuestMemory,
    kick: Arc<EventFd>,
    interrupt: Interrupt,
    /// Whether a buffer was used since the last [`Self::signal`].
    is_signal_due: bool,
    /// The used index at the last [`Self::signal`].
    signalled: u16,
    /// The chain that [`Self::drain`] fills again and again.
    scratch: Chain,
}

impl VirtQueue {
    /// A queue over `ring`, which lies in `mem`. `name` is for messages,
    /// `kick` is where the driver's notifications arrive.
    pub fn new(
        name: String,
        ring: Ring,
        mem: GuestMemory,
        kick: Arc<EventFd>,
        interrupt: Interrupt,
    ) -> Self {
        Self {
            scratch: Chain::new(&mem),
            signalled: ring.next_used,
            name,
            ring,
            mem,
            kick,
            interrupt,
            is_signal_due: false,
        }
    }

    /// Entries of the ring, as the driver chose it.
    pub fn size(&self) -> u16 {
        self.ring.size
    }

    /// The memory that the ring and its buffers lie in.
    pub fn memory(&self) -> &GuestMemory {
        &self.mem
    }

    /// Whether the device must be reset before it may take another chain.
    pub fn is_stopped(&self) -> bool {
        self.interrupt.is_reset_needed()
    }

    /// Where the driver's kicks arrive.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Where the ring's parts lie, for whoever is to serve it in another process.
    pub fn layout(&self) -> RingLayout {
        let [descriptors, driver, device] = self.ring.addresses();
        RingLayout {
            size: self.ring.size,
            descriptors,
            driver,
            device,
        }
    }

    /// Goes on where another process, which served the ring in its order, left it: what it took
    /// and did not complete is available again. Interrupts the driver at once, since the other one
    /// may have died before it did.
    pub fn take_over(&mut self) {
        let used = self.ring.used_index();
        self.ring.next_used = used;
        self.ring.next_avail = used;
        self.signalled = used;
        self.interrupt.used_buffer();
    }

    /// Takes the next available chain into `chain`; false if there is none, or if the device must
    /// be reset first. After an error call [`Self::fail`]: the ring makes no sense any more.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.is_stopped() || self.pending()? == 0 {
            return Ok(false);
        }
        let head = self.ring.avail_entry(self.ring.next_avail);
        chain.walk(&self.mem, self.ring.table(), head, self.ring.max_size)?;
        self.ring.next_avail = self.ring.next_avail.wrapping_add(1);
        Ok(true)
    }

    /// Gives the chain that was popped last back to the ring, to be popped again. For as many
    /// chains as were popped and not completed, in reverse order.
    pub fn undo_pop(&mut self) {
        self.ring.next_avail = self.ring.next_avail.wrapping_sub(1);
    }

    /// Chains that are available.
    fn pending(&self) -> Result<u16, QueueError> {
        let (index, next, size) = (
            self.ring.avail_index(),
            self.ring.next_avail,
            self.ring.size,
        );
        let pending = index.wrapping_sub(next);
        if pending > size {
            return Err(QueueError::AvailIndex { index, next, size });
        }
        Ok(pending)
    }

    /// Hands the chain that starts at `head` back to the driver, with `len` bytes written to its
    /// writable buffers from their front.
    pub fn complete(&mut self, head: u16, len: u32) {
        self.complete_all(&[(head, len)]);
    }

    /// As [`Self::complete`] for chains that belong together, in their order: the driver sees all of
    /// them or none. Each is a head and the bytes written.
    pub fn complete_all(&mut self, chains: &[(u16, u32)]) {
        for &(head, len) in chains {
            self.ring.put_used(head, len);
        }
        if !chains.is_empty() {
            self.is_signal_due = true;
            self.ring.publish_used();
        }
    }

    /// Interrupts the driver if chains were completed since the last call and it wants to know.
    pub fn signal(&mut self) {
        if self.take_signal() {
            self.interrupt.used_buffer();
        }
    }

    /// As [`Self::signal`] for this queue and another of the same device, with one interrupt where
    /// both are due: the queues of a device share its line, and the driver looks at all of them.
    pub fn signal_with(&mut self, other: &mut Self) {
        if self.take_signal() | other.take_signal() {
            self.interrupt.used_buffer();
        }
    }

    /// Whether the driver has to be interrupted; after this it counts as if it had been.
    fn take_signal(&mut self) -> bool {
        if !std::mem::take(&mut self.is_signal_due) {
            return false;
        }
        // The used index must be visible before the driver's wish is read, or both sides may wait.
        fence(Ordering::SeqCst);
        let used = self.ring.next_used;
        let before = std::mem::replace(&mut self.signalled, used);
        if self.ring.event_idx {
            is_passed(self.ring.used_event(), before, used)
        } else {
            u32::from(self.ring.avail_flags()) & VRING_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Whether the driver made a chain available, or says so. It takes no look at the chain.
    pub fn has_chain(&self) -> bool {
        self.ring.avail_index() != self.ring.next_avail
    }

    /// Chains that were completed since the last [`Self::signal`].
    pub fn unsignalled(&self) -> u16 {
        self.ring.next_used.wrapping_sub(self.signalled)
    }

    /// Asks the driver not to kick: the device looks by itself.
    pub fn disable_kicks(&mut self) {
        self.ring.want_kicks(false);
    }

    /// Asks the driver to kick again. True if a chain came in between, for which no kick may come:
    /// then [`Self::pop`] has it. A device that must be reset has none, whatever the ring says.
    pub fn enable_kicks(&mut self) -> bool {
        self.ring.want_kicks(true);
        // The wish must be visible before the index is read, or both sides may wait.
        fence(Ordering::SeqCst);
        self.has_chain() && !self.is_stopped()
    }

    /// Kicks itself: the event loop comes back to this queue after it has looked after the others.
    pub fn kick_again(&self) {
        // Cannot fail but for a full counter, and then a kick is pending already.
        let _ = self.kick.write(1);
    }

    /// The whole work of a device that answers each chain at once: `serve` gets each available
    /// chain and returns how many bytes it wrote. The driver's kicks are off meanwhile and it is
    /// interrupted once, at the end. After [`DRAIN_CHAINS`] chains the queue kicks itself and
    /// leaves the rest for later. An error, of the ring or of `serve`, stops the device.
    pub fn drain(&mut self, mut serve: impl FnMut(&mut Chain) -> Result<u32, QueueError>) {
        self.drain_while(|chain| serve(chain).map(Some));
    }

    /// As [`Self::drain`], of a device that may have to wait: `None` from `serve` leaves that chain
    /// and those behind it in the ring, for the next call.
    pub fn drain_while(
        &mut self,
        serve: impl FnMut(&mut Chain) -> Result<Option<u32>, QueueError>,
    ) {
        if let Err(error) = self.try_drain(serve) {
            self.fail(&error);
        }
    }

    fn try_drain(
        &mut self,
        mut serve: impl FnMut(&mut Chain) -> Result<Option<u32>, QueueError>,
    ) -> Result<(), QueueError> {
        let mut chain = std::mem::take(&mut self.scratch);
        let mut left = DRAIN_CHAINS;
        let mut must_wait = false;
        self.disable_kicks();
        loop {
            while left > 0 && !must_wait && self.pop(&mut chain)? {
                match serve(&mut chain)? {
                    Some(len) => self.complete(chain.head(), len),
                    None => {
                        self.undo_pop();
                        must_wait = true;
                    }
                }
                left -= 1;
            }
            self.signal();
            if must_wait {
                // Whoever must wait looks again by itself; until then the driver need not kick.
                break;
            }
            if left == 0 {
                self.kick_again();
                break;
            }
            if !self.enable_kicks() {
                break;
            }
            // Another look costs as much as a chain, lest an index that flickers holds us here.
            left -= 1;
        }
        self.scratch = chain;
        Ok(())
    }

    /// The driver broke the rules: says so, once in a while, and stops the device until its driver
    /// resets it.
    pub fn fail(&mut self, error: &QueueError) {
        log_limited!(
            error,
            "{}: the guest's driver made {error}; the device stops until it is reset",
            self.name
        );
        self.interrupt.needs_reset();
    }
}

/// Whether the entry that the other side waits for is among those from index `old` up to `new`
/// (virtio 1.2, section 2.7.7.2).
fn is_passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
