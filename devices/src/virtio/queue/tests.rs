//! The ring loop and its notifications; chains against a model; buffers.

mod wrap;

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::Bytes;
use vmm_sys_util::tempfile::TempFile;

use super::*;
use crate::virtio::mock::{INDIRECT, MEM_END, NEXT, REGION, WRITE, memory};
use crate::virtio::{Buffers, Registers};

const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 8;

/// A queue of eight entries, and the driver's end of it.
struct Rig {
    mem: GuestMemory,
    queue: VirtQueue,
    kick: Arc<EventFd>,
    interrupt: Interrupt,
}

impl Rig {
    fn new(event_idx: bool) -> Self {
        let mem = memory();
        let mut ring = Queue::new(16).unwrap();
        ring.set_size(SIZE);
        ring.set_desc_table_address(Some(0x1000), Some(0));
        ring.set_avail_ring_address(Some(0x2000), Some(0));
        ring.set_used_ring_address(Some(0x3000), Some(0));
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        let ring = Ring::find(&ring, &mem).unwrap();
        let kick = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), Registers::new());
        let name = "test queue 0".to_owned();
        let queue = VirtQueue::new(name, ring, mem.clone(), kick.clone(), interrupt.clone());
        Self {
            mem,
            queue,
            kick,
            interrupt,
        }
    }

    fn put(&self, address: u64, value: u16) {
        self.mem.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn get(&self, address: u64) -> u16 {
        self.mem.read_obj(GuestAddress(address)).unwrap()
    }

    fn descriptor(&self, index: u16, (addr, len, flags, next): (u64, u32, u16, u16)) {
        let at = GuestAddress(DESCRIPTORS + 16 * u64::from(index));
        let descriptor = Descriptor::new(addr, len, flags, next);
        self.mem.write_obj(descriptor, at).unwrap();
    }

    /// Makes `count` chains of one writable byte available, from index `from` on.
    fn offer(&self, from: u16, count: u16) {
        for i in 0..count {
            let index = from.wrapping_add(i);
            self.descriptor(index % SIZE, (0x1_0000, 1, WRITE, 0));
            self.put(AVAIL + 4 + 2 * u64::from(index % SIZE), index % SIZE);
        }
        self.put(AVAIL + 2, from.wrapping_add(count));
    }

    fn interrupts(&self) -> u64 {
        self.interrupt.irqfd().unwrap().read().unwrap_or(0)
    }
}

/// If it fails, a chain is lost or served twice when the ring's indices wrap.
#[test]
fn indices_wrap_and_chains_can_be_given_back() {
    let mut rig = Rig::new(false);
    let mut chain = Chain::new(&rig.mem);
    let start = 0xfffc;
    rig.queue.ring.next_avail = start;
    rig.queue.ring.next_used = start;
    rig.offer(start, SIZE);
    for i in 0..SIZE {
        assert!(rig.queue.pop(&mut chain).unwrap());
        rig.queue.undo_pop();
        assert!(rig.queue.pop(&mut chain).unwrap());
        assert_eq!(chain.head(), start.wrapping_add(i) % SIZE);
        rig.queue.complete(chain.head(), 1);
    }
    assert!(!rig.queue.pop(&mut chain).unwrap());
    assert_eq!(rig.get(USED + 2), start.wrapping_add(SIZE));
}

/// If it fails, the driver is interrupted though it said not to, or waits though it did not.
#[test]
fn interrupts_are_suppressed_by_flag_and_by_event_index() {
    let mut rig = Rig::new(false);
    rig.queue.signal();
    assert_eq!(rig.interrupts(), 0, "nothing was used");
    rig.queue.complete(0, 0);
    rig.queue.signal();
    assert_eq!(rig.interrupts(), 1);
    rig.put(AVAIL, 1);
    rig.queue.complete(0, 0);
    rig.queue.signal();
    assert_eq!(rig.interrupts(), 0, "VRING_AVAIL_F_NO_INTERRUPT");

    let mut rig = Rig::new(true);
    let used_event = AVAIL + 4 + 2 * u64::from(SIZE);
    rig.put(used_event, 2);
    for wanted in [0, 0, 1, 0] {
        rig.queue.complete(0, 0);
        rig.queue.signal();
        assert_eq!(rig.interrupts(), wanted);
    }
}

/// If it fails, the driver kicks for nothing, or a chain waits for a kick that never comes.
#[test]
fn kicks_are_off_while_the_device_looks_and_nothing_is_missed() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(event_idx);
        rig.queue.disable_kicks();
        assert_eq!(rig.get(USED), u16::from(!event_idx));
        assert!(!rig.queue.enable_kicks());
        assert_eq!(rig.get(USED), 0);
        rig.offer(0, 1);
        assert!(rig.queue.enable_kicks(), "a chain came meanwhile");
        // Two more appear while the first is served.
        let mut served = 0;
        let mem = rig.mem.clone();
        rig.queue.drain(|_| {
            served += 1;
            mem.write_obj(3u16, GuestAddress(AVAIL + 2)).unwrap();
            Ok(0)
        });
        assert_eq!((served, rig.interrupts()), (3, 1));
        let avail_event = USED + 4 + 8 * u64::from(SIZE);
        assert_eq!(rig.get(avail_event), if event_idx { 3 } else { 0 });
        assert!(rig.kick.read().is_err(), "no need to come again");
    }
}

