//! What was asked for: plain data, read from the command line or from JSON, validated once. No file
//! descriptors, no live objects.

mod balloon;
mod boot;
mod console;
mod cpu;
mod disk;
mod fs;
mod log;
mod memory;
mod net;
mod options;
mod pmem;
mod rate_limit;
mod rng;
mod root;
mod size;
mod switch;
mod vsock;

use std::path::{Path, PathBuf};

use cofferdam_boot::CommandLineError;
use cofferdam_devices::virtio::net::MacError;
use cofferdam_devices::virtio::vsock::VsockError;
use serde::{Deserialize, Serialize};

pub use balloon::BalloonConfig;
pub use boot::{BootConfig, Hardware, Pages, Protocol};
pub use console::ConsoleConfig;
pub use cpu::CpuConfig;
pub use disk::{Cache, DiskConfig, DiskRateLimit, Engine};
pub use fs::FsConfig;
pub use log::{LogConfig, LogLevel};
pub use memory::{HugePages, MemoryConfig};
pub use net::{MAX_NET_QUEUES, NetConfig, NetRateLimit, PASST_MTU, Publish, Transport};
pub use options::{OptionsError, parse_options};
pub use pmem::PmemConfig;
pub use rate_limit::RateLimitConfig;
pub use rng::RngConfig;
pub use root::RootConfig;
pub use size::{ByteSize, MemorySize, SizeError};
pub use switch::Switch;
pub use vsock::VsockConfig;

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
    /// What the kernel mounts as its root; it is the first disk, `/dev/vda`, or pmem device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<RootConfig>,
    /// Further disks, in the guest's order.
    pub disks: Vec<DiskConfig>,
    /// Further pmem devices, in the guest's order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pmems: Vec<PmemConfig>,
    /// Network interfaces, in the guest's order.
    pub nets: Vec<NetConfig>,
    /// Directories of the host that the guest can mount (virtio-fs).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fs: Vec<FsConfig>,
    /// Sockets between guest and host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Gives the guest entropy from the host (virtio-rng).
    #[serde(skip_serializing_if = "is_default")]
    pub rng: Switch<RngConfig>,
    /// Takes memory back that the guest does not need (virtio-balloon).
    #[serde(
        deserialize_with = "switch::switch",
        skip_serializing_if = "Option::is_none"
    )]
    pub balloon: Option<BalloonConfig>,
    /// Seconds that the guest has to power off after the first SIGTERM or SIGINT.
    #[serde(skip_serializing_if = "is_default")]
    pub grace: Grace,
    /// The log.
    pub log: LogConfig,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
    /// No host's side, or two of them.
    #[error("net: give each interface either tap=NAME, fd=N or passt")]
    Net,
    /// Not a port to publish.
    #[error(
        "publish: expected [ADDRESS:]HOST:GUEST[/tcp|/udp], as 8080:80 or 127.0.0.1:5353:53/udp, \
         not {0:?}"
    )]
    Publish(String),
    /// Only passt publishes ports.
    #[error("net: publish is for passt; a guest on a tap has an address of its own")]
    PublishTap,
    /// Too few or too many queues.
    #[error("net: queues: an interface has 1 to {MAX_NET_QUEUES}, not {0}")]
    NetQueues(u16),
    /// Only a tap that we open ourselves has several queues.
    #[error("net: several queues are for tap=NAME")]
    QueuesTap,
    /// An MTU that passt does not take.
    #[error("net: passt takes an MTU of 1280 to {PASST_MTU}, not {0}")]
    PasstMtu(u16),
    /// Not a MAC address.
    #[error("net")]
    Mac(#[from] MacError),
    /// An MTU that no network has.
    #[error("net: the MTU {0} is outside 68 to 65535")]
    Mtu(u64),
    /// A number of queues that no disk has.
    #[error(
        "disk {path}: {count} queues; a disk has 1 to {max}",
        max = disk::MAX_DISK_QUEUES
    )]
    DiskQueues {
        /// The disk.
        path: PathBuf,
        /// What was given.
        count: u16,
    },
    /// A balloon that leaves the guest nothing.
    #[error("balloon: {size} of {memory} leaves the guest no memory; give less")]
    Balloon {
        /// The balloon's.
        size: MemorySize,
        /// The guest's.
        memory: MemorySize,
    },
    /// An address or a path that a socket device cannot have.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A rate or a burst of zero.
    #[error(
        "{device}: a rate limit lets nothing through; make {unit}_per_second and {unit}_burst 1 at least"
    )]
    NoRate {
        /// What the limit is of.
        device: &'static str,
        /// Bytes or ops.
        unit: &'static str,
    },
    /// A burst, and no rate.
    #[error(
        "{device}: a rate limit has {unit}_burst without {unit}_per_second; give both, or the rate alone"
    )]
    OnlyBurst {
        /// What the limit is of.
        device: &'static str,
        /// Bytes or ops.
        unit: &'static str,
    },
    /// A shared directory that cannot be.
    #[error("fs {tag}: {why}")]
    Fs {
        /// Its tag.
        tag: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Memory that is shared and mapped from files.
    #[error("fs: shared directories need --pages copy; mapped pages are the guest's alone")]
    FsPages,
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
        self.cpus.validate()?;
        self.memory.validate()?;
        self.all_disks().try_for_each(DiskConfig::validate)?;
        self.all_pmems().try_for_each(PmemConfig::validate)?;
        self.nets.iter().try_for_each(NetConfig::validate)?;
        fs::validate(&self.fs)?;
        if self.shares_memory() && self.boot.pages == Pages::Map {
            return Err(ConfigError::FsPages);
        }
        let (rng, balloon) = (self.rng.options(), &self.balloon);
        rng.map_or(Ok(()), RngConfig::validate)?;
        balloon.map_or(Ok(()), |balloon| balloon.validate(&self.memory))?;
        self.vsock.iter().try_for_each(VsockConfig::validate)?;
        let others = [rng.is_some(), balloon.is_some(), self.vsock.is_some()];
        let others = others.into_iter().map(usize::from).sum::<usize>() + self.fs_by_tag().len();
        let devices =
            self.all_disks().count() + self.all_pmems().count() + self.nets.len() + others;
        if devices > MAX_DEVICES {
            return Err(ConfigError::Devices(devices));
        }
        Ok(())
    }

    /// The devices that shared directories make: for each tag the directories that it has.
    pub fn fs_by_tag(&self) -> Vec<(&str, Vec<&FsConfig>)> {
        fs::by_tag(&self.fs)
    }

    /// Whether another process works in guest memory.
    pub fn shares_memory(&self) -> bool {
        !self.fs.is_empty()
    }

    /// The root disk, then the others: `/dev/vda` and so on.
    pub fn all_disks(&self) -> impl Iterator<Item = &DiskConfig> {
        let root = self.rootfs.iter().filter_map(|root| match root {
            RootConfig::Disk(disk) => Some(disk),
            RootConfig::Pmem(_) => None,
        });
        root.chain(&self.disks)
    }

    /// The root pmem device, then the others: `/dev/pmem0` and so on.
    pub fn all_pmems(&self) -> impl Iterator<Item = &PmemConfig> {
        let root = self.rootfs.iter().filter_map(|root| match root {
            RootConfig::Pmem(pmem) => Some(pmem),
            RootConfig::Disk(_) => None,
        });
        root.chain(&self.pmems)
    }
}

