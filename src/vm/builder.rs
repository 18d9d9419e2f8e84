//! Configuration in, VM out: the steps of its making, in boot order.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_boot::acpi::{self, AcpiConfig};
use cofferdam_boot::{
    BootError, CommandLine, CommandLineError, EntryState, Initrd, InitrdError, Kernel, KernelError,
    LoadOptions, PageMode, mptable,
};
use cofferdam_devices::GuestMemory;
use cofferdam_devices::legacy::{Power, PvPanic};
use event_manager::{EventManager, SubscriberOps};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::devices::{DeviceError, Devices};
use super::kvm::{self, KvmError};
use super::lifecycle::{EXIT_HOST, EXIT_MONITOR, EXIT_USAGE};
use super::memory::{self, MemoryError, Sharing};
use super::prefault::prefault;
use super::root;
use super::signals::Signals;
use super::vcpu::{self, Buses, Vcpu};
use super::{StopWatch, Stopper, Subscriber, Vm};
use crate::arch::layout;
use crate::arch::template::{CpuTemplate, TemplateError};
use crate::config::{BootConfig, Hardware, Pages, Protocol, VmConfig};

/// What the guest's kernel is told where the user has nothing else to say.
const DEFAULT_CMDLINE: &str = "quiet";

/// Why a VM cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No kernel was named.
    #[error("no kernel is named; give --kernel FILE")]
    NoKernel,
    /// The kernel or the initrd cannot be opened.
    #[error("cannot open the {what} {path}")]
    Open {
        /// Kernel or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel is none that we can boot, or does not fit.
    #[error("cannot boot {path}")]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// The initrd does not fit.
    #[error("cannot load the initrd {path}")]
    Initrd {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: InitrdError,
    },
    /// The kernel command line is bad.
    #[error("cmdline")]
    CommandLine(#[from] CommandLineError),
    /// The CPU template is bad.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A device is bad, or its back end.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The host has no such memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM cannot do it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The boot data does not fit the guest's memory.
    #[error("cannot write the boot data")]
    Boot(#[from] BootError),
    /// The ACPI tables do not fit.
    #[error("cannot write the ACPI tables")]
    Acpi(#[from] acpi::AcpiError),
    /// The MP table does not fit.
    #[error("cannot write the MP table")]
    MpTable(#[from] mptable::MpTableError),
    /// The host is out of something.
    #[error("the host gives no {0}")]
    Host(&'static str, #[source] io::Error),
    /// The main loop cannot be set up.
    #[error("the main loop cannot be set up: {0}")]
    Events(event_manager::Error),
}

impl BuildError {
    /// The process's exit code: whether what was asked for is wrong, or the host cannot.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoKernel
            | Self::Open { .. }
            | Self::Kernel { .. }
            | Self::Initrd { .. }
            | Self::CommandLine(_)
            | Self::Template(_) => EXIT_USAGE,
            Self::Kvm(KvmError::Template(_)) => EXIT_USAGE,
            Self::Device(error) if error.is_usage() => EXIT_USAGE,
            Self::Device(_) | Self::Memory(_) | Self::Kvm(_) | Self::Host(..) => EXIT_HOST,
            Self::Boot(_) | Self::Acpi(_) | Self::MpTable(_) | Self::Events(_) => EXIT_MONITOR,
        }
    }

    /// What the user can do about it, where the message does not say.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Open { .. } => Some("Check the path, and that you may read the file."),
            Self::Kernel { source, .. } => Some(match source {
                KernelError::TooLarge { .. } => "Give the guest more with --memory.",
                KernelError::NoPvh { .. } => "Leave out --protocol pvh.",
                _ => "Name an x86-64 vmlinux or bzImage with --kernel.",
            }),
            Self::Initrd { source, .. } => Some(match source {
                InitrdError::TooLarge { .. } => "Give the guest more with --memory.",
                InitrdError::Image(_) => "Name another file with --initrd, or leave it out.",
            }),
            Self::CommandLine(_) => Some("Shorten --cmdline."),
            Self::Template(TemplateError::Leaf { .. })
            | Self::Kvm(KvmError::Template(TemplateError::Leaf { .. })) => {
                Some("Take the leaf out of the file that --cpu-template names.")
            }
            Self::Device(error) => error.help(),
            _ => None,
        }
    }
}

/// Builds the VM that `config`, which has been validated, asks for. If it fails, nothing is left
/// behind.
pub fn build(config: &VmConfig) -> Result<Vm, BuildError> {
    // What only reads comes first: most mistakes are found before anything is made.
    let image = Images::open(&config.boot)?;
    let template = match &config.cpus.template {
        Some(path) => CpuTemplate::from_file(path)?,
        None => CpuTemplate::default(),
    };
    let kvm = kvm::open()?;
    let sharing = match config.shares_memory() {
        true => Sharing::Memfd,
        false => Sharing::Private,
    };
    let mem = memory::allocate(&config.memory, sharing)?;
    if config.memory.prefault {
        prefault(&mem).map_err(|e| BuildError::Host("memory to prefault", e))?;
    }
    if sharing == Sharing::Memfd {
        memory::collapse(&mem);
    }
    let (kernel, initrd) = image.load(&mem, &config.boot)?;
    let vm = Arc::new(kvm::create_vm(&kvm, &mem, &config.cpus)?);

    let stopper = Stopper::new().map_err(|e| BuildError::Host("event descriptor", e))?;
    let power_button = event_fd()?;
    vm.register_irqfd(&power_button, layout::EVENT_GSI)
        .map_err(DeviceError::Irq)?;
    let devices = Devices::build(config, vm.clone(), &mem, &stopper)?;

    let cmdline = command_line(config, &kernel, &devices)?;
    let rsdp = describe_hardware(config, &mem, &devices)?;
    let entry = cofferdam_boot::configure(&mem, &kernel, initrd.as_ref(), &cmdline, rsdp)?;
    let vcpus = vcpus(config, &kvm, &vm, &mem, &template, &entry)?;

    // From here on signals wait for the main loop.
    let (signals, received) =
        Signals::new().map_err(|e| BuildError::Host("signal descriptor", e))?;
    let mut events = EventManager::<Subscriber>::new().map_err(BuildError::Events)?;
    events.add_subscriber(Arc::new(Mutex::new(StopWatch(stopper.clone()))));
    events.add_subscriber(Arc::new(Mutex::new(signals)));
    let Devices {
        pio,
        mmio,
        subscribers,
        workers,
        exit_status,
        console,
        disks,
        pmems,
        ..
    } = devices;
    for subscriber in subscribers {
        events.add_subscriber(subscriber);
    }
    Ok(Vm {
        _fd: vm,
        vcpus,
        workers,
        buses: Arc::new(Buses { pio, mmio }),
        events,
        stopper,
        signals: received,
        power_button,
        grace: Duration::from_secs(config.grace.0.into()),
        exit_status,
        disks,
        pmems,
        console,
    })
}

/// A fresh event descriptor.
fn event_fd() -> Result<EventFd, BuildError> {
    EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(|e| BuildError::Host("event descriptor", e))
}

/// The files that guest memory is filled from.
struct Images {
    kernel: (PathBuf, File),
    initrd: Option<(PathBuf, File)>,
}

impl Images {
    fn open(config: &BootConfig) -> Result<Self, BuildError> {
        let open = |what, path: &Path| match File::open(path) {
            Ok(file) => Ok((path.to_owned(), file)),
            Err(source) => Err(BuildError::Open {
                what,
                path: path.to_owned(),
                source,
            }),
        };
        let kernel = config.kernel.as_deref().ok_or(BuildError::NoKernel)?;
        Ok(Self {
            kernel: open("kernel", kernel)?,
            initrd: config
                .initrd
                .as_deref()
                .map(|path| open("initrd", path))
                .transpose()?,
        })
    }

    fn load(
        &self,
        mem: &GuestMemory,
        config: &BootConfig,
    ) -> Result<(Kernel, Option<Initrd>), BuildError> {
        let pages = match config.pages {
            Pages::Copy => PageMode::Copy,
            Pages::Map => PageMode::Map,
        };
        let protocol = config.protocol.map(|protocol| match protocol {
            Protocol::Linux => cofferdam_boot::Protocol::Linux64,
            Protocol::Pvh => cofferdam_boot::Protocol::Pvh,
        });
        let (path, file) = &self.kernel;
        let kernel =
            Kernel::load(mem, file, LoadOptions { pages, protocol }).map_err(|source| {
                BuildError::Kernel {
                    path: path.clone(),
                    source,
                }
            })?;
        let initrd = self.initrd.as_ref().map(|(path, file)| {
            Initrd::load(mem, file, &kernel, pages).map_err(|source| BuildError::Initrd {
                path: path.clone(),
                source,
            })
        });
        Ok((kernel, initrd.transpose()?))
    }
}

/// Our part of the kernel command line, then the user's, which so has the last word.
fn command_line(
    config: &VmConfig,
    kernel: &Kernel,
    devices: &Devices,
) -> Result<CommandLine, BuildError> {
    let mut ours = vec!["panic=-1".to_owned()];
    if devices.serial.is_some() {
        // One port, so that no kernel looks for four.
        ours.push("console=ttyS0 8250.nr_uarts=1".into());
    }
    if let Some(root) = &config.rootfs {
        ours.push(root::arguments(root));
    }
    if config.boot.hardware == Hardware::Cmdline {
        ours.push("acpi=off".into());
        for device in &devices.virtio {
            let (base, len, gsi) = (device.base, device.len, device.gsi);
            ours.push(format!("virtio_mmio.device={len:#x}@{base:#x}:{gsi}"));
        }
    }
    let user = config.boot.cmdline.as_deref().unwrap_or(DEFAULT_CMDLINE);
    let text = format!("{} {user}", ours.join(" "));
    Ok(CommandLine::new(text.trim_end(), kernel.command_line_max)?)
}

/// Tells the guest what there is. Returns where the ACPI tables are, if there are any.
fn describe_hardware(
    config: &VmConfig,
    mem: &GuestMemory,
    devices: &Devices,
) -> Result<Option<GuestAddress>, BuildError> {
    // With ACPI too: whoever reads the ACPI tables ignores it, but looks for it first, and long.
    mptable::write(mem, config.cpus.count, layout::LOCAL_APIC, layout::IO_APIC)?;
    if config.boot.hardware == Hardware::Cmdline {
        return Ok(None);
    }
    let description = AcpiConfig {
        cpus: config.cpus.count,
        lapic_address: layout::LOCAL_APIC,
        ioapic_address: layout::IO_APIC,
        virtio: devices.virtio.clone(),
        serial: devices.serial,
        ged_gsi: layout::EVENT_GSI,
        vmgenid: None,
        sleep_control_port: Power::SLEEP_CONTROL_PORT,
        sleep_status_port: Power::SLEEP_STATUS_PORT,
        reset_port: Power::RESET_PORT,
        reset_value: Power::RESET_VALUE,
        pvpanic_port: u16::try_from(PvPanic::BASE).ok(),
    };
    Ok(Some(acpi::write(mem, &description)?))
}

fn vcpus(
    config: &VmConfig,
    kvm: &kvm_ioctls::Kvm,
    vm: &kvm_ioctls::VmFd,
    mem: &GuestMemory,
    template: &CpuTemplate,
    entry: &EntryState,
) -> Result<Vec<Vcpu>, BuildError> {
    vcpu::register_kick().map_err(|e| BuildError::Host("signal", e))?;
    let fds = kvm::create_vcpus(kvm, vm, &config.cpus, template, entry)?;
    Ok((0..)
        .zip(fds)
        .map(|(id, fd)| Vcpu::new(id, fd, mem.clone()))
        .collect())
}
