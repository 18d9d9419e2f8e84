//! The VM of a container: the monitor's configuration, and what the agent in it makes of its devices.

use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use cofferdam::config::{
    BalloonConfig, Cache, ConfigError, ConsoleConfig, CpuConfig, DiskConfig, FsConfig, LogConfig,
    LogLevel, MemorySize, NetConfig, PmemConfig, RootConfig, VmConfig, VsockConfig,
};
use cofferdam_agent_protocol::STORAGE;
use cofferdam_agent_protocol::api;

use crate::limits::Limits;
use crate::network::{self, Uplink};
use crate::options::{Bytes, CpuSet, Port, Rights};
use crate::state::VmSize;

/// Memory of a VM whose container has no limit. What it does not touch, and what it gives back, is the
/// host's; so this is a bound and no reservation. More of it costs, as the guest's kernel keeps 64
/// bytes for each page of 4 KiB.
pub const DEFAULT_MEMORY: Bytes = Bytes(512 << 20);
/// What a VM has beyond its container's memory: the kernel's text and data (some 20 MiB), the agent,
/// unpacked twice for a moment (6 MiB), what the kernel takes for caches, page tables and reserves before it
/// would let a container fill its limit.
const OVERHEAD: u64 = 64 << 20;
/// Of memory and of images, by the kernel's own description of each page: 64 bytes of 4096.
const PAGE_SHARE: u64 = 64;
/// The tag of the device that has what is shared with the container; behind it, what that may leave there.
pub const TAG: &str = "cofferdam";
/// The name of a root file system that is a directory of the host, on that device, and the serial number of
/// one that is a disk.
const ROOT: &str = "root";
/// The serial number of the disk with the writable layer.
const UPPER: &str = "upper";
/// The serial number of a disk that is a volume begins so; that of its share follows.
const VOLUME: &str = "volume";
/// How a volume is mounted: what is deleted, and what is not written, stays a hole in the host's file.
const VOLUME_OPTIONS: &str = "discard,noinit_itable";
/// The root of the guest, with the agent, beside the default guest's kernel.
pub const AGENT: &str = "agent.erofs";
/// A container's VM is alone in its monitor.
const CID: u64 = 3;

/// Why there is no VM for a container.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The agent is nowhere.
    #[error(
        "there is no {AGENT} beside the default guest's kernel; 'make guest' in the source tree \
         builds it"
    )]
    NoAgent,
    /// A VM that the monitor does not make.
    #[error("the container's VM")]
    Config(#[from] ConfigError),
    /// A layer that is not there.
    #[error("the layer {path} of the image is gone; pull the image again")]
    Layer {
        /// The layer.
        path: PathBuf,
        /// Why it cannot be had.
        #[source]
        source: std::io::Error,
    },
    /// A bundle's root file system that cannot be read.
    #[error("the image {path} that is mounted as the root file system")]
    Image {
        /// The image, or the block device that it is on.
        path: PathBuf,
        /// Why it cannot be had.
        #[source]
        source: std::io::Error,
    },
}

/// What a container's root file system is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// An image's layers, the lowest first, and where writes go: a disk, or memory.
    Layers {
        /// EROFS images.
        layers: Vec<PathBuf>,
        /// An ext4 image; memory takes the writes where there is none.
        upper: Option<PathBuf>,
        /// It is thrown away with the container, so nobody waits for it to be on a disk.
        is_temporary: bool,
    },
    /// A directory of the host.
    Directory {
        /// Where it is.
        path: PathBuf,
        /// Nobody writes to it.
        read_only: bool,
        /// What the container may leave there.
        rights: Rights,
    },
    /// A file system that nobody writes to, on a device of its own.
    Image(Image),
}

/// A file system that the guest's kernel mounts read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// A file or a block device.
    pub path: PathBuf,
    /// What it is.
    pub kind: ImageKind,
}

