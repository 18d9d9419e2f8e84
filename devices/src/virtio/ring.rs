//! A ring in guest memory (virtio 1.2, section 2.7), found in the host once and accessed in place.

use std::slice;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{
    AtomicInteger, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
};

use crate::GuestMemory;

/// Bytes of a descriptor in its table.
pub(super) const DESCRIPTOR_SIZE: usize = 16;
/// A descriptor as it lies in its table: two little-endian words.
pub(super) type RawDescriptor = [AtomicU64; 2];
/// Bytes of flags and index, which both the available and the used ring begin with.
const HEADER: usize = 4;
/// Bytes of an entry of the available ring.
const AVAIL_ENTRY: usize = 2;
/// Bytes of an entry of the used ring.
const USED_ENTRY: usize = 8;
/// Bytes of the event index behind the entries.
const EVENT: usize = 2;

/// A ring whose three parts each lie in one region of guest memory. Entries are counted by 16-bit
/// numbers that wrap; where an entry lies is its number modulo the size. What the driver wrote is
/// its word; nothing here depends on it.
#[derive(Debug)]
pub struct Ring {
    /// Entries: a power of two.
    pub(super) size: u16,
    /// Entries at most: the device's word.
    pub(super) max_size: u16,
    /// Whether VIRTIO_F_EVENT_IDX is accepted.
    pub(super) event_idx: bool,
    /// Number of the next available entry to take.
    pub(super) next_avail: u16,
    /// Number of the next used entry to write.
    pub(super) next_used: u16,
    descriptors: Part,
    avail: Part,
    used: Part,
}

/// A part of a ring as the host has it mapped.
///
/// Invariant: `len` bytes at `host` lie in a region that `_mem` keeps mapped.
#[derive(Debug)]
struct Part {
    addr: GuestAddress,
    host: *mut u8,
    len: usize,
    /// Keeps the region mapped.
    _mem: GuestMemory,
}

// SAFETY: the pointer leads into guest memory that `_mem` keeps mapped; guest memory is shared with
// the vCPU threads anyway and belongs to no thread.
unsafe impl Send for Part {}
// SAFETY: as above; all accesses are atomic or volatile.
unsafe impl Sync for Part {}

impl Part {
    /// `len` bytes at `addr`; `None` if they are not all in one region.
    fn find(mem: &GuestMemory, addr: GuestAddress, len: usize) -> Option<Self> {
        let region = mem.find_region(addr)?;
        let offset = addr.0.checked_sub(region.start_addr().0)?;
        if offset.checked_add(len as u64)? > region.len() {
            return None;
        }
        let host = region.get_host_address(MemoryRegionAddress(offset)).ok()?;
        Some(Self {
            addr,
            host,
            len,
            _mem: mem.clone(),
        })
    }

    /// The integer at `offset`, which is the ring's arithmetic, never the driver's word.
    fn atomic<A: AtomicInteger>(&self, offset: usize) -> &A {
        let place = self.host.wrapping_add(offset).cast::<A>();
        // Regions begin at a page in both worlds, so what is aligned in the guest is so here.
        assert!(offset + size_of::<A>() <= self.len && place.is_aligned());
        // SAFETY: the assertion and the type's invariant: aligned, and in memory that stays mapped as
        // long as `self`. Everyone in this process accesses it atomically or volatile.
        unsafe { &*place }
    }
}

impl Ring {
    /// The ring that `set_up` describes; `None` if a part of it is not guest memory, all of it in one
    /// region (regions are far apart: no driver has a ring in two).
    pub fn find(set_up: &Queue, mem: &GuestMemory) -> Option<Self> {
        let entries = usize::from(set_up.size());
        let part = |addr, len| Part::find(mem, GuestAddress(addr), len);
        Some(Self {
            size: set_up.size(),
            max_size: set_up.max_size(),
            event_idx: set_up.event_idx_enabled(),
            next_avail: set_up.next_avail(),
            next_used: set_up.next_used(),
            descriptors: part(set_up.desc_table(), DESCRIPTOR_SIZE * entries)?,
            avail: part(set_up.avail_ring(), HEADER + AVAIL_ENTRY * entries + EVENT)?,
            used: part(set_up.used_ring(), HEADER + USED_ENTRY * entries + EVENT)?,
        })
    }

