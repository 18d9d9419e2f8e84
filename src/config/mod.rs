//! What was asked for: plain data, read from the command line or from JSON, validated once. No file
//! descriptors, no live objects.

mod options;
mod size;

use std::path::{Path, PathBuf};

use cofferdam_boot::{CommandLine, CommandLineError};
use cofferdam_devices::virtio::net::{MacAddress, MacError};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

pub use options::{OptionsError, parse_options};
pub use size::{MemorySize, SizeError};

/// Most vCPUs of one VM; the guest kernels we build have room for as many.
pub const MAX_CPUS: u8 = 32;
/// The least memory a guest of any use starts with.
pub const MIN_MEMORY: MemorySize = MemorySize::from_mib(32);
/// Interrupt lines that virtio devices can have; see `arch::layout`.
pub const MAX_DEVICES: usize = crate::arch::layout::VIRTIO_GSI_COUNT;

/// A whole VM. Its JSON form is the configuration file: the same fields, all optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// What to boot.
    pub boot: BootConfig,
    /// vCPUs.
    pub cpus: CpuConfig,
    /// Guest memory.
    pub memory: MemoryConfig,
    /// Where the serial console leads.
    pub console: ConsoleConfig,
    /// The disk that the kernel mounts as its root; it is the first, `/dev/vda`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<DiskConfig>,
    /// Further disks, in the guest's order.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the guest's order.
    pub nets: Vec<NetConfig>,
    /// Gives the guest entropy from the host (virtio-rng).
    #[serde(skip_serializing_if = "is_default")]
    pub rng: Rng,
    /// Seconds that the guest has to power off after the first SIGTERM or SIGINT.
    #[serde(skip_serializing_if = "is_default")]
    pub grace: Grace,
    /// The log.
    pub log: LogConfig,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether the guest has a virtio-rng device. It has, by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rng(pub bool);

impl Default for Rng {
    fn default() -> Self {
        Self(true)
    }
}

/// Seconds of grace at the end. Ten, by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grace(pub u32);

impl Default for Grace {
    fn default() -> Self {
        Self(10)
    }
}

/// What to boot, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootConfig {
    /// An ELF `vmlinux` or a `bzImage`. The default guest's, where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The user's part of the kernel command line; ours comes before it, so this has the last word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// How the kernel is entered; chosen by the kernel's format where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// How the kernel and the initrd come into guest memory.
    pub pages: Pages,
    /// Whether hardware is described by ACPI, or by the command line and an MP table.
    pub hardware: Hardware,
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Linux's 64-bit entry (vmlinux) or hand-over (bzImage).
    Linux,
    /// The PVH entry of a vmlinux.
    Pvh,
}

/// How file pages come into guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Pages {
    /// Read into huge pages: fewest page faults.
    #[default]
    Copy,
    /// Mapped privately from the file: VMs share what none of them writes.
    Map,
}

/// How the guest learns of its hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Hardware {
    /// ACPI tables.
    #[default]
    Acpi,
    /// For kernels without ACPI: an MP table, and virtio devices on the command line.
    Cmdline,
}

/// vCPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuConfig {
    /// How many: 1 to 32.
    #[serde(deserialize_with = "cpu_count")]
    pub count: u8,
    /// A CPU template (JSON) that masks CPUID and MSR bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<PathBuf>,
    /// Gives the guest the old programmable interval timer, for kernels that cannot do without.
    #[serde(skip_serializing_if = "is_default")]
    pub pit: bool,
}

/// A number of vCPUs; what does not fit a byte is refused like all that is out of range.
fn cpu_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let count = u64::deserialize(deserializer)?;
    u8::try_from(count).map_err(|_| D::Error::custom(ConfigError::Cpus(count)))
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self {
            count: 1,
            template: None,
            pit: false,
        }
    }
}

/// Guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// How much.
    pub size: MemorySize,
    /// Explicit huge pages of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<HugePages>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: MemorySize::from_mib(256),
            hugepages: None,
        }
    }
}

/// Sizes of explicit huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum HugePages {
    /// Pages of 2 MiB.
    #[serde(rename = "2M")]
    #[value(name = "2M")]
    Mib2,
}

/// Where the serial console leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// The monitor's standard input and output.
    #[default]
    Stdio,
    /// Nowhere: the guest has no serial port.
    Off,
    /// Output goes to a file, which is made or emptied.
    File(PathBuf),
    /// A Unix socket that the monitor listens on.
    Socket(PathBuf),
    /// A pseudoterminal; its name is in the log.
    Pty,
}