/// File systems that the guest's kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// Compact, so the guest maps all of it: one copy of its pages serves all VMs.
    Erofs,
    /// As large as its device, so it is a disk.
    Ext4,
}

/// An interface of the VM's on a tap of the network namespace that its monitor is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The tap, which the monitor makes.
    pub name: String,
    /// The guest's MAC address.
    pub mac: String,
    /// The MTU, in bytes, if it is one that a device can tell.
    pub mtu: Option<u16>,
}

/// What the guest's kernel is told, beside what every guest's is:
///
/// - Nobody watches it boot.
/// - Where it has to wait until all its CPUs have come by (RCU) it asks them, which is several
///   milliseconds for a container that joins its cgroup.
/// - It reports free memory in pieces of 64 KiB: what the boot left in small pieces goes back, too.
const CMDLINE: &str = "quiet rcupdate.rcu_expedited=1 page_reporting.page_reporting_order=4";

/// What of the host's is mounted in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// A directory or file of the host, or an image.
    pub source: PathBuf,
    /// It is an image of an ext4, so a disk of the VM's.
    pub is_image: bool,
    /// The container may not write.
    pub read_only: bool,
    /// What it may leave there.
    pub rights: Rights,
    /// The place in the image whose files it gets if it is empty: that of a new volume.
    pub fill_from: Option<String>,
    /// The share before it, by number, whose files it gets if it is empty.
    pub copy_of: Option<usize>,
}

/// A container's VM.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The kernel, where it is not the default guest's.
    pub kernel: Option<PathBuf>,
    /// CPUs that the container may use.
    pub cpus: Option<f64>,
    /// CPUs of the host's that all its threads run on; all, where nothing is said.
    pub cpuset: Option<CpuSet>,
    /// Memory that the container may use.
    pub memory: Option<Bytes>,
    /// Its root file system.
    pub root: Root,
    /// Directories and files of the host, and images.
    pub shares: Vec<Shared>,
    /// Block devices of the host's that are its disks, behind that of the root file system, and whether
    /// they are read-only.
    pub disks: Vec<(PathBuf, bool)>,
    /// Its network; none if it has none.
    pub uplink: Option<Uplink>,
    /// The ports that lead to it.
    pub ports: Vec<Port>,
    /// Its interfaces on taps.
    pub taps: Vec<Tap>,
    /// The network namespace that its monitor is to be in, if not that of who starts it.
    pub netns: Option<PathBuf>,
    /// What it may take of the host, if that is for us to say.
    pub limits: Option<Limits>,
    /// Where its sockets and logs are.
    pub run: PathBuf,
}

impl Machine {
    /// The monitor's configuration.
    pub fn config(&self) -> Result<VmConfig, VmError> {
        let mut config = VmConfig::default();
        let agent = cofferdam::guest::find(AGENT).ok_or(VmError::NoAgent)?;
        config.boot.kernel.clone_from(&self.kernel);
        config.rootfs = Some(RootConfig::Pmem(PmemConfig {
            file: agent,
            ro: true,
        }));
        config.boot.cmdline = Some(CMDLINE.into());
        config.cpus = CpuConfig {
            count: self.size().vcpus,
            ..CpuConfig::default()
        };
        config.memory.size = self.memory()?;
        // Standard output and standard error lead to logs that have a bound.
        config.console = ConsoleConfig::Stdio;
        config.vsock = Some(VsockConfig {
            cid: CID,
            uds: self.run.join("vsock"),
        });
        config.balloon = Some(BalloonConfig::default());
        if self.uplink.is_some() {
            config.nets.push(NetConfig {
                passt: true,
                publish: network::publish(&self.ports),
                ..NetConfig::default()
            });
        }
        config.nets.extend(self.taps.iter().map(|tap| NetConfig {
            tap: Some(tap.name.clone()),
            mac: Some(tap.mac.clone()),
            mtu: tap.mtu,
            ..NetConfig::default()
        }));
        self.add_root(&mut config);
        config
            .disks
            .extend(self.disks.iter().map(|(path, ro)| DiskConfig {
                path: path.clone(),
                ro: *ro,
                ..DiskConfig::default()
            }));
        self.add_shares(&mut config);
        config.log = LogConfig {
            level: LogLevel::Warn,
            file: None,
        };
        config.validate()?;
        Ok(config)
    }