fn not_empty(field: &'static str, path: Option<&Path>) -> Result<(), ConfigError> {
    match path {
        Some(path) if path.as_os_str().is_empty() => Err(ConfigError::NoPath(field)),
        _ => Ok(()),
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
                prefault: true,
                hugepages: Some(HugePages::Mib2),
            },
            console: ConsoleConfig::Socket("/s".into()),
            rootfs: Some(RootConfig::Disk(DiskConfig {
                path: "r".into(),
                ro: true,
                id: Some("x".into()),
                cache: Cache::Unsafe,
                engine: Engine::IoUring,
                queues: Some(3),
                iothread: true,
                rate_limit: DiskRateLimit {
                    read: RateLimitConfig {
                        ops_per_second: Some(7),
                        ..Default::default()
                    },
                    ..Default::default()
                },
            })),
            disks: vec![],
            pmems: vec![PmemConfig {
                file: "p".into(),
                ro: true,
            }],
            nets: vec![NetConfig {
                fd: Some(3),
                mtu: Some(9000),
                ..Default::default()
            }],
            fs: vec![FsConfig {
                tag: "t".into(),
                path: Some("/srv".into()),
                name: Some("n".into()),
                ro: true,
                suid: true,
                dev: true,
                socket: None,
            }],
            rng: Switch::Off,
            balloon: Some(BalloonConfig::default()),
            vsock: Some(VsockConfig {
                cid: 3,
                uds: "/v".into(),
            }),
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
        for (cid, uds, complaint) in [
            (2, "v", "cid"),
            (3, "", "empty"),
            (3, &"v".repeat(97), "97"),
        ] {
            let mut config = VmConfig::default();
            let uds = uds.into();
            config.vsock = Some(VsockConfig { cid, uds });
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
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
                    ..DiskConfig::default()
                };
                c.disks = vec![disk; MAX_DEVICES];
            })
            .contains("virtio devices")
        );
        VmConfig::default().validate().unwrap();
    }
}
