//! The devices of a VM: made from the configuration, put on their buses, given their interrupt
//! lines.

mod console;
mod disk;
mod legacy;
mod net;

use std::io;
use std::sync::{Arc, Mutex};

use cofferdam_boot::acpi::{Serial as SerialAddress, VirtioMmio};
use cofferdam_devices::GuestMemory;
use cofferdam_devices::bus::{Bus, BusDevice, BusError};
use cofferdam_devices::console::{Console, ConsoleError};
use cofferdam_devices::legacy::ExitStatus;
use cofferdam_devices::virtio::VirtioDevice;
use cofferdam_devices::virtio::block::{Block, DiskError};
use cofferdam_devices::virtio::mmio::{MMIO_SIZE, MmioError, MmioTransport, QUEUE_NOTIFY};
use cofferdam_devices::virtio::net::TapError;
use cofferdam_devices::virtio::rng::Rng;
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Subscriber;
use super::lifecycle::Stopper;
use crate::arch::layout;
use crate::config::{ConfigError, VmConfig};

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
    /// A network interface cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A network interface is not described right.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The inherited descriptor of a tap is not open.
    #[error("net: there is no open file descriptor {0} to inherit")]
    Descriptor(i32),
    /// There is no random MAC address.
    #[error("the host gives no random bytes")]
    Random(#[source] io::Error),
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
            Self::Tap(error) => matches!(
                error,
                TapError::Name(_) | TapError::Kind(_) | TapError::Inherited(_)
            ),
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
            Self::Console(ConsoleError::File { .. }) => {
                Some("Name a file in a directory that you may write to.")
            }
            _ => None,
        }
    }
}

/// All devices of a VM that is being built.
pub struct Devices<'a> {
    vm: &'a VmFd,
    mem: &'a GuestMemory,
    /// I/O ports.
    pub pio: Bus,
    /// Memory-mapped registers.
    pub mmio: Bus,
    /// What the main loop must dispatch to.
    pub subscribers: Vec<Subscriber>,
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
}

impl<'a> Devices<'a> {
    /// Makes all devices that `config` asks for, in the guest's order.
    pub fn build(
        config: &VmConfig,
        vm: &'a VmFd,
        mem: &'a GuestMemory,
        stopper: &Stopper,
    ) -> Result<Self, DeviceError> {
        let mut devices = Self {
            vm,
            mem,
            pio: Bus::new(),
            mmio: Bus::new(),
            subscribers: Vec::new(),
            virtio: Vec::new(),
            serial: None,
            exit_status: ExitStatus::default(),
            console: None,
            disks: Vec::new(),
        };
        devices.add_legacy(stopper)?;
        devices.add_console(&config.console, stopper)?;
        for disk in config.all_disks() {
            devices.add_disk(disk)?;
        }
        for net in &config.nets {
            devices.add_net(net)?;
        }
        if config.rng.0 {
            devices.add_virtio("rng", Arc::new(Mutex::new(Rng::new())))?;
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
        let irq = event_fd()?;
        let line = irq.try_clone().map_err(DeviceError::EventFd)?;
        let transport = MmioTransport::new(name, device, self.mem.clone(), irq)?;
        // The configuration is bounded by the interrupt lines there are.
        let at = u32::try_from(self.virtio.len()).unwrap_or_default();
        let base = layout::VIRTIO_MMIO + at * layout::VIRTIO_MMIO_SIZE;
        let gsi = layout::VIRTIO_GSI + at;
        self.vm
            .register_irqfd(&line, gsi)
            .map_err(DeviceError::Irq)?;
        for (queue, kick) in (0u32..).zip(transport.kicks()) {
            let address = IoEventAddress::Mmio(u64::from(base) + QUEUE_NOTIFY);
            self.vm
                .register_ioevent(kick, &address, queue)
                .map_err(DeviceError::Kick)?;
        }
        self.subscribers
            .push(Arc::new(Mutex::new(transport.subscriber())));
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
}

fn event_fd() -> Result<EventFd, DeviceError> {
    EventFd::new(EFD_NONBLOCK).map_err(DeviceError::EventFd)
}