    fn add_shares(&self, config: &mut VmConfig) {
        for (number, shared) in self.shares.iter().enumerate() {
            if !shared.is_image {
                let (path, name) = (&shared.source, share_name(number, &shared.source));
                let shared = share(path, &name, shared.read_only, shared.rights);
                config.fs.push(shared);
            } else if self.first_of(shared) == number {
                config.disks.push(DiskConfig {
                    path: shared.source.clone(),
                    id: Some(format!("{VOLUME}{number}")),
                    ro: self.is_read_only(shared),
                    ..DiskConfig::default()
                });
            }
        }
    }

    fn add_root(&self, config: &mut VmConfig) {
        match &self.root {
            Root::Layers {
                layers,
                upper,
                is_temporary,
            } => {
                let pmem = |file: &PathBuf| PmemConfig {
                    file: file.clone(),
                    ro: true,
                };
                config.pmems = layers.iter().map(pmem).collect();
                config.disks.extend(upper.iter().map(|path| DiskConfig {
                    path: path.clone(),
                    id: Some(UPPER.into()),
                    cache: if *is_temporary {
                        Cache::Unsafe
                    } else {
                        Cache::Writeback
                    },
                    ..DiskConfig::default()
                }));
            }
            Root::Directory {
                path,
                read_only,
                rights,
            } => config.fs.push(share(path, ROOT, *read_only, *rights)),
            Root::Image(Image { path, kind }) => match kind {
                ImageKind::Erofs => config.pmems.push(PmemConfig {
                    file: path.clone(),
                    ro: true,
                }),
                ImageKind::Ext4 => config.disks.push(DiskConfig {
                    path: path.clone(),
                    id: Some(ROOT.into()),
                    ro: true,
                    ..DiskConfig::default()
                }),
            },
        }
    }

    /// The number of the first share that is the same image.
    fn first_of(&self, shared: &Shared) -> usize {
        let is_same = |other: &Shared| other.source == shared.source;
        self.shares.iter().position(is_same).unwrap_or_default()
    }

    /// Whether nobody writes to what is shared, which an image is at all its places or at none.
    fn is_read_only(&self, shared: &Shared) -> bool {
        let mut same = self.shares.iter().filter(|one| one.source == shared.source);
        shared.read_only && (!shared.is_image || same.all(|one| one.read_only))
    }

    /// Whether something that it writes is on a disk of its own and outlives it.
    pub fn has_volumes(&self) -> bool {
        self.shares.iter().any(|shared| shared.is_image)
    }

    /// Whether it has nothing of the host's that somebody may want as soon as it has ended: ports,
    /// interfaces, directories, devices.
    pub fn is_alone(&self) -> bool {
        let is_connected = self.uplink.is_some() || !self.taps.is_empty() || self.netns.is_some();
        !is_connected && self.shares.is_empty() && self.disks.is_empty()
    }

    /// How large it is, for the container in it.
    pub fn size(&self) -> VmSize {
        VmSize {
            vcpus: vcpus(self.cpus),
            memory: self.memory.unwrap_or(DEFAULT_MEMORY),
        }
    }

    /// The VM's memory: the container's, and what its kernel needs for itself.
    pub fn memory(&self) -> Result<MemorySize, VmError> {
        let memory = self.size().memory.0;
        let images = match &self.root {
            Root::Layers { layers, .. } => {
                let mut sum = 0;
                for path in layers {
                    let layer = std::fs::metadata(path).map_err(|source| VmError::Layer {
                        path: path.clone(),
                        source,
                    })?;
                    sum += layer.len();
                }
                sum
            }
            Root::Image(Image { path, kind }) if *kind == ImageKind::Erofs => {
                // A block device's size is not in its metadata.
                let size = std::fs::File::open(path).and_then(|mut it| it.seek(SeekFrom::End(0)));
                size.map_err(|source| VmError::Image {
                    path: path.clone(),
                    source,
                })?
            }
            _ => 0,
        };
        Ok(vm_memory(memory, images))
    }