/// If it fails, a driver that never pauses holds the event loop for ever.
#[test]
fn a_driver_that_never_pauses_waits_for_the_next_turn() {
    let mut rig = Rig::new(false);
    let (mut served, mem) = (0, rig.mem.clone());
    rig.offer(0, 1);
    rig.queue.drain(|_| {
        served += 1;
        let next = u16::try_from(served + 1).unwrap();
        mem.write_obj(next, GuestAddress(AVAIL + 2)).unwrap();
        Ok(0)
    });
    assert_eq!(served, DRAIN_CHAINS);
    assert_eq!((rig.interrupts(), rig.kick.read().unwrap()), (1, 1));
    assert!(!rig.interrupt.is_reset_needed());
}

/// If it fails, a device goes on with a ring that makes no sense, or looks at it for ever.
#[test]
fn a_broken_ring_stops_the_device_until_it_is_reset() {
    let mut rig = Rig::new(false);
    rig.put(AVAIL + 2, SIZE + 1);
    rig.queue.drain(|_| panic!("there is no chain"));
    assert!(rig.interrupt.is_reset_needed());
    rig.offer(0, 1);
    let mut chain = Chain::new(&rig.mem);
    assert!(!rig.queue.pop(&mut chain).unwrap());
    assert!(!rig.queue.enable_kicks());
    rig.interrupt.clear();
    assert!(rig.queue.enable_kicks());
    assert!(rig.queue.pop(&mut chain).unwrap());
}

/// If it fails, a buffer over two regions of guest memory is cut, or I/O goes past its length.
#[test]
fn buffers_copy_and_transfer_in_place_over_region_borders() {
    let mut rig = Rig::new(false);
    let border = REGION as u64;
    rig.descriptor(0, (border - 3, 5, NEXT, 1));
    rig.descriptor(1, (0x1_0000, 0, NEXT, 2));
    rig.descriptor(2, (border - 8, 16, NEXT | WRITE, 3));
    rig.descriptor(3, (0x2_0000, 4, WRITE, 0));
    rig.mem
        .write_slice(b"hello", GuestAddress(border - 3))
        .unwrap();
    rig.put(AVAIL + 2, 1);
    let mut chain = Chain::new(&rig.mem);
    assert!(rig.queue.pop(&mut chain).unwrap());
    let Chain {
        readable, writable, ..
    } = &mut chain;
    assert_eq!((readable.len(), writable.len()), (5, 20));
    assert_eq!((readable.iovecs().len(), writable.iovecs().len()), (2, 3));

    let file = TempFile::new().unwrap().into_file();
    readable.write_all_at(file.as_fd(), 100, 4, true).unwrap();
    let mut last = [0; 8];
    assert_eq!((readable.read(&mut last), last[0]), (1, b'o'));
    assert!(readable.is_empty() && readable.read(&mut last) == 0);

    writable.read_exact_at(file.as_fd(), 100, 2).unwrap();
    let error = writable.read_exact_at(file.as_fd(), 101, 9).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(writable.len(), 15, "what came is consumed");
    assert_eq!(writable.write(&[b'x'; 13]), 13);
    assert_eq!(writable.read_obj::<u32>(), None);
    assert_eq!(writable.write(&[b'y'; 13]), 2);
    let error = writable.read_exact_at(file.as_fd(), 0, 1).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    let mut data = [0; 16];
    rig.mem
        .read_slice(&mut data, GuestAddress(border - 8))
        .unwrap();
    assert_eq!(&data, b"heellxxxxxxxxxxx");
    rig.mem
        .read_slice(&mut data, GuestAddress(0x2_0000))
        .unwrap();
    assert_eq!(&data[..6], b"xxyy\0\0");
}

proptest! {
    /// If it fails, a transfer goes on at the wrong byte, or a piece is cut where it should not be.
    #[test]
    fn buffers_are_consumed_byte_by_byte(
        lens in proptest::collection::vec(1u32..20, 1..8),
        counts in proptest::collection::vec(0usize..40, 1..8),
    ) {
        let mut buffers = Buffers::new(memory());
        for (i, &len) in (0..).zip(&lens) {
            buffers.push(GuestAddress(0x1_0000 + 0x100 * i), len).unwrap();
        }
        // The host address of each byte that is left.
        let places = |buffers: &Buffers| -> Vec<usize> {
            let pieces = buffers.iovecs().iter();
            pieces.flat_map(|p| p.iov_base.addr()..p.iov_base.addr() + p.iov_len).collect()
        };
        let mut wanted = places(&buffers);
        for count in counts {
            buffers.advance(count);
            wanted.drain(..count.min(wanted.len()));
            prop_assert_eq!(&places(&buffers), &wanted);
            prop_assert_eq!(buffers.len(), wanted.len());
            prop_assert!(buffers.iovecs().iter().all(|piece| piece.iov_len > 0));
        }
    }
}

