//! Descriptor chains (virtio 1.2, section 2.7.5): from what the driver wrote to checked buffers.

use std::slice;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use vm_memory::{Bytes, GuestAddress};

use super::ring::{DESCRIPTOR_SIZE, RawDescriptor};
use super::{Buffers, QueueError};
use crate::GuestMemory;

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

/// A descriptor (virtio 1.2, section 2.7.5).
struct Descriptor {
    addr: GuestAddress,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// From the wire: two little-endian words.
    fn new(words: [u64; 2]) -> Self {
        let [addr, rest] = words.map(u64::from_le);
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
        Self {
            addr: GuestAddress(addr),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// Where descriptors are read from: the queue's table or an indirect one.
enum Table<'a> {
    /// In one piece, found once and not for each descriptor.
    Mapped(&'a [RawDescriptor]),
    /// An indirect table over the border of two regions, misaligned, or outside guest memory.
    Scattered(GuestAddress, u16),
}

impl Table<'_> {
    /// One read: the driver cannot change the descriptor between the check and the use.
    fn read(&self, mem: &GuestMemory, index: u16) -> Result<Descriptor, QueueError> {
        let at = usize::from(index);
        let size = match self {
            Self::Mapped(table) => match table.get(at) {
                Some([addr, rest]) => {
                    let words = [addr, rest].map(|word| word.load(Ordering::Relaxed));
                    return Ok(Descriptor::new(words));
                }
                // A table has at most 65,535 entries.
                None => u16::try_from(table.len()).unwrap_or(u16::MAX),
            },
            &Self::Scattered(addr, size) if index < size => {
                let offset = (at * DESCRIPTOR_SIZE) as u64;
                let place = addr.0.checked_add(offset).map(GuestAddress);
                let words = place.and_then(|place| mem.read_obj(place).ok());
                return words
                    .map(Descriptor::new)
                    .ok_or(QueueError::Table { addr: addr.0 });
            }
            &Self::Scattered(_, size) => size,
        };
        Err(QueueError::DescriptorIndex { index, size })
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

    /// Follows the chain that starts at `head` of the queue's `table`, `limit` descriptors at most.
    ///
    /// As the specification asks: readable buffers before writable ones, less than 2^32 bytes in
    /// all, at most one indirect table, at the end of the chain and without another in it.
    pub(super) fn walk(
        &mut self,
        mem: &GuestMemory,
        table: &[RawDescriptor],
        head: u16,
        limit: u16,
    ) -> Result<(), QueueError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let (mut table, mut index) = (Table::Mapped(table), head);
        let mut is_indirect = false;
        let mut total = 0u32;
        // An indirect descriptor is one step of its own; a loop runs into the limit.
        let mut left = usize::from(limit) + 1;
        while let Some(fewer) = left.checked_sub(1) {
            left = fewer;
            let descriptor = table.read(mem, index)?;
            let is = |flag: u32| u32::from(descriptor.flags) & flag != 0;
            if is(VRING_DESC_F_INDIRECT) {
                if is_indirect || is(VRING_DESC_F_NEXT) {
                    return Err(QueueError::IndirectPlace);
                }
                table = self.indirect_table(&descriptor)?;
                (is_indirect, index) = (true, 0);
                continue;
            }
            let buffers = if is(VRING_DESC_F_WRITE) {
                &mut self.writable
            } else if self.writable.is_empty() {
                &mut self.readable
            } else {
                return Err(QueueError::Order);
            };
            let before = buffers.len();
            buffers.push(descriptor.addr, descriptor.len)?;
            index = descriptor.next;
            let run = match &table {
                Table::Mapped(table) if is(VRING_DESC_F_NEXT) => {
                    buffers.push_run(table, index, descriptor.flags, left)
                }
                _ => 0,
            };
            left -= run;
            index += u16::try_from(run).unwrap_or(u16::MAX);
            total = u32::try_from(buffers.len() - before)
                .ok()
                .and_then(|added| total.checked_add(added))
                .ok_or(QueueError::ChainLength)?;
            if !is(VRING_DESC_F_NEXT) {
                return Ok(());
            }
        }
        Err(QueueError::ChainTooLong { limit })
    }

    /// The table that an indirect descriptor names. Its entries are checked as they are read. Not to be
    /// used after `self`.
    fn indirect_table<'a>(&mut self, descriptor: &Descriptor) -> Result<Table<'a>, QueueError> {
        let &Descriptor { addr, len, .. } = descriptor;
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        let size = match u16::try_from(bytes / DESCRIPTOR_SIZE) {
            Ok(size) if size > 0 && bytes.is_multiple_of(DESCRIPTOR_SIZE) => size,
            _ => return Err(QueueError::IndirectLength { len }),
        };
        let host = self.readable.find(addr, len);
        let first = host.map(|host| host.cast::<RawDescriptor>());
        Ok(match first.filter(|first| first.is_aligned()) {
            // SAFETY: `size` descriptors are all of the `len` bytes, which stay mapped as long as
            // `self` lives, and nobody keeps the table that long. The guest's own accesses are not
            // Rust's, ours are atomic.
            Some(first) => Table::Mapped(unsafe { slice::from_raw_parts(first, size.into()) }),
            None => Table::Scattered(addr, size),
        })
    }
}