impl std::str::FromStr for ConsoleConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None => match text {
                "stdio" => Ok(Self::Stdio),
                "off" => Ok(Self::Off),
                "pty" => Ok(Self::Pty),
                _ => Err("expected stdio, off, pty, file=PATH or socket=PATH".into()),
            },
            Some((_, "")) => Err("the path is empty".into()),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("socket", path)) => Ok(Self::Socket(path.into())),
            Some(_) => Err("expected stdio, off, pty, file=PATH or socket=PATH".into()),
        }
    }
}

impl std::fmt::Display for ConsoleConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Off => f.write_str("off"),
            Self::Pty => f.write_str("pty"),
            Self::File(path) => write!(f, "file={}", path.display()),
            Self::Socket(path) => write!(f, "socket={}", path.display()),
        }
    }
}

impl Serialize for ConsoleConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConsoleConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A virtio-blk disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// The guest may not write. Several VMs may share such a disk.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ro: bool,
    /// The serial number that the guest sees, at most 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What a flush of the guest does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: Cache,
}

/// What a flush of the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// It reaches the disk.
    #[default]
    Writeback,
    /// Nothing: fast, and a crash of the host loses data. For disks that are thrown away.
    Unsafe,
}

/// A virtio-net interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetConfig {
    /// The tap's name: attached to if it exists, else made (and gone with the monitor). A `%d` in
    /// it is filled in by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// An open tap that the monitor inherits, by descriptor number, instead of a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// The guest's MAC address; a random, locally administered one where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The MTU that the guest is told.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "mtu")]
    pub mtu: Option<u16>,
}

/// An MTU; what does not fit 16 bits is refused like all that is out of range.
fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let Some(mtu) = Option::<u64>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let mtu = u16::try_from(mtu).map_err(|_| D::Error::custom(ConfigError::Mtu(mtu)))?;
    Ok(Some(mtu))
}

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// The file that it goes to; standard error where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// Levels of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What stops the VM.
    Error,
    /// What someone should look at.
    #[default]
    Warn,
    /// Milestones.
    Info,
    /// Details.
    Debug,
    /// Everything.
    Trace,
}

/// What is wrong with a configuration. Each names the field.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what a configuration looks like.
    #[error("the configuration {path} is not valid")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A path that is there and empty.
    #[error("{0}: the path is empty")]
    NoPath(&'static str),
    /// The kernel command line has something that no kernel reads.
    #[error("cmdline")]
    CommandLine(#[from] CommandLineError),
    /// Too few or too many vCPUs.
    #[error("cpus: a VM has 1 to {MAX_CPUS} vCPUs, not {0}")]
    Cpus(u64),
    /// Too little memory.
    #[error("memory: {0} is too little; give at least {MIN_MEMORY}")]
    Memory(MemorySize),
    /// Memory that huge pages do not divide.
    #[error("memory: {0} is not a multiple of 2M, as --hugepages 2M needs")]
    HugePages(MemorySize),
    /// A disk's serial number that virtio has no room for.
    #[error("disk {path}: the id {id:?} has {} bytes; virtio-blk has room for 20", id.len())]
    DiskId {
        /// The disk.
        path: PathBuf,
        /// Its id.
        id: String,
    },
    /// Neither a tap nor a descriptor, or both.
    #[error("net: give each interface either tap=NAME or fd=N")]
    Tap,
    /// Not a MAC address.
    #[error("net")]
    Mac(#[from] MacError),
    /// An MTU that no network has.
    #[error("net: the MTU {0} is outside 68 to 65535")]
    Mtu(u64),
    /// More devices than interrupt lines.
    #[error("{0} virtio devices are more than the {MAX_DEVICES} that a VM has room for")]
    Devices(usize),
}

impl VmConfig {
    /// Reads a configuration file. What it leaves out has its default.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| ConfigError::Json {
            path: path.to_owned(),
            source,
        })
    }

    /// Checks all that can be said without touching the host.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.boot.validate()?;
        if !(1..=MAX_CPUS).contains(&self.cpus.count) {
            return Err(ConfigError::Cpus(self.cpus.count.into()));
        }
        if self.memory.size < MIN_MEMORY {
            return Err(ConfigError::Memory(self.memory.size));
        }
        if self.memory.hugepages.is_some() && !self.memory.size.bytes().is_multiple_of(2 << 20) {
            return Err(ConfigError::HugePages(self.memory.size));
        }
        for disk in self.all_disks() {
            not_empty("disk", Some(&disk.path))?;
            if let Some(id) = disk.id.as_ref().filter(|id| id.len() > 20) {
                return Err(ConfigError::DiskId {
                    path: disk.path.clone(),
                    id: id.clone(),
                });
            }
        }
        self.nets.iter().try_for_each(NetConfig::validate)?;
        let devices = self.all_disks().count() + self.nets.len() + usize::from(self.rng.0);
        if devices > MAX_DEVICES {
            return Err(ConfigError::Devices(devices));
        }
        Ok(())
    }

    /// The root disk, then the others: `/dev/vda` and so on.
    pub fn all_disks(&self) -> impl Iterator<Item = &DiskConfig> {
        self.rootfs.iter().chain(&self.disks)
    }
}

