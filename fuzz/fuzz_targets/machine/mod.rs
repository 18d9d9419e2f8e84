//! A machine with one virtio device, and a driver that does whatever the fuzzer says: to the
//! registers, to the rings, and to all of guest memory. The device must come to rest and keep to
//! guest memory, leave that alone after a reset, and then work for a good driver.
#![allow(dead_code)] // not every target needs all of it

mod memory;

pub use memory::Sharing;

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use cofferdam_devices::GuestMemory;
use cofferdam_devices::bus::BusDevice;
use cofferdam_devices::virtio::VirtioDevice;
use cofferdam_devices::virtio::mmio::MmioTransport;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: u64 = 2 * memory::REGION as u64;
/// Each queue's rings have so many bytes from the start of memory on; buffers are behind them.
const RINGS: u64 = 0x10000;
const BUFFERS: u64 = QUEUES as u64 * RINGS;
/// Queues that are set up, at most.
const QUEUES: u32 = 6;
const INDIRECT: u16 = 4;

/// What drivers of one kind of device ask for: almost right, so that it need not be found.
pub trait Request: Debug {
    /// The queue, and the buffers of a chain.
    fn chain(self) -> (u8, Vec<Buffer>);
}

/// No kind of device.
impl Request for () {
    fn chain(self) -> (u8, Vec<Buffer>) {
        (0, Vec::new())
    }
}

/// One thing that a driver, or the world behind the device, does.
#[derive(Arbitrary, Debug)]
pub enum Op<R = (), A = Vec<u8>> {
    /// Resets the device and sets it up as a good driver does; where the rings are is not as good.
    Start {
        without: u64,
        overlap: bool,
        wild: Option<Wild>,
    },
    /// Writes a register, whole.
    Register { number: u8, value: u32 },
    /// Any access to the page of registers.
    Write { offset: u16, data: [u8; 8], len: u8 },
    /// Any access to the page of registers.
    Read { offset: u16, len: u8 },
    /// Puts a chain in a ring and makes it available.
    Chain {
        queue: u8,
        is_indirect: bool,
        buffers: Vec<Buffer>,
    },
    /// Offers what the device is for, and kicks.
    Request(R),
    /// Writes anywhere to memory: descriptors, rings, requests.
    Poke { address: u32, data: Vec<u8> },
    /// Writes an available index.
    Available { queue: u8, index: u16 },
    /// Kicks a queue.
    Kick { queue: u8 },
    /// Lets the device work.
    Run,
    /// Something arrives at the device from outside.
    Arrive(A),
}

/// A queue that is set up as it should not be: its number, its size, and where its parts are.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Wild {
    queue: u8,
    size: u16,
    parts: [u32; 3],
}

/// A descriptor of a chain, and what is in its buffer.
#[derive(Arbitrary, Debug)]
pub struct Buffer {
    /// Bit 0: the device writes. The highest values: nothing about it is as it should be.
    shape: u8,
    wild: u32,
    len: Length,
    contents: Vec<u8>,
}

impl Buffer {
    /// One that the device reads.
    pub fn readable(contents: Vec<u8>) -> Self {
        let len = Length::Any(contents.len().try_into().unwrap());
        Self::readable_of(len, contents)
    }

    /// One that the device reads, of another length than its contents.
    pub fn readable_of(len: Length, contents: Vec<u8>) -> Self {
        Self::new(0, len, contents)
    }

    /// One that the device writes; it holds `contents` before.
    pub fn writable(len: Length, contents: Vec<u8>) -> Self {
        Self::new(1, len, contents)
    }

    fn new(shape: u8, len: Length, contents: Vec<u8>) -> Self {
        Self {
            shape,
            wild: 0,
            len,
            contents,
        }
    }

    /// Where it is, if it is not where nothing else is.
    fn wild_address(&self) -> Option<u64> {
        (self.shape >= 0xf0).then(|| u64::from(self.wild) << (self.wild & 7))
    }

    fn flags(&self) -> u16 {
        let wild = if self.shape & 0xf0 == 0xe0 {
            self.wild
        } else {
            0
        };
        (u16::from(self.shape & 1) << 1) | u16::try_from(wild & 0xffff).unwrap()
    }
}

/// Lengths that matter, so that they need not be found.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Length {
    Small(u8),
    Sectors(u8),
    Page(u16),
    Any(u32),
}

impl Length {
    /// The length.
    pub fn bytes(self) -> u32 {
        match self {
            Self::Small(bytes) => bytes.into(),
            Self::Sectors(count) => u32::from(count) << 9,
            Self::Page(bytes) => bytes.into(),
            Self::Any(bytes) => bytes,
        }
    }
}

