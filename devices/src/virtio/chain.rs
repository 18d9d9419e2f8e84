//! Descriptor chains (virtio 1.2, section 2.7.5): from what the driver wrote to checked buffers.

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory, VolatileSlice};

use super::{Buffers, QueueError};
use crate::GuestMemory;

/// Bytes of a descriptor in its table.
const DESCRIPTOR_SIZE: u32 = 16;

/// A chain of descriptors: what the driver wants read, and where it wants an answer. Reused from
/// request to request; it grows with the longest chain seen, never past the queue's bound. The
/// default chain has no memory, so only one from [`Chain::new`] can be filled.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    /// The buffers that the device may read.
    pub readable: Buffers,
    /// The buffers that the device may write.
    pub writable: Buffers,
}

/// Where descriptors are read from: the queue's table or an indirect one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) addr: GuestAddress,
    /// Entries.
    pub(super) size: u16,
}

impl Table {
    /// The whole table as the host sees it: found once, not for each descriptor. `None` if it is not
    /// in one piece, or not guest memory.
    fn map(self, mem: &GuestMemory) -> Option<VolatileSlice<'_>> {
        let len = usize::from(self.size) * DESCRIPTOR_SIZE as usize;
        mem.get_slice(self.addr, len).ok()
    }

    /// One read: the driver cannot change the descriptor between the check and the use.
    fn read(
        self,
        mem: &GuestMemory,
        mapped: Option<&VolatileSlice<'_>>,
        index: u16,
    ) -> Result<Descriptor, QueueError> {
        if index >= self.size {
            return Err(QueueError::DescriptorIndex {
                index,
                size: self.size,
            });
        }
        let offset = usize::from(index) * DESCRIPTOR_SIZE as usize;
        let descriptor = match mapped {
            Some(table) => table
                .get_ref(offset)
                .ok()
                .map(|descriptor| descriptor.load()),
            None => self
                .addr
                .0
                .checked_add(offset as u64)
                .and_then(|addr| mem.read_obj(GuestAddress(addr)).ok()),
        };
        descriptor.ok_or(QueueError::Table { addr: self.addr.0 })
    }
}

impl Chain {
    /// An empty chain, for [`VirtQueue::pop`](super::VirtQueue::pop) to fill.
    pub fn new(mem: &GuestMemory) -> Self {
        Self {
            head: 0,
            readable: Buffers::new(mem.clone()),
            writable: Buffers::new(mem.clone()),
        }
    }

    /// Index of the chain's first descriptor: its name in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Follows the chain that starts at `head` of `table`, `limit` descriptors at most.
    ///
    /// As the specification asks: readable buffers before writable ones, less than 2^32 bytes in
    /// all, at most one indirect table, at the end of the chain and without another in it.
    pub(super) fn walk(
        &mut self,
        mem: &GuestMemory,
        table: Table,
        head: u16,
        limit: u16,
    ) -> Result<(), QueueError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let (mut table, mut index) = (table, head);
        let mut mapped = table.map(mem);
        let mut is_indirect = false;
        let mut total = 0u32;
        // An indirect descriptor is one step of its own; a loop runs into the limit.
        for _ in 0..=limit {
            let descriptor = table.read(mem, mapped.as_ref(), index)?;
            let is = |flag: u32| u32::from(descriptor.flags()) & flag != 0;
            if is(VRING_DESC_F_INDIRECT) {
                if is_indirect || is(VRING_DESC_F_NEXT) {
                    return Err(QueueError::IndirectPlace);
                }
                table = indirect_table(&descriptor)?;
                mapped = table.map(mem);
                (is_indirect, index) = (true, 0);
                continue;
            }
            total = total
                .checked_add(descriptor.len())
                .ok_or(QueueError::ChainLength)?;
            if is(VRING_DESC_F_WRITE) {
                self.writable.push(descriptor.addr(), descriptor.len())?;
            } else if self.writable.is_empty() {
                self.readable.push(descriptor.addr(), descriptor.len())?;
            } else {
                return Err(QueueError::Order);
            }
            if !is(VRING_DESC_F_NEXT) {
                return Ok(());
            }
            index = descriptor.next();
        }
        Err(QueueError::ChainTooLong { limit })
    }
}

/// The table that an indirect descriptor names. Its entries are checked as they are read.
fn indirect_table(descriptor: &Descriptor) -> Result<Table, QueueError> {
    let len = descriptor.len();
    match u16::try_from(len / DESCRIPTOR_SIZE) {
        Ok(size) if size > 0 && len.is_multiple_of(DESCRIPTOR_SIZE) => Ok(Table {
            addr: descriptor.addr(),
            size,
        }),
        _ => Err(QueueError::IndirectLength { len }),
    }
}