    /// What the agent mounts as the root file system.
    pub fn rootfs(&self) -> api::Rootfs {
        let mut rootfs = api::Rootfs::new();
        match &self.root {
            Root::Layers { layers, upper, .. } => {
                let mut overlay = api::Overlay::new();
                // The first is the agent's.
                let devices = (1..=layers.len()).rev();
                overlay.lower = devices.map(|number| format!("/dev/pmem{number}")).collect();
                match upper {
                    Some(_) => overlay.set_disk(format!("serial={UPPER}")),
                    None => overlay.set_tmpfs(api::Tmpfs::new()),
                }
                rootfs.set_overlay(overlay);
            }
            Root::Directory { rights, .. } => rootfs.set_share(agent_share(ROOT, *rights)),
            Root::Image(Image { kind, .. }) => {
                let mut block = api::Block::new();
                let (device, fstype) = match kind {
                    ImageKind::Erofs => ("/dev/pmem1".into(), "erofs"),
                    ImageKind::Ext4 => (format!("serial={ROOT}"), "ext4"),
                };
                (block.device, block.fstype) = (device, fstype.into());
                rootfs.set_block(block);
            }
        }
        rootfs
    }

    /// What the agent mounts for the binds of the container.
    pub fn storages(&self) -> Vec<api::Storage> {
        let storage = |(number, shared): (usize, &Shared)| {
            let mut storage = api::Storage::new();
            storage.target = storage_path(number).display().to_string();
            storage.readonly = self.is_read_only(shared);
            storage.fill_from = shared.fill_from.clone().unwrap_or_default();
            let copy_of = shared.copy_of.map(storage_path);
            storage.copy_of = copy_of.unwrap_or_default().display().to_string();
            if shared.is_image {
                let mut block = api::Block::new();
                block.device = format!("serial={VOLUME}{}", self.first_of(shared));
                block.fstype = "ext4".into();
                block.options = VOLUME_OPTIONS.into();
                storage.set_block(block);
            } else {
                let name = share_name(number, &shared.source);
                storage.set_share(agent_share(&name, shared.rights));
            }
            storage
        };
        self.shares.iter().enumerate().map(storage).collect()
    }

    /// What the agent is told of the network.
    pub fn network(
        &self,
        hostname: &str,
        hosts: String,
        resolv_conf: String,
    ) -> api::NetworkRequest {
        let mut request = api::NetworkRequest::new();
        request.hostname = hostname.to_owned();
        request.hosts = hosts;
        request.resolv_conf = resolv_conf;
        if let Some(uplink) = &self.uplink {
            let mut interface = api::Interface::new();
            interface.name = "eth0".into();
            interface.addresses = vec![format!("{}/{}", uplink.address, uplink.prefix)];
            request.interfaces.push(interface);
            let mut route = api::Route::new();
            route.gateway = uplink.gateway.to_string();
            route.device = "eth0".into();
            request.routes.push(route);
        }
        request
    }
}

/// Where in the guest the share of that number is mounted.
pub fn storage_path(number: usize) -> PathBuf {
    Path::new(STORAGE).join(number.to_string())
}

/// What the share of that number is called: by the source's own name, as who looks at a bind in
/// /proc/self/mountinfo expects it, in a directory of its own, since others may be called so, too.
fn share_name(number: usize, source: &Path) -> String {
    let name = source.file_name().and_then(|name| name.to_str());
    // The file-system process takes no others.
    let name = name.filter(|name| !name.contains([',', '\0']));
    name.map_or_else(|| number.to_string(), |name| format!("{number}/{name}"))
}

