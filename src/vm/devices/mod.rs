//! The devices of a VM: made from the configuration, put on their buses, given their interrupt
//! lines.

mod balloon;
mod console;
mod disk;
mod fs;
mod irq_line;
mod legacy;
mod net;
mod pmem;
mod rng;
mod vsock;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use cofferdam_boot::acpi::{Serial as SerialAddress, VirtioMmio};
use cofferdam_devices::GuestMemory;
use cofferdam_devices::bus::{Bus, BusDevice, BusError};
use cofferdam_devices::console::{Console, ConsoleError};
use cofferdam_devices::legacy::ExitStatus;
use cofferdam_devices::virtio::VirtioDevice;
use cofferdam_devices::virtio::block::{Block, BlockError, DiskError};
use cofferdam_devices::virtio::fs::FsError;
use cofferdam_devices::virtio::interrupt::USED_BUFFER;
use cofferdam_devices::virtio::mmio::{
    INTERRUPT_ACK, MMIO_SIZE, MmioError, MmioTransport, QUEUE_NOTIFY,
};
use cofferdam_devices::virtio::net::TapError;
use cofferdam_devices::virtio::pmem::{Pmem, PmemError};
use cofferdam_devices::virtio::vsock::VsockError;
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, VmFd};
use vm_memory::{Address, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::irq_line::IrqLine;
use super::Subscriber;
use super::fsd::DaemonError;
use super::lifecycle::Stopper;
use super::passt::PasstError;
use super::worker::Worker;
use crate::arch::layout;
use crate::companion::CompanionError;
use crate::config::{ConfigError, Hardware, VmConfig};

/// Why a VM cannot have its devices.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Two devices at one address; the configuration cannot do that.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// No event descriptor.
    #[error("the host gives no event descriptor")]
    EventFd(#[source] io::Error),
    /// A transport cannot be made.
    #[error(transparent)]
    Transport(#[from] MmioError),
    /// KVM does not take an interrupt line.
    #[error("KVM cannot take an interrupt line")]
    Irq(#[source] kvm_ioctls::Error),
    /// The console's host side cannot be set up.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A disk cannot be served.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A file cannot be a pmem device.
    #[error(transparent)]
    Pmem(#[from] PmemError),
    /// The host does not map a pmem file.
    #[error("the host cannot map the pmem file {path}")]
    PmemMap {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// KVM does not map a pmem file.
    #[error("KVM cannot map the pmem file {path} into the guest")]
    PmemSlot {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A network interface cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A virtio-fs device cannot be had.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A directory cannot be shared.
    #[error("fs {tag}: cannot share the directory {path}")]
    FsDirectory {
        /// The device's tag.
        tag: String,
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody serves a file system at a socket.
    #[error("fs {tag}: cannot connect to the file-system daemon at {path}")]
    FsSocket {
        /// The device's tag.
        tag: String,
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program that would serve the directories is not there.
    #[error("fs {tag}: the directory cannot be served")]
    FsProgram {
        /// The device's tag.
        tag: String,
        /// Why.
        #[source]
        source: CompanionError,
    },
    /// Our own process does not come up.
    #[error("fs {tag}")]
    FsDaemon {
        /// The device's tag.
        tag: String,
        /// Why.
        #[source]
        source: DaemonError,
    },
    /// The sockets cannot be had.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// passt cannot be used.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// A device is not described right.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The inherited descriptor of a tap is not open.
    #[error("net: there is no open file descriptor {0} to inherit")]
    Descriptor(i32),
    /// There is no random MAC address.
    #[error("the host gives no random bytes")]
    Random(#[source] io::Error),
    /// KVM does not take a device's registers.
    #[error("KVM cannot map the registers of a device")]
    Registers(#[source] kvm_ioctls::Error),
    /// No timer.
    #[error("the host gives no timer")]
    Timer(#[source] io::Error),
    /// KVM does not take a queue's kicks.
    #[error("KVM cannot take the kicks of a queue")]
    Kick(#[source] kvm_ioctls::Error),
}

impl DeviceError {
    /// Whether what was asked for is wrong, rather than the host unable.
    pub fn is_usage(&self) -> bool {
        use DiskError::{Empty, Kind, Missing};
        match self {
            Self::Console(ConsoleError::File { .. }) => true,
            Self::Console(ConsoleError::Socket { source, .. }) => {
                source.kind() != io::ErrorKind::AddrInUse
            }
            Self::Disk(error) => matches!(error, Missing { .. } | Kind { .. } | Empty { .. }),
            Self::Pmem(PmemError::Open { source, .. }) => {
                source.kind() != io::ErrorKind::PermissionDenied
            }
            Self::Pmem(PmemError::InUse { .. } | PmemError::Lock { .. }) => false,
            Self::Pmem(_) => true,
            Self::Tap(error) => matches!(
                error,
                TapError::Name(_) | TapError::Kind(_) | TapError::Inherited(_)
            ),
            Self::FsDirectory { .. } | Self::FsSocket { .. } => true,
            Self::Vsock(VsockError::Listen { source, .. }) => {
                source.kind() != io::ErrorKind::AddrInUse
            }
            Self::Vsock(VsockError::Cid(_) | VsockError::PathTooLong { .. }) => true,
            Self::Config(_) | Self::Descriptor(_) => true,
            _ => false,
        }
    }

    /// What the user can do about it, where the message does not say.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Disk(DiskError::Missing { .. } | DiskError::Empty { .. }) => {
                Some("'truncate -s 1G FILE' makes an empty disk.")
            }
            Self::Disk(DiskError::InUse { .. }) => {
                Some("End it first; only with ro on all sides can a disk be shared.")
            }
            Self::Block(BlockError::IoUring { .. }) => Some(
                "Leave out engine=io_uring; kernel.io_uring_disabled or a seccomp filter may forbid it.",
            ),
            Self::Pmem(error) => match error {
                PmemError::Size { .. } => Some("'truncate -s %2M FILE' rounds it up."),
                PmemError::InUse { .. } => {
                    Some("End it first; only with ro on all sides can a file be shared.")
                }
                PmemError::Open {
                    read_only: false, ..
                } => Some("A file that you may only read can be attached with ro."),
                _ => None,
            },
            Self::FsDirectory { .. } => Some("Name a directory that you may read with path=."),
            Self::FsSocket { .. } => {
                Some("Start the daemon first, and name the socket that it listens on.")
            }
            Self::Console(ConsoleError::File { .. }) => {
                Some("Name a file in a directory that you may write to.")
            }
            _ => None,
        }
    }
}

/// All devices of a VM that is being built.
pub struct Devices<'a> {
    vm: Arc<VmFd>,
    mem: &'a GuestMemory,
    /// The next memory slot of the VM; guest memory has the first ones.
    next_slot: u32,
    /// Whether registers can be read as memory.
    has_read_only_slots: bool,
    /// Swallows acknowledgements that change nothing. KVM holds on to it, and nobody reads it.
    ignored: EventFd,
    /// I/O ports.
    pub pio: Bus,
    /// Memory-mapped registers.
    pub mmio: Bus,
    /// What the main loop must dispatch to.
    pub subscribers: Vec<Subscriber>,
    /// The threads that devices want for themselves.
    pub workers: Vec<Worker>,
    /// Where the virtio devices are, for the guest's hardware description.
    pub virtio: Vec<VirtioMmio>,
    /// Where the serial port is, if there is one.
    pub serial: Option<SerialAddress>,
    /// The status that the guest leaves.
    pub exit_status: ExitStatus,
    /// The console, if there is one.
    pub console: Option<Arc<Mutex<Console>>>,
    /// The disks, to be flushed at the end.
    pub disks: Vec<Arc<Mutex<Block>>>,
    /// The pmem devices, to be flushed at the end.
    pub pmems: Vec<Arc<Mutex<Pmem>>>,
    has_acpi: bool,
    /// Where the next pmem device's memory begins in the guest.
    next_pmem: u64,
}

impl<'a> Devices<'a> {
    /// Makes all devices that `config` asks for, in the guest's order.
    pub fn build(
        config: &VmConfig,
        vm: Arc<VmFd>,
        mem: &'a GuestMemory,
        stopper: &Stopper,
    ) -> Result<Self, DeviceError> {
        let mut devices = Self {
            has_acpi: config.boot.hardware == Hardware::Acpi,
            has_read_only_slots: vm.check_extension(Cap::ReadonlyMem),
            vm,
            mem,
            next_slot: u32::try_from(mem.num_regions()).unwrap_or(u32::MAX),
            ignored: event_fd()?,
            pio: Bus::new(),
            mmio: Bus::new(),
            subscribers: Vec::new(),
            workers: Vec::new(),
            virtio: Vec::new(),
            serial: None,
            exit_status: ExitStatus::default(),
            console: None,
            disks: Vec::new(),
            pmems: Vec::new(),
            next_pmem: layout::pmem_start(mem.last_addr().raw_value()),
        };
        devices.add_legacy(stopper)?;
        devices.add_console(&config.console, stopper)?;
        for disk in config.all_disks() {
            devices.add_disk(disk)?;
        }
        for pmem in config.all_pmems() {
            devices.add_pmem(pmem)?;
        }
        for net in &config.nets {
            devices.add_net(net)?;
        }
        for (tag, shared) in config.fs_by_tag() {
            devices.add_fs(tag, &shared)?;
        }
        if let Some(vsock) = &config.vsock {
            devices.add_vsock(vsock)?;
        }
        if let Some(rng) = config.rng.options() {
            devices.add_rng(rng)?;
        }
        if let Some(balloon) = &config.balloon {
            devices.add_balloon(balloon)?;
        }
        Ok(devices)
    }

    fn add_ports(
        &mut self,
        base: u64,
        len: u64,
        name: &'static str,
        device: impl BusDevice + 'static,
    ) -> Result<(), DeviceError> {
        Ok(self
            .pio
            .insert(base, len, name, Arc::new(Mutex::new(device)))?)
    }

    /// Puts a virtio device behind the next free page of registers and interrupt line.
    fn add_virtio(
        &mut self,
        name: &'static str,
        device: Arc<Mutex<dyn VirtioDevice>>,
    ) -> Result<(), DeviceError> {
        // The configuration is bounded by the interrupt lines there are.
        let at = u32::try_from(self.virtio.len()).unwrap_or_default();
        let base = layout::VIRTIO_MMIO + at * layout::VIRTIO_MMIO_SIZE;
        let gsi = layout::virtio_gsi(at, self.has_acpi);
        let line = IrqLine::new(self.vm.clone(), gsi);
        let transport = MmioTransport::new(name, device, self.mem.clone(), line)?;
        let port = layout::KICK_PORT + u16::try_from(at).unwrap_or_default() * 4;
        let mut kick_at = vec![IoEventAddress::Mmio(u64::from(base) + QUEUE_NOTIFY)];
        if transport.offer_kick_port(port) {
            kick_at.push(IoEventAddress::Pio(port.into()));
        }
        for (queue, kick) in transport.kicks() {
            for address in &kick_at {
                self.vm
                    .register_ioevent(kick, address, queue)
                    .map_err(DeviceError::Kick)?;
            }
        }
        self.map_registers(&transport, base.into())?;
        self.subscribers
            .push(Arc::new(Mutex::new(transport.subscriber())));
        for (i, lane) in transport.lanes().into_iter().enumerate() {
            let worker = Worker::new(format!("{name}{at}-{i}"), Arc::new(Mutex::new(lane)));
            self.workers.push(worker);
        }
        self.mmio.insert(
            base.into(),
            MMIO_SIZE,
            name,
            Arc::new(Mutex::new(transport)),
        )?;
        self.virtio.push(VirtioMmio {
            base,
            len: layout::VIRTIO_MMIO_SIZE,
            gsi,
        });
        Ok(())
    }

    /// Makes reading the registers and acknowledging used buffers a matter of KVM's alone, where
    /// it can; else each is an exit to user space.
    fn map_registers(&mut self, transport: &MmioTransport, base: u64) -> Result<(), DeviceError> {
        if !self.has_read_only_slots {
            return Ok(());
        }
        let slot = kvm_userspace_memory_region {
            slot: self.next_slot,
            guest_phys_addr: base,
            memory_size: MMIO_SIZE,
            userspace_addr: transport.registers().address().addr() as u64,
            flags: KVM_MEM_READONLY,
        };
        self.next_slot += 1;
        // SAFETY: the page lives as long as the transport, and that as long as the bus it is on,
        // which every vCPU's thread holds; the guest can only read it.
        unsafe { self.vm.set_user_memory_region(slot) }.map_err(DeviceError::Registers)?;
        let address = IoEventAddress::Mmio(base + INTERRUPT_ACK);
        self.vm
            .register_ioevent(&self.ignored, &address, USED_BUFFER)
            .map_err(DeviceError::Kick)
    }
}

fn event_fd() -> Result<EventFd, DeviceError> {
    EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(DeviceError::EventFd)
}
