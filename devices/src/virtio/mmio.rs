//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2): a page of registers through
//! which the driver finds the device, agrees on features, sets up its queues and starts it.
//!
//! What the driver reads is memory ([`Registers`]), kept true here; what it writes is trapped.
//! Nothing here trusts the driver: a write that comes in the wrong state, of the wrong size or for
//! a queue that is not there changes nothing.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupt::Line;
use super::queue_config::QueueConfig;
use super::registers::{CONFIG, PAGE_SIZE, Registers};
use super::subscriber::Subscriber;
use super::{Activation, Interrupt, Lane, VirtQueue, VirtioDevice};
use crate::GuestMemory;
use crate::bus::BusDevice;
use crate::log_limit::log_limited;

/// Bytes of guest address space that a device takes.
pub const MMIO_SIZE: u64 = PAGE_SIZE as u64;
/// Offset of the register that the driver kicks a queue with: where the monitor puts an ioeventfd
/// for each of [`MmioTransport::kicks`], 4 bytes wide, matching the queue's number.
pub const QUEUE_NOTIFY: u64 = 0x50;
/// Offset of the register that the driver acknowledges interrupts with. To acknowledge used buffers
/// alone, [`USED_BUFFER`](super::interrupt::USED_BUFFER), changes nothing, so the monitor may put an
/// ioeventfd there that nobody reads.
pub const INTERRUPT_ACK: u64 = 0x64;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// "COFR", little-endian.
const VENDOR: u32 = 0x5246_4f43;
/// Offset of our own register: the I/O port for kicks, 0 for none.
const KICK_PORT: u32 = 0xf0;
/// Bytes of the longest configuration space there is.
const CONFIG_SIZE: usize = 256;
/// SHMLenLow to SHMBaseHigh; -1 says that there is no shared memory region.
const SHM: std::ops::RangeInclusive<u32> = 0xb0..=0xbc;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// Why a device cannot be put behind a transport.
#[derive(Debug, thiserror::Error)]
pub enum MmioError {
    /// No event file descriptor to be had.
    #[error("cannot make an eventfd for the queues of {name}")]
    EventFd {
        /// The device's name.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A device's registers in guest memory space.
pub struct MmioTransport {
    name: String,
    device: Arc<Mutex<dyn VirtioDevice>>,
    /// What the device offers, VERSION_1 included.
    offered: u64,
    mem: GuestMemory,
    registers: Registers,
    interrupt: Interrupt,
    kicks: Vec<Arc<EventFd>>,
    /// Whether each queue's kicks are served at once.
    are_synchronous: Vec<bool>,
    status: u32,
    /// What the driver accepted, by selector; no feature has a number over 63.
    accepted: [u32; 2],
    /// The driver accepted a feature over 63, which nobody offered.
    is_unknown_accepted: bool,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    queues: Vec<QueueConfig>,
}

impl MmioTransport {
    /// Puts `device` behind a page of registers. `name` is for messages; the device interrupts by
    /// ringing `line`.
    pub fn new(
        name: impl Into<String>,
        device: Arc<Mutex<dyn VirtioDevice>>,
        mem: GuestMemory,
        line: impl Line + 'static,
    ) -> Result<Self, MmioError> {
        let name = name.into();
        let registers = Registers::new();
        let (offered, sizes, are_synchronous) = {
            let device = lock(&device);
            registers.store(reg::VIRTIO_MMIO_DEVICE_ID, device.device_type());
            registers.store_config(&config_of(&*device));
            let offered = device.features() | 1 << VIRTIO_F_VERSION_1;
            let sizes = device.queue_sizes().to_vec();
            let synchronous = (0..sizes.len()).map(|queue| device.is_synchronous(queue));
            (offered, sizes, synchronous.collect())
        };
        registers.store(reg::VIRTIO_MMIO_MAGIC_VALUE, MAGIC);
        registers.store(reg::VIRTIO_MMIO_VERSION, 2);
        registers.store(reg::VIRTIO_MMIO_VENDOR_ID, VENDOR);
        for register in SHM.step_by(4) {
            registers.store(register, u32::MAX);
        }
        let kicks = sizes.iter().map(|_| {
            // Non-blocking: a vCPU must never wait for the event loop to read the counter.
            EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new)
        });
        let kicks = match kicks.collect() {
            Ok(kicks) => kicks,
            Err(source) => return Err(MmioError::EventFd { name, source }),
        };
        let transport = Self {
            name,
            device,
            offered,
            mem,
            interrupt: Interrupt::new(line, registers.clone()),
            registers,
            kicks,
            are_synchronous,
            status: 0,
            accepted: [0; 2],
            is_unknown_accepted: false,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues: sizes.into_iter().map(QueueConfig::new).collect(),
        };
        transport.publish();
        Ok(transport)
    }

    /// The event file descriptors that the driver's kicks arrive at, each with its queue. The other
    /// queues' kicks must trap.
    pub fn kicks(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        let kicks = (0..).zip(&self.kicks).zip(&self.are_synchronous);
        let kicks = kicks.filter(|(_, is_synchronous)| !**is_synchronous);
        kicks.map(|((queue, kick), _)| (queue, kick.as_ref()))
    }

    /// Offers the driver the I/O port `port` to kick all queues with, 4 bytes wide, as it would write
    /// to [`QUEUE_NOTIFY`]: for a monitor that has an ioeventfd there for each queue. Refused (false)
    /// if a queue's kicks must trap.
    ///
    /// It is an extension: register 0xf0, which virtio 1.2 leaves free, holds the port, and a driver
    /// that knows it does not acknowledge used buffers either.
    pub fn offer_kick_port(&self, port: u16) -> bool {
        let is_offered = !self.are_synchronous.contains(&true);
        if is_offered {
            self.registers.store(KICK_PORT, port.into());
        }
        is_offered
    }

    /// The device's interrupt line.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The page that the driver reads. It may be mapped read-only where the registers are.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The device as a member of an event loop, with the queues that none of its lanes serves.
    pub fn subscriber(&self) -> Subscriber<dyn VirtioDevice> {
        let lanes = lock(&self.device).lanes();
        let is_served = |queue: &usize| lanes.iter().any(|(queues, _)| queues.contains(queue));
        let kicks = self.kicks.iter().cloned().enumerate();
        let kicks = kicks.filter(|(queue, _)| !is_served(queue));
        Subscriber::new(self.name.clone(), self.device.clone(), kicks.collect())
    }

    /// The device's lanes, each to run on a worker of its own.
    pub fn lanes(&self) -> Vec<Subscriber<dyn Lane>> {
        let lanes = lock(&self.device).lanes();
        let subscriber = |(queues, lane): (Range<usize>, _)| {
            let kicks = self.kicks.iter().cloned().enumerate();
            let kicks = kicks.filter(|(queue, _)| queues.contains(queue));
            Subscriber::new(self.name.clone(), lane, kicks.collect())
        };
        lanes.into_iter().map(subscriber).collect()
    }

    fn features(&self) -> u64 {
        u64::from(self.accepted[0]) | u64::from(self.accepted[1]) << 32
    }

    fn has_event_idx(&self) -> bool {
        self.features() & 1 << VIRTIO_RING_F_EVENT_IDX != 0
    }

    fn selected(&self) -> Option<&QueueConfig> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    /// The selected queue if the driver may set it up now: between FEATURES_OK and DRIVER_OK.
    fn configurable(&mut self) -> Option<&mut QueueConfig> {
        let states = FEATURES_OK | DRIVER_OK | FAILED;
        let queue = self.queues.get_mut(usize::try_from(self.queue_sel).ok()?);
        queue.filter(|_| self.status & states == FEATURES_OK)
    }

    /// Brings the registers that depend on what the driver wrote up to date.
    fn publish(&self) {
        let registers = &self.registers;
        let features = match self.device_features_sel {
            0 => low(self.offered),
            1 => low(self.offered >> 32),
            _ => 0,
        };
        registers.store(reg::VIRTIO_MMIO_DEVICE_FEATURES, features);
        let (size, is_ready) = self.selected().map_or((0, 0), |queue| {
            (queue.max_size.into(), queue.is_ready.into())
        });
        registers.store(reg::VIRTIO_MMIO_QUEUE_NUM_MAX, size);
        registers.store(reg::VIRTIO_MMIO_QUEUE_READY, is_ready);
        // Bits are only added, but for a reset; the device may add one of its own at any time.
        registers.set_bits(reg::VIRTIO_MMIO_STATUS, self.status);
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            reg::VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value),
            register => self.write_queue(register, value),
        }
    }

    /// One register of the selected queue; not while it is ready.
    fn write_queue(&mut self, register: u32, value: u32) {
        let Some(queue) = self.configurable().filter(|queue| !queue.is_ready) else {
            return;
        };
        match register {
            reg::VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.driver, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.driver, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.device, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.device, value),
            _ => {}
        }
    }

    /// The driver says that the selected queue is set up; QueueReady stays 0 if it is not. Taken away
    /// from an active device, all queues are: the device does nothing more until it is reset.
    fn write_queue_ready(&mut self, value: u32) {
        let is_ready = self.selected().is_some_and(|queue| queue.is_ready);
        if value & 1 == 0 && is_ready && self.status & DRIVER_OK != 0 {
            return self.take_queues_away();
        }
        let event_idx = self.has_event_idx();
        let Some(mut queue) = self.configurable().copied() else {
            return;
        };
        queue.is_ready = value & 1 != 0 && queue.ring(&self.mem, event_idx).is_some();
        if value & 1 != 0 && !queue.is_ready {
            log_limited!(
                warn,
                "{}: the guest's driver set up queue {} where no queue can be: {:?}",
                self.name,
                self.queue_sel,
                queue
            );
        }
        if let Some(slot) = self.configurable() {
            *slot = queue;
        }
    }

    /// Linux's driver for pmem lets go of its device in this way, without a reset.
    fn take_queues_away(&mut self) {
        // Waits for the batch in hand, as a reset does.
        lock(&self.device).reset();
        for queue in &mut self.queues {
            queue.is_ready = false;
        }
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            return;
        }
        match self.driver_features_sel {
            0 => self.accepted[0] = value,
            1 => self.accepted[1] = value,
            _ => self.is_unknown_accepted |= value != 0,
        }
    }

    /// A kick that traps: of a queue that is served at once, or on a kernel without ioeventfd, and
    /// then the same eventfd is written from here.
    fn kick(&self, queue: u32) {
        let Some(queue) = usize::try_from(queue).ok() else {
            return;
        };
        let kick = self.kicks.get(queue).zip(self.are_synchronous.get(queue));
        match kick.filter(|_| self.status & DRIVER_OK != 0) {
            Some((_, true)) => lock(&self.device).kick_now(queue),
            // Only a full counter makes this fail, and then a kick is pending.
            Some((kick, false)) => drop(kick.write(1)),
            None => {}
        }
    }

    /// The status machine (virtio 1.2, section 3.1): bits are set in order, none is cleared but
    /// all of them by a reset, and after FAILED there is nothing but a reset.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        if self.status & FAILED != 0 || self.status & !value != 0 {
            return;
        }
        let mut before = 0;
        for bit in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
            if value & bit != 0 && self.status & bit == 0 {
                let is_next = self.status & before == before;
                if !is_next || (bit == FEATURES_OK && !self.is_agreed()) {
                    break;
                }
                self.status |= bit;
                if bit == DRIVER_OK {
                    self.activate();
                }
            }
            before |= bit;
        }
        self.status |= value & FAILED;
    }

    /// Whether the driver accepted nothing that was not offered, and what it must accept.
    fn is_agreed(&self) -> bool {
        let features = self.features();
        features & !self.offered == 0
            && features & 1 << VIRTIO_F_VERSION_1 != 0
            && !self.is_unknown_accepted
    }

    fn activate(&mut self) {
        let (features, event_idx) = (self.features(), self.has_event_idx());
        let queues = self.queues.iter().zip(&self.kicks).enumerate();
        let queues = queues.map_while(|(i, (queue, kick))| {
            let ring = queue.ring(&self.mem, event_idx);
            Some(VirtQueue::new(
                format!("{} queue {i}", self.name),
                ring.filter(|_| queue.is_ready)?,
                self.mem.clone(),
                kick.clone(),
                self.interrupt.clone(),
            ))
        });
        let activation = Activation {
            queues: queues.collect(),
            mem: self.mem.clone(),
            features,
            interrupt: self.interrupt.clone(),
        };
        self.interrupt.start();
        let result = lock(&self.device).activate(activation);
        match result {
            Ok(()) => (0..).zip(&self.kicks).for_each(|(i, _)| self.kick(i)),
            Err(error) => {
                log_limited!(error, "{}: cannot start: {}", self.name, Causes(&error));
                self.interrupt.needs_reset();
            }
        }
    }

    fn reset(&mut self) {
        // Waits for the batch in hand, at most; afterwards the device touches guest memory no more.
        {
            let mut device = lock(&self.device);
            device.reset();
            self.registers.store_config(&config_of(&*device));
        }
        self.interrupt.clear();
        self.status = 0;
        self.accepted = [0; 2];
        self.is_unknown_accepted = false;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        for queue in &mut self.queues {
            *queue = QueueConfig::new(queue.max_size);
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.registers.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG as u64) {
            let mut device = lock(&self.device);
            device.write_config(offset, data);
            return self.registers.store_config(&config_of(&*device));
        }
        if let (Some(register), Ok(data)) = (register(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(data));
            self.publish();
        }
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("name", &self.name)
            .field("status", &self.status)
            .field("features", &self.features())
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

/// An error and what caused it, in one line.
struct Causes<'a>(&'a dyn std::error::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// The register at `offset`; registers are aligned to their four bytes.
fn register(offset: u64) -> Option<u32> {
    u32::try_from(offset).ok().filter(|o| o.is_multiple_of(4))
}

/// A device whose lock a panic poisoned is still a device; what it does next is its own affair.
pub(super) fn lock(device: &Mutex<dyn VirtioDevice>) -> MutexGuard<'_, dyn VirtioDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device's configuration space, with zeros behind it.
fn config_of(device: &dyn VirtioDevice) -> [u8; CONFIG_SIZE] {
    let mut config = [0; CONFIG_SIZE];
    device.read_config(0, &mut config);
    config
}

/// The low half.
fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn set_low(value: &mut u64, half: u32) {
    *value = *value >> 32 << 32 | u64::from(half);
}

fn set_high(value: &mut u64, half: u32) {
    *value = u64::from(low(*value)) | u64::from(half) << 32;
}

#[cfg(test)]
mod tests;