/// What the guest calls its disk of that number, from 0.
pub fn disk_path(number: usize) -> PathBuf {
    let letter = |number: usize| char::from(b'a' + u8::try_from(number % 26).unwrap_or_default());
    // As the kernel counts: a to z, aa to az, ba …
    match number.checked_sub(26) {
        None => format!("/dev/vd{}", letter(number)).into(),
        Some(more) => format!("/dev/vd{}{}", letter(more / 26), letter(more)).into(),
    }
}

/// A device for each combination of rights, since a process with the right to none of it serves most.
fn tag(rights: Rights) -> String {
    let suid = if rights.suid { "-suid" } else { "" };
    let dev = if rights.dev { "-dev" } else { "" };
    format!("{TAG}{suid}{dev}")
}

fn share(path: &Path, name: &str, ro: bool, rights: Rights) -> FsConfig {
    FsConfig {
        tag: tag(rights),
        path: Some(path.to_owned()),
        name: Some(name.into()),
        ro,
        suid: rights.suid,
        dev: rights.dev,
        ..FsConfig::default()
    }
}

fn agent_share(name: &str, rights: Rights) -> api::Share {
    let mut share = api::Share::new();
    share.tag = tag(rights);
    share.path = name.into();
    share
}

/// As many as it takes to use that much.
fn vcpus(cpus: Option<f64>) -> u8 {
    let cpus = cpus.unwrap_or(1.0).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped"
    )]
    let count = cpus.clamp(1.0, f64::from(cofferdam::config::MAX_CPUS)) as u8;
    count
}

