//! The driver's side, for tests: it writes real rings into guest memory and finds, sets up, kicks
//! and resets a device through the transport's registers, as a guest does. And a hostile one.

mod hostile;

use std::fs::File;
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::VirtioDevice;
use super::mmio::MmioTransport;
use crate::GuestMemory;
use crate::bus::BusDevice;

pub(crate) use hostile::hostile_suite;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Guest memory: two regions that touch, so that a buffer can lie in both, and nothing above.
pub(crate) const REGION: usize = 16 << 20;
pub(crate) const MEM_END: u64 = REGION as u64 + (1 << 20);
/// Rings lie below, at 64 KiB a queue; buffers from here to the end of the first region.
const BUFFERS: u64 = 1 << 20;

/// Guest memory as the mock driver lays it out: of a file, so that devices can share it.
pub(crate) fn memory() -> GuestMemory {
    let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC).unwrap();
    let file = Arc::new(File::from(file));
    file.set_len(MEM_END).unwrap();
    let range = |start: usize, len| {
        let offset = FileOffset::from_arc(file.clone(), start as u64);
        (GuestAddress(start as u64), len, Some(offset))
    };
    GuestMemory::from_ranges_with_files([range(0, REGION), range(REGION, 1 << 20)]).unwrap()
}

/// Where a queue's parts lie, and how far the driver is with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MockRing {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
    /// What the driver last wrote as available index.
    pub(crate) avail: u16,
    /// The used entries that the driver has taken.
    pub(crate) used: u16,
    /// The descriptor to use next.
    pub(crate) free: u16,
}

/// A request on its way: its name in the ring, and where the answer goes.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) head: u16,
    writable: Vec<(u64, u32)>,
}

/// What came back for a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Bytes written, as the used ring says.
    pub(crate) len: u32,
    /// All the writable buffers, one after the other.
    pub(crate) data: Vec<u8>,
}

/// A driver with its device, transport, memory and event loop.
pub(crate) struct MockDriver<D: VirtioDevice + 'static> {
    pub(crate) mem: GuestMemory,
    pub(crate) device: Arc<Mutex<D>>,
    pub(crate) transport: MmioTransport,
    pub(crate) rings: Vec<MockRing>,
    /// Whether [`Self::submit`] puts the descriptors of a request in a table of their own.
    pub(crate) is_indirect: bool,
    events: EventManager<Box<dyn MutEventSubscriber>>,
    irqfd: EventFd,
    next_buffer: u64,
}