/// Where a queue is, and how far its driver.
#[derive(Clone, Copy, Default)]
struct Ring {
    base: u64,
    size: u16,
    available: u16,
    free: u16,
}

struct Machine {
    mem: GuestMemory,
    transport: MmioTransport,
    events: EventManager<Box<dyn MutEventSubscriber>>,
    rings: Vec<Ring>,
    next_buffer: u64,
}

/// Does all of `ops` to a machine with `device`. `arrive` is what is behind the device. A driver
/// that does not begin with the registers finds it started.
pub fn drive<R: Request, A>(
    device: impl VirtioDevice + 'static,
    ops: Vec<Op<R, A>>,
    arrive: impl FnMut(A),
) {
    let device = Arc::new(Mutex::new(device));
    drive_with(Sharing::Private, device, ops, arrive);
}

/// As [`drive`], with memory of another kind, or a device that others know too.
pub fn drive_with<R: Request, A>(
    sharing: Sharing,
    device: Arc<Mutex<dyn VirtioDevice>>,
    ops: Vec<Op<R, A>>,
    mut arrive: impl FnMut(A),
) {
    let mut machine = Machine::new(sharing, device);
    if !matches!(ops.first(), Some(Op::Register { .. } | Op::Write { .. })) {
        machine.start(0, false, None);
    }
    for op in ops {
        match op {
            Op::Arrive(event) => arrive(event),
            op => machine.apply(op),
        }
    }
    machine.run();
    machine.reset();
    let mem = machine.mem.clone();
    memory::without(&mem, || machine.run());
    // A good driver that comes then finds the device as if nothing had been.
    machine.start(0, false, None);
    machine.run();
    assert_eq!(machine.read(reg::VIRTIO_MMIO_STATUS), 0xf);
    machine.reset();
}

impl Machine {
    fn new(sharing: Sharing, device: Arc<Mutex<dyn VirtioDevice>>) -> Self {
        let mem = memory::fresh(sharing);
        let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
        let transport = MmioTransport::new("fuzzed", device, mem.clone(), irqfd).unwrap();
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(Box::new(transport.subscriber()) as Box<dyn MutEventSubscriber>);
        for lane in transport.lanes() {
            events.add_subscriber(Box::new(lane));
        }
        Self {
            mem,
            transport,
            events,
            rings: Vec::new(),
            next_buffer: BUFFERS,
        }
    }

    fn read(&mut self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    fn reset(&mut self) {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.read(reg::VIRTIO_MMIO_STATUS), 0);
    }