fn vm_memory(container: u64, images: u64) -> MemorySize {
    let mapped = container.saturating_add(images) / PAGE_SHARE;
    let all = container.saturating_add(mapped).saturating_add(OVERHEAD);
    // Whole huge pages.
    let mib = (all >> 20).next_multiple_of(2);
    MemorySize::from_mib(u32::try_from(mib).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn machine(root: Root) -> Machine {
        Machine {
            kernel: None,
            cpus: Some(1.5),
            cpuset: None,
            memory: Some(Bytes(128 << 20)),
            root,
            shares: [("/srv", true), ("/data", false)]
                .map(|(source, read_only)| Shared {
                    source: source.into(),
                    is_image: false,
                    read_only,
                    rights: Rights::default(),
                    fill_from: (!read_only).then(|| "/var/data".into()),
                    copy_of: None,
                })
                .to_vec(),
            disks: Vec::new(),
            uplink: None,
            ports: Vec::new(),
            taps: Vec::new(),
            netns: None,
            limits: None,
            run: "/run/c".into(),
        }
    }

    /// If it fails, a container cannot use what it was given, or its VM is larger than it says.
    #[test]
    fn the_vm_is_the_limit_and_the_overhead() {
        assert_eq!(vm_memory(128 << 20, 0), MemorySize::from_mib(128 + 64 + 2));
        assert_eq!(
            vm_memory(1 << 30, 640 << 20),
            MemorySize::from_mib(1024 + 64 + 26)
        );
        assert_eq!(vcpus(None), 1);
        assert_eq!(vcpus(Some(0.2)), 1);
        assert_eq!(vcpus(Some(1.01)), 2);
        assert_eq!(vcpus(Some(1e9)), cofferdam::config::MAX_CPUS);
    }

    /// If it fails, the layers are stacked in the wrong order, or on the wrong devices.
    #[test]
    fn layers_are_stacked() {
        let layers = ["base", "middle", "top"].map(PathBuf::from).to_vec();
        let machine = machine(Root::Layers {
            layers,
            upper: Some("/c/upper.img".into()),
            is_temporary: true,
        });
        let mut config = VmConfig::default();
        machine.add_root(&mut config);
        let files: Vec<_> = config
            .pmems
            .iter()
            .map(|p| p.file.to_str().unwrap())
            .collect();
        assert_eq!(files, ["base", "middle", "top"]);
        assert!(config.pmems.iter().all(|pmem| pmem.ro));
        let rootfs = machine.rootfs();
        assert_eq!(
            rootfs.overlay().lower,
            ["/dev/pmem3", "/dev/pmem2", "/dev/pmem1"]
        );
        assert_eq!(rootfs.overlay().disk(), "serial=upper");
        assert_eq!(config.disks[0].cache, Cache::Unsafe);
    }

    /// If it fails, a container writes to another disk than it was given.
    #[test]
    fn disks_are_called_as_the_kernel_does() {
        for (number, path) in [
            (0, "/dev/vda"),
            (25, "/dev/vdz"),
            (26, "/dev/vdaa"),
            (53, "/dev/vdbb"),
        ] {
            assert_eq!(disk_path(number), Path::new(path));
        }
    }

    /// If it fails, the agent mounts another directory than was shared, or writable.
    #[test]
    fn shares_have_numbers() {
        let all = Rights {
            suid: true,
            dev: true,
        };
        let machine = machine(Root::Directory {
            path: "/bundle/rootfs".into(),
            read_only: false,
            rights: all,
        });
        let storages = machine.storages();
        assert_eq!(storages[1].target, "/run/cofferdam/storage/1");
        assert_eq!((storages[0].readonly, storages[1].readonly), (true, false));
        let fill_from = [0, 1].map(|number| storages[number].fill_from.as_str());
        assert_eq!(fill_from, ["", "/var/data"]);
        assert_eq!(storages[1].share().path, "1/data");
        for (source, name) in [("/", "3"), ("/a/b,c", "3"), ("/a/b c", "3/b c")] {
            assert_eq!(share_name(3, Path::new(source)), name);
        }
        assert_eq!(share_name(3, Path::new(OsStr::from_bytes(b"/\xff"))), "3");
        assert_eq!(machine.rootfs().share().path, ROOT);
        let mut config = VmConfig::default();
        machine.add_root(&mut config);
        assert_eq!(config.fs[0].name.as_deref(), Some(ROOT));
        // What may leave set-ID programs on the host has a device of its own.
        assert!(config.fs[0].suid && config.fs[0].dev);
        assert_eq!(config.fs[0].tag, machine.rootfs().share().tag);
        assert_ne!(config.fs[0].tag, storages[1].share().tag);
    }

    /// If it fails, a volume is not what its container mounts, one kernel has it on two disks, or what
    /// the container wrote is thrown away.
    #[test]
    fn images_are_disks() {
        let mut machine = machine(Root::Directory {
            path: "/bundle/rootfs".into(),
            read_only: false,
            rights: Rights::default(),
        });
        let image = |source: &str, read_only| Shared {
            source: source.into(),
            is_image: true,
            read_only,
            rights: Rights::default(),
            fill_from: None,
            copy_of: None,
        };
        assert!(!machine.has_volumes());
        for (source, read_only) in [("/v/a", true), ("/v/b", true), ("/v/a", false)] {
            machine.shares.push(image(source, read_only));
        }
        let storages = machine.storages();
        let found =
            [2, 3, 4].map(|n: usize| (storages[n].block().device.as_str(), storages[n].readonly));
        let (first, other) = ("serial=volume2", "serial=volume3");
        assert_eq!(found, [(first, false), (other, true), (first, false)]);
        assert!(machine.has_volumes() && !machine.is_alone());
        let mut config = VmConfig::default();
        machine.add_shares(&mut config);
        assert_eq!(config.fs.len(), 2);
        let disks = config
            .disks
            .iter()
            .map(|disk| (disk.id.as_deref(), disk.ro));
        let expected = [(Some("volume2"), false), (Some("volume3"), true)];
        assert_eq!(disks.collect::<Vec<_>>(), expected);
    }
}
