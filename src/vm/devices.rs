//! The devices of a VM: made from the configuration, put on their buses, given their interrupt
//! lines.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use cofferdam_boot::acpi::{Serial as SerialAddress, VirtioMmio};
use cofferdam_devices::GuestMemory;
use cofferdam_devices::bus::{Bus, BusDevice, BusError};
use cofferdam_devices::console::{Console, ConsoleError};
use cofferdam_devices::legacy::{
    BootTimer, ExitStatus, I8042, Power, PowerEvent, PowerHandler, PvPanic, Serial,
};
use cofferdam_devices::virtio::VirtioDevice;
use cofferdam_devices::virtio::block::{self, Block, Disk, DiskError, DiskOptions};
use cofferdam_devices::virtio::mmio::{MMIO_SIZE, MmioError, MmioTransport, QUEUE_NOTIFY};
use cofferdam_devices::virtio::net::{MacAddress, Net, Tap, TapError};
use cofferdam_devices::virtio::rng::Rng;
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Subscriber;
use super::lifecycle::{StopReason, Stopper};
use crate::arch::layout;
use crate::config::{Cache, ConfigError, ConsoleConfig, DiskConfig, NetConfig, VmConfig};
use crate::telemetry;

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

    /// The small devices at fixed ports.
    fn add_legacy(&mut self, stopper: &Stopper) -> Result<(), DeviceError> {
        let power = power_handler(stopper.clone());
        self.add_ports(I8042::BASE, I8042::LEN, "i8042", I8042::new(power.clone()))?;
        self.add_ports(Power::BASE, Power::LEN, "power", Power::new(power.clone()))?;
        self.add_ports(PvPanic::BASE, PvPanic::LEN, "pvpanic", PvPanic::new(power))?;
        let timer = BootTimer::new(telemetry::start(), |time| {
            log::info!(
                "the guest's init runs {} us after the monitor's start",
                time.as_micros()
            );
        });
        self.exit_status = timer.exit_status();
        self.add_ports(BootTimer::BASE, BootTimer::LEN, "boot timer", timer)
    }

    /// The serial port, with what it leads to.
    fn add_console(
        &mut self,
        config: &ConsoleConfig,
        stopper: &Stopper,
    ) -> Result<(), DeviceError> {
        let irq = event_fd()?;
        let line = irq.try_clone().map_err(DeviceError::EventFd)?;
        let quit = stopper.clone();
        let console = match config {
            ConsoleConfig::Off => return Ok(()),
            ConsoleConfig::Stdio => Console::stdio(irq, move || quit.stop(StopReason::Quit)),
            ConsoleConfig::File(path) => Console::file(irq, path, false),
            ConsoleConfig::Socket(path) => Console::socket(irq, path),
            ConsoleConfig::Pty => Console::pty(irq),
        }?;
        if let Some(path) = console.pty_path() {
            // Whoever asked for a pty needs its name, whatever the log's level.
            eprintln!("cofferdam: the console is at {}", path.display());
        }
        self.vm
            .register_irqfd(&line, layout::SERIAL_GSI)
            .map_err(DeviceError::Irq)?;
        self.pio
            .insert(Serial::COM1_BASE, Serial::LEN, "serial", console.serial())?;
        let port = u16::try_from(Serial::COM1_BASE).unwrap_or_default();
        self.serial = Some(SerialAddress {
            port,
            gsi: layout::SERIAL_GSI,
        });
        let console = Arc::new(Mutex::new(console));
        self.subscribers.push(console.clone());
        self.console = Some(console);
        Ok(())
    }

    fn add_disk(&mut self, config: &DiskConfig) -> Result<(), DeviceError> {
        let disk = Disk::open(&DiskOptions {
            path: config.path.clone(),
            read_only: config.ro,
            cache: match config.cache {
                Cache::Writeback => block::Cache::Writeback,
                Cache::Unsafe => block::Cache::Unsafe,
            },
        })?;
        let block = Block::new(disk, config.id.as_deref().unwrap_or_default());
        let block = Arc::new(Mutex::new(block));
        self.disks.push(block.clone());
        self.add_virtio("block", block)
    }

    fn add_net(&mut self, config: &NetConfig) -> Result<(), DeviceError> {
        let tap = match (&config.tap, config.fd) {
            (Some(name), _) => match Tap::attach(name) {
                Err(TapError::Missing(_)) => Tap::create(name, config.mtu)?,
                tap => tap?,
            },
            (None, Some(fd)) => Tap::from_fd(inherited(fd)?).map_err(|error| match error {
                // The user knows the descriptor that was copied, not the copy.
                TapError::Inherited(_) => TapError::Inherited(fd),
                error => error,
            })?,
            (None, None) => return Err(ConfigError::Tap.into()),
        };
        let mac = match config.mac_address()? {
            Some(mac) => mac,
            None => MacAddress::random().map_err(DeviceError::Random)?,
        };
        log::info!("net: tap {}, the guest's MAC address is {mac}", tap.name());
        self.add_virtio("net", Arc::new(Mutex::new(Net::new(tap, mac, config.mtu))))
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

/// A copy of a descriptor that whoever started us has left open for us. A copy, since nothing
/// proves that the number is not one of our own files.
fn inherited(number: i32) -> Result<OwnedFd, DeviceError> {
    if number < 0 {
        return Err(DeviceError::Descriptor(number));
    }
    // SAFETY: the borrow ends with the statement, in which nobody closes a descriptor; that it is
    // not open at all is an error of the call.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(|_| DeviceError::Descriptor(number))
}

/// What the guest asks of the power registers, done.
fn power_handler(stopper: Stopper) -> PowerHandler {
    Arc::new(move |event| match event {
        PowerEvent::PowerOff => stopper.stop(StopReason::PowerOff),
        PowerEvent::Reset => stopper.stop(StopReason::Reset),
        PowerEvent::Panic => stopper.panicked(),
        // A crash kernel goes on, and ends the VM in its own time.
        PowerEvent::CrashLoaded => {}
    })
}