/// What a chain is by the book: readable and writable lengths, or nothing.
fn model(table: &[(u64, u32, u16, u16)], indirect: &[(u64, u32, u16, u16)]) -> Option<(u64, u64)> {
    let (mut readable, mut writable) = (0u64, 0u64);
    let (mut table, mut index, mut steps) = (table, 0usize, 0);
    let mut seen = BTreeSet::new();
    loop {
        let &(addr, len, flags, next) = table.get(index)?;
        if !seen.insert((table.as_ptr(), index)) || steps > 16 {
            return None;
        }
        if flags & INDIRECT != 0 {
            // The generator names only the one table, or a part of it.
            let is_inside = table.as_ptr() == indirect.as_ptr();
            if flags & NEXT != 0 || is_inside || len == 0 || !len.is_multiple_of(16) {
                return None;
            }
            (table, index) = (&indirect[..len as usize / 16], 0);
            continue;
        }
        steps += 1;
        if len > 0 && addr.checked_add(len.into())? > MEM_END {
            return None;
        }
        if flags & WRITE != 0 {
            writable += u64::from(len);
        } else if writable > 0 {
            return None;
        } else {
            readable += u64::from(len);
        }
        if flags & NEXT == 0 {
            return Some((readable, writable)).filter(|(r, w)| r + w <= u64::from(u32::MAX));
        }
        index = next.into();
    }
}

const TABLE: u64 = 0x8000;
/// In place of the next descriptor's index: one more than its own.
const ROW: u16 = u16::MAX;

fn descriptors(count: usize) -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let addr =
        prop_oneof![8 => 0x1_0000u64..0x2_0000, 1 => MEM_END - 32..MEM_END + 32, 1 => any::<u64>()];
    let len = prop_oneof![8 => 0u32..256, 1 => any::<u32>()];
    let plain = (addr, len, 0u16..4, 0u16..9);
    // As drivers write the descriptors of a large buffer: each names the next one in the table.
    let in_a_row = (
        0x1_0000u64..0x2_0000,
        1u32..256,
        prop_oneof![Just(1u16), Just(3)],
        Just(ROW),
    );
    let indirect = prop_oneof![4 => Just(64u32), 1 => 0u32..80]
        .prop_flat_map(|len| (Just(TABLE), Just(len), 4u16..8, 0u16..9));
    let any_kind = prop_oneof![6 => plain, 12 => in_a_row, 1 => indirect];
    proptest::collection::vec(any_kind, count).prop_map(|mut table| {
        for (i, (_, _, _, next)) in (0..).zip(&mut table) {
            if *next == ROW {
                *next = i + 1;
            }
        }
        table
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// If it fails, some chain makes the walk panic, loop, leave guest memory, or mean something
    /// else than the specification says.
    #[test]
    fn chains_are_walked_as_the_specification_says(
        table in descriptors(8),
        indirect in descriptors(4),
    ) {
        let mut rig = Rig::new(false);
        for (i, &raw) in (0..).zip(&table) {
            rig.descriptor(i, raw);
        }
        for (i, &(addr, len, flags, next)) in (0..).zip(&indirect) {
            let at = GuestAddress(TABLE + 16 * i);
            rig.mem.write_obj(Descriptor::new(addr, len, flags, next), at).unwrap();
        }
        rig.put(AVAIL + 2, 1);
        let mut chain = Chain::new(&rig.mem);
        let wanted = model(&table, &indirect);
        match rig.queue.pop(&mut chain) {
            Ok(popped) => {
                prop_assert!(popped);
                let lens = (chain.readable.len() as u64, chain.writable.len() as u64);
                prop_assert_eq!(Some(lens), wanted);
                for buffers in [&chain.readable, &chain.writable] {
                    let sum: usize = buffers.iovecs().iter().map(|piece| piece.iov_len).sum();
                    prop_assert_eq!(sum, buffers.len());
                    prop_assert!(buffers.iovecs().iter().all(|piece| lies_in(&rig.mem, piece)));
                }
            }
            Err(error) => prop_assert_eq!(wanted, None, "{}", error),
        }
    }
}

/// Whether a piece is host memory of one of the regions.
fn lies_in(mem: &GuestMemory, piece: &libc::iovec) -> bool {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
    let start = piece.iov_base.addr();
    mem.iter().any(|region| {
        let base = region
            .get_host_address(MemoryRegionAddress(0))
            .unwrap()
            .addr();
        let len = usize::try_from(region.len()).unwrap();
        start >= base && start + piece.iov_len <= base + len
    })
}