    fn apply<A>(&mut self, op: Op<impl Request, A>) {
        match op {
            Op::Start {
                without,
                overlap,
                wild,
            } => self.start(without, overlap, wild),
            Op::Register { number, value } => self.write(u32::from(number) << 2, value),
            Op::Write { offset, data, len } => {
                // The bus keeps offsets inside of the page, and the length is 1 to 8.
                let len = 1 + usize::from(len % 8);
                self.transport.write(inside(offset, len), &data[..len]);
            }
            Op::Read { offset, len } => {
                let mut data = [0xff; 8];
                let len = 1 + usize::from(len % 8);
                self.transport.read(inside(offset, len), &mut data[..len]);
            }
            Op::Chain {
                queue,
                is_indirect,
                buffers,
            } => self.offer(queue, is_indirect, &buffers),
            Op::Request(request) => {
                let (queue, buffers) = request.chain();
                self.offer(queue, false, &buffers);
                if let Some(queue) = self.queue(queue) {
                    let queue = u32::try_from(queue).unwrap();
                    self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
                }
            }
            Op::Poke { address, data } => self.poke(u64::from(address) % MEMORY, &data),
            Op::Available { queue, index } => {
                if let Some(queue) = self.queue(queue) {
                    self.rings[queue].available = index;
                    let base = self.rings[queue].base;
                    self.poke(base + 0x8002, &index.to_le_bytes());
                }
            }
            Op::Kick { queue } => self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue.into()),
            Op::Run => self.run(),
            Op::Arrive(_) => {}
        }
    }

    /// One of the queues there are.
    fn queue(&self, number: u8) -> Option<usize> {
        usize::from(number).checked_rem(self.rings.len())
    }

    /// Writes what fits.
    fn poke(&self, address: u64, data: &[u8]) {
        let _ = self.mem.write(data, GuestAddress(address));
    }

    fn start(&mut self, without: u64, overlap: bool, wild: Option<Wild>) {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        self.write(reg::VIRTIO_MMIO_STATUS, 3);
        for word in [0, 1] {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
            let offered = self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES);
            let half = u32::try_from(without >> (32 * word) & 0xffff_ffff).unwrap();
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
            // VERSION_1 is bit 32.
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, offered & !(half & !word));
        }
        self.write(reg::VIRTIO_MMIO_STATUS, 0xb);
        self.rings.clear();
        for queue in 0..QUEUES {
            self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
            let size = self.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX);
            if size == 0 {
                break;
            }
            let base = RINGS * u64::from(queue);
            let start = u32::try_from(base).unwrap();
            let used = if overlap { 0x8000 } else { 0xc000 };
            self.poke(base, &[0; 0x10000]);
            let wild = wild.filter(|wild| u32::from(wild.queue) == queue);
            let (size, parts) = match wild {
                Some(wild) => (wild.size.into(), wild.parts),
                None => (size, [start, start + 0x8000, start + used]),
            };
            self.write(reg::VIRTIO_MMIO_QUEUE_NUM, size);
            self.write(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, parts[0]);
            self.write(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, parts[1]);
            self.write(reg::VIRTIO_MMIO_QUEUE_USED_LOW, parts[2]);
            self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
            if self.read(reg::VIRTIO_MMIO_QUEUE_READY) == 0 {
                assert!(wild.is_some(), "a good ring is refused");
                break;
            }
            self.rings.push(Ring {
                base,
                size: size.try_into().unwrap(),
                ..Ring::default()
            });
        }
        self.write(reg::VIRTIO_MMIO_STATUS, 0xf);
    }

    /// Writes a chain of descriptors, in the ring's table or in one of its own, and offers it.
    fn offer(&mut self, queue: u8, is_indirect: bool, buffers: &[Buffer]) {
        let (Some(queue), false) = (self.queue(queue), buffers.is_empty()) else {
            return;
        };
        let count = u16::try_from(buffers.len().min(300)).unwrap();
        let ring = self.rings[queue];
        let (table, first, size) = if is_indirect {
            (self.room(16 * u64::from(count)), 0, count)
        } else {
            (ring.base, ring.free, ring.size)
        };
        for (number, buffer) in (0..count).zip(buffers) {
            let len = buffer.len.bytes();
            let address = match buffer.wild_address() {
                Some(address) => address,
                None => self.room(u64::from(len)),
            };
            self.poke(address, &buffer.contents);
            let next = (first + number + 1) % size;
            let is_last = number + 1 == count;
            let flags = buffer.flags() | u16::from(!is_last);
            let index = u64::from((first + number) % size);
            self.descriptor(table + 16 * index, address, len, flags, next);
        }
        if is_indirect {
            let index = u64::from(ring.free % ring.size);
            let len = 16 * u32::from(count);
            self.descriptor(ring.base + 16 * index, table, len, INDIRECT, 0);
        }
        let slot = ring.base + 0x8004 + 2 * u64::from(ring.available % ring.size);
        self.poke(slot, &ring.free.to_le_bytes());
        let taken = if is_indirect { 1 } else { count };
        let ring = &mut self.rings[queue];
        ring.free = (ring.free + taken) % ring.size;
        ring.available = ring.available.wrapping_add(1);
        let (base, index) = (ring.base, ring.available);
        self.poke(base + 0x8002, &index.to_le_bytes());
    }

    fn descriptor(&self, place: u64, address: u64, len: u32, flags: u16, next: u16) {
        self.poke(place, &address.to_le_bytes());
        self.poke(place + 8, &len.to_le_bytes());
        self.poke(place + 12, &flags.to_le_bytes());
        self.poke(place + 14, &next.to_le_bytes());
    }

    /// The address of `len` bytes, as long as there are that many.
    fn room(&mut self, len: u64) -> u64 {
        if self.next_buffer + len > MEMORY {
            self.next_buffer = BUFFERS;
        }
        let address = self.next_buffer;
        self.next_buffer += len.next_multiple_of(16).min(MEMORY - BUFFERS);
        address
    }

    /// Lets the device work until it rests. The driver does nothing meanwhile, so it must.
    fn run(&mut self) {
        for _ in 0..10_000 {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device does not come to rest");
    }
}

/// An offset such that `len` bytes stay in the page.
fn inside(offset: u16, len: usize) -> u64 {
    u64::from(offset % 0x1000).min(0x1000 - len as u64)
}