    /// Guest physical addresses of the descriptor table, the available and the used ring.
    pub(super) fn addresses(&self) -> [GuestAddress; 3] {
        [&self.descriptors, &self.avail, &self.used].map(|part| part.addr)
    }

    /// The descriptor table.
    pub(super) fn table(&self) -> &[RawDescriptor] {
        let first = self.descriptors.host.cast::<RawDescriptor>();
        assert!(first.is_aligned());
        // SAFETY: the part's invariant and the assertion; the slice borrows `self`. The guest's own
        // accesses are not Rust's, ours are atomic.
        unsafe { slice::from_raw_parts(first, self.descriptors.len / DESCRIPTOR_SIZE) }
    }

    /// What the driver says of interrupts if there is no event index.
    pub(super) fn avail_flags(&self) -> u16 {
        let flags: &AtomicU16 = self.avail.atomic(0);
        u16::from_le(flags.load(Ordering::Relaxed))
    }

    /// Number of the entry that the driver makes available next. What it wrote before it moved on is
    /// seen after this.
    pub(super) fn avail_index(&self) -> u16 {
        let index: &AtomicU16 = self.avail.atomic(2);
        u16::from_le(index.load(Ordering::Acquire))
    }

    /// The descriptor that the available entry of `number` names.
    pub(super) fn avail_entry(&self, number: u16) -> u16 {
        let offset = HEADER + AVAIL_ENTRY * usize::from(number % self.size);
        let entry: &AtomicU16 = self.avail.atomic(offset);
        u16::from_le(entry.load(Ordering::Relaxed))
    }

    /// Number of the used entry that the driver wants to be told of.
    pub(super) fn used_event(&self) -> u16 {
        let offset = HEADER + AVAIL_ENTRY * usize::from(self.size);
        let event: &AtomicU16 = self.avail.atomic(offset);
        u16::from_le(event.load(Ordering::Relaxed))
    }

    /// Number of the used entry that is written next, as the ring has it.
    pub(super) fn used_index(&self) -> u16 {
        let index: &AtomicU16 = self.used.atomic(2);
        u16::from_le(index.load(Ordering::Acquire))
    }

    /// Writes the next used entry; the driver does not see it before [`Self::publish_used`].
    pub(super) fn put_used(&mut self, head: u16, len: u32) {
        let offset = HEADER + USED_ENTRY * usize::from(self.next_used % self.size);
        let words = [(0, u32::from(head)), (4, len)];
        for (at, word) in words {
            let place: &AtomicU32 = self.used.atomic(offset + at);
            place.store(word.to_le(), Ordering::Relaxed);
        }
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver all used entries that were written.
    pub(super) fn publish_used(&self) {
        let index: &AtomicU16 = self.used.atomic(2);
        index.store(self.next_used.to_le(), Ordering::Release);
    }

    /// Tells the driver whether to kick when it makes entries available.
    pub(super) fn want_kicks(&self, is_wanted: bool) {
        if self.event_idx {
            let offset = HEADER + USED_ENTRY * usize::from(self.size);
            let event: &AtomicU16 = self.used.atomic(offset);
            // An entry of the past is one that no driver comes by before it has gone all around.
            let number = self.next_avail.wrapping_sub(u16::from(!is_wanted));
            event.store(number.to_le(), Ordering::Relaxed);
        } else {
            let flags: &AtomicU16 = self.used.atomic(0);
            flags.store(u16::from(!is_wanted).to_le(), Ordering::Relaxed);
        }
    }
}