impl BootConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        not_empty("kernel", self.kernel.as_deref())?;
        not_empty("initrd", self.initrd.as_deref())?;
        if let Some(text) = &self.cmdline {
            // How much of it there may be depends on the kernel.
            CommandLine::new(text, usize::MAX)?;
        }
        Ok(())
    }
}

fn not_empty(field: &'static str, path: Option<&Path>) -> Result<(), ConfigError> {
    match path {
        Some(path) if path.as_os_str().is_empty() => Err(ConfigError::NoPath(field)),
        _ => Ok(()),
    }
}

impl NetConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.tap.is_some() == self.fd.is_some() {
            return Err(ConfigError::Tap);
        }
        self.mac_address()?;
        match self.mtu {
            Some(mtu) if mtu < 68 => Err(ConfigError::Mtu(mtu.into())),
            _ => Ok(()),
        }
    }

    /// The MAC address, if one is given. It must be that of one host, not of a group.
    pub fn mac_address(&self) -> Result<Option<MacAddress>, ConfigError> {
        Ok(self.mac.as_deref().map(str::parse).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, `--print-config` gives a file that `--config` refuses or reads otherwise.
    #[test]
    fn a_configuration_survives_its_json_form() {
        let config = VmConfig {
            boot: BootConfig {
                kernel: Some("k".into()),
                initrd: Some("i".into()),
                cmdline: Some("quiet -- sh".into()),
                protocol: Some(Protocol::Pvh),
                pages: Pages::Map,
                hardware: Hardware::Cmdline,
            },
            cpus: CpuConfig {
                count: 4,
                template: Some("t".into()),
                pit: true,
            },
            memory: MemoryConfig {
                size: MemorySize::from_mib(512),
                hugepages: Some(HugePages::Mib2),
            },
            console: ConsoleConfig::Socket("/s".into()),
            rootfs: Some(DiskConfig {
                path: "r".into(),
                ro: true,
                id: Some("x".into()),
                cache: Cache::Unsafe,
            }),
            disks: vec![],
            nets: vec![NetConfig {
                fd: Some(3),
                mtu: Some(9000),
                ..Default::default()
            }],
            rng: Rng(false),
            grace: Grace(3),
            log: LogConfig {
                level: LogLevel::Debug,
                file: Some("l".into()),
            },
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<VmConfig>(&text).unwrap(), config);
        assert_eq!(
            serde_json::from_str::<VmConfig>("{}").unwrap(),
            VmConfig::default()
        );
    }

    /// If it fails, a misspelt field is silently ignored and the VM is not the one asked for.
    #[test]
    fn an_unknown_field_is_named() {
        let error = serde_json::from_str::<VmConfig>(r#"{"memory": {"sise": "1G"}}"#).unwrap_err();
        assert!(error.to_string().contains("sise"), "{error}");
    }

    /// If it fails, a VM that cannot be is built half-way.
    #[test]
    fn what_cannot_be_is_refused() {
        let check = |change: fn(&mut VmConfig)| {
            let mut config = VmConfig::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(check(|c| c.cpus.count = 0).contains("1 to 32"));
        assert!(check(|c| c.cpus.count = 33).contains("33"));
        assert!(check(|c| c.memory.size = MemorySize::from_mib(31)).contains("31M"));
        assert!(check(|c| c.nets.push(NetConfig::default())).contains("tap=NAME"));
        check(|c| {
            let (tap, mac) = (Some("t".into()), Some("01:00:00:00:00:00".into()));
            c.nets.push(NetConfig {
                tap,
                mac,
                ..Default::default()
            });
        });
        assert!(
            check(|c| {
                let disk = DiskConfig {
                    path: "d".into(),
                    ro: true,
                    id: None,
                    cache: Cache::Writeback,
                };
                c.disks = vec![disk; MAX_DEVICES];
            })
            .contains("virtio devices")
        );
        VmConfig::default().validate().unwrap();
    }
}