impl<D: VirtioDevice + 'static> MockDriver<D> {
    /// A machine with `device` in it, which nobody has touched yet.
    pub(crate) fn new(device: D) -> Self {
        let mem = memory();
        let device = Arc::new(Mutex::new(device));
        let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = irqfd.try_clone().unwrap();
        let transport = MmioTransport::new("mock", device.clone(), mem.clone(), line).unwrap();
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(Box::new(transport.subscriber()) as Box<dyn MutEventSubscriber>);
        for lane in transport.lanes() {
            events.add_subscriber(Box::new(lane));
        }
        Self {
            mem,
            device,
            transport,
            rings: Vec::new(),
            is_indirect: false,
            events,
            irqfd,
            next_buffer: BUFFERS,
        }
    }

    /// A machine whose driver accepted all of `features` that is offered, and started the device.
    pub(crate) fn started(device: D, features: u64) -> Self {
        let mut driver = Self::new(device);
        driver.start(features);
        driver
    }

    pub(crate) fn read(&mut self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    /// Bytes of the configuration space.
    pub(crate) fn config(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xff; len];
        self.transport.read(0x100 + offset, &mut data);
        data
    }

    /// Writes to the configuration space.
    pub(crate) fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.transport.write(0x100 + offset, data);
    }

    pub(crate) fn status(&mut self) -> u32 {
        self.read(reg::VIRTIO_MMIO_STATUS)
    }

    pub(crate) fn add_status(&mut self, bits: u32) {
        let status = self.status();
        self.write(reg::VIRTIO_MMIO_STATUS, status | bits);
    }

    pub(crate) fn needs_reset(&mut self) -> bool {
        self.status() & 0x40 != 0
    }

    /// What the device offers.
    pub(crate) fn offered(&mut self) -> u64 {
        let mut features = 0;
        for word in [1, 0] {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, word);
            features = features << 32 | u64::from(self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES));
        }
        features
    }

    /// Up to FEATURES_OK, with exactly `features` accepted; returns whether the device agreed.
    pub(crate) fn accept(&mut self, features: u64) -> bool {
        self.add_status(1);
        self.add_status(2);
        for word in [0, 1] {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, word);
            let half = features >> (32 * word) & 0xffff_ffff;
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, half.try_into().unwrap());
        }
        self.add_status(8);
        self.status() & 8 != 0
    }

    /// From nothing to DRIVER_OK, with all of `features` that is offered, and VERSION_1.
    pub(crate) fn start(&mut self, features: u64) {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        let features = self.offered() & (features | 1 << VIRTIO_F_VERSION_1);
        assert!(self.accept(features));
        self.set_up_queues();
        self.add_status(4);
        assert_eq!(self.status() & !0x40, 0xf);
        self.run();
    }

    /// Sets up each queue in its full size, on rings of zeros.
    pub(crate) fn set_up_queues(&mut self) {
        self.rings.clear();
        for queue in 0u32.. {
            self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
            let size = self.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX);
            if size == 0 {
                break;
            }
            let base = 0x10000 * u64::from(queue + 1);
            let ring = MockRing {
                size: size.try_into().unwrap(),
                descriptors: base,
                driver: base + 0x8000,
                device: base + 0xc000,
                avail: 0,
                used: 0,
                free: 0,
            };
            self.mem
                .write_slice(&[0; 0x10000], GuestAddress(base))
                .unwrap();
            self.set_up_queue(&ring);
            assert_eq!(self.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
            self.rings.push(ring);
        }
    }

    /// Writes the selected queue's registers, QueueReady last.
    pub(crate) fn set_up_queue(&mut self, ring: &MockRing) {
        let half = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap();
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, ring.size.into());
        for (register, address) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, ring.descriptors),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.driver),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, ring.device),
        ] {
            self.write(register, half(address));
            self.write(register + 4, half(address >> 32));
        }
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Resets the device.
    pub(crate) fn reset(&mut self) {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.status(), 0);
    }

    /// Kicks a queue by its register, as a kernel without ioeventfd does.
    pub(crate) fn kick(&mut self, queue: usize) {
        self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue.try_into().unwrap());
    }

    /// Runs the event loop until nothing is left to do. A device that never rests is a hang.
    pub(crate) fn run(&mut self) {
        for _ in 0..10_000 {
            if self.events.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device does not come to rest");
    }

    /// Interrupts since the last call.
    pub(crate) fn interrupts(&self) -> u64 {
        self.irqfd.read().unwrap_or(0)
    }

    /// The address of `len` bytes that nobody else has.
    pub(crate) fn alloc(&mut self, len: usize) -> u64 {
        let len = len as u64;
        if self.next_buffer + len > REGION as u64 {
            self.next_buffer = BUFFERS;
        }
        let address = self.next_buffer;
        self.next_buffer += len.next_multiple_of(64);
        address
    }

    pub(crate) fn write_descriptor(&mut self, queue: usize, index: u16, descriptor: Descriptor) {
        let table = self.rings[queue].descriptors;
        self.write_table(table, index, descriptor);
    }

    pub(crate) fn write_table(&mut self, table: u64, index: u16, descriptor: Descriptor) {
        let address = GuestAddress(table + 16 * u64::from(index));
        self.mem.write_obj(descriptor, address).unwrap();
    }

    /// Makes the chain at `head` available.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let ring = self.rings[queue];
        let slot = ring.driver + 4 + 2 * u64::from(ring.avail % ring.size);
        self.mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_avail(queue, ring.avail.wrapping_add(1));
    }

    /// Writes the available index.
    pub(crate) fn set_avail(&mut self, queue: usize, index: u16) {
        let ring = &mut self.rings[queue];
        ring.avail = index;
        let address = GuestAddress(ring.driver + 2);
        self.mem.write_obj(index, address).unwrap();
    }

    /// Puts a request into the ring: buffers with `readable` in them, and writable ones of these
    /// sizes.
    pub(crate) fn submit(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Request {
        let mut buffers = Vec::new();
        for data in readable {
            let address = self.alloc(data.len());
            self.mem.write_slice(data, GuestAddress(address)).unwrap();
            buffers.push((address, u32::try_from(data.len()).unwrap(), 0));
        }
        for &len in writable {
            buffers.push((self.alloc(len as usize), len, WRITE));
        }
        let request = Request {
            head: self.rings[queue].free,
            writable: buffers
                .iter()
                .skip(readable.len())
                .map(|&(a, l, _)| (a, l))
                .collect(),
        };
        self.write_chain(queue, &buffers);
        self.offer(queue, request.head);
        request
    }

    /// Writes a chain of `(address, length, flags)` from the next free descriptor on.
    fn write_chain(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) {
        let ring = self.rings[queue];
        let count = u16::try_from(buffers.len()).unwrap();
        let (table, first, size) = if self.is_indirect {
            (self.alloc(16 * buffers.len()), 0, count)
        } else {
            (ring.descriptors, ring.free, ring.size)
        };
        for (i, &(address, len, flags)) in (0..).zip(buffers) {
            let index = (first + i) % size;
            let (flags, next) = if i + 1 < count {
                (flags | NEXT, (index + 1) % size)
            } else {
                (flags, 0)
            };
            self.write_table(table, index, Descriptor::new(address, len, flags, next));
        }
        let taken = if self.is_indirect {
            let whole = Descriptor::new(table, 16 * u32::from(count), INDIRECT, 0);
            self.write_descriptor(queue, ring.free, whole);
            1
        } else {
            count
        };
        self.rings[queue].free = (ring.free + taken) % ring.size;
    }

    /// The next used entry: head and length.
    pub(crate) fn used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = &mut self.rings[queue];
        let index: u16 = self.mem.read_obj(GuestAddress(ring.device + 2)).unwrap();
        if index == ring.used {
            return None;
        }
        let slot = ring.device + 4 + 8 * u64::from(ring.used % ring.size);
        ring.used = ring.used.wrapping_add(1);
        Some((
            self.mem.read_obj(GuestAddress(slot)).unwrap(),
            self.mem.read_obj(GuestAddress(slot + 4)).unwrap(),
        ))
    }

    /// What the device wrote for `request`.
    pub(crate) fn reply(&self, request: &Request, len: u32) -> Reply {
        let mut data = Vec::new();
        for &(address, len) in &request.writable {
            let start = data.len();
            data.resize(start + len as usize, 0);
            self.mem
                .read_slice(&mut data[start..], GuestAddress(address))
                .unwrap();
        }
        Reply { len, data }
    }

    /// The next used entry, waiting for a device that has something to wait for itself.
    pub(crate) fn wait_used(&mut self, queue: usize) -> (u32, u32) {
        for _ in 0..1000 {
            self.run();
            if let Some(used) = self.used(queue) {
                return used;
            }
            self.events.run_with_timeout(10).unwrap();
        }
        panic!("no answer");
    }

    /// Sends a request, lets the device work, and takes the answer.
    pub(crate) fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Reply {
        let request = self.submit(queue, readable, writable);
        self.kick(queue);
        let (head, len) = self.wait_used(queue);
        assert_eq!(head, u32::from(request.head));
        self.reply(&request, len)
    }
}

/// The feature bit of the event index.
pub(crate) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
