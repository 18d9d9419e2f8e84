//! A bundle of the OCI runtime specification as a VM: what the guest is told, what is shared with
//! it, and what a VM cannot have.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use oci_spec::runtime::{
    Hooks, LinuxMemory, LinuxMemoryPolicy, LinuxNamespace, LinuxNamespaceType, LinuxResources,
    LinuxSeccomp, LinuxSeccompAction, MemoryPolicyModeType, Spec,
};

use super::limits;
use super::mounts::{self, Share};
use super::rootfs::{self, Place};
use crate::network;
use crate::options::Bytes;
use crate::vm::{Image, Machine, Root, Shared, Tap};

/// Why a bundle cannot be run.
#[derive(Debug, thiserror::Error)]
pub(super) enum BundleError {
    /// Its configuration.
    #[error("cannot read {path}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A part that must be there.
    #[error("config.json has no {0}")]
    Missing(&'static str),
    /// A version that is not ours.
    #[error("config.json is of version {0:?} of the OCI runtime specification; 1.x.y is known")]
    Version(String),
    /// A file or directory that is named.
    #[error("{field}: {path}")]
    File {
        /// The part of the configuration.
        field: &'static str,
        /// What it names.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// Something that a container in a VM cannot have.
    #[error("{field}: {why}")]
    Refused {
        /// The part of the configuration.
        field: &'static str,
        /// Why.
        why: String,
    },
}

pub(super) fn refuse<T>(field: &'static str, why: impl Into<String>) -> Result<T, BundleError> {
    let why = why.into();
    Err(BundleError::Refused { field, why })
}

pub(super) fn file<'a>(
    field: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> BundleError + 'a {
    move |source| BundleError::File {
        field,
        path: path.to_owned(),
        source,
    }
}

/// What network namespace a container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Netns {
    /// A new one.
    New,
    /// One that the engine made.
    Path(PathBuf),
    /// The host's: the guest reaches out through it, as a user's program does.
    Host,
}

impl Netns {
    /// Where it is, if it is there already.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::New | Self::Host => None,
            Self::Path(path) => Some(path),
        }
    }
}

/// A bundle that can be run.
#[derive(Debug)]
pub(super) struct Bundle {
    pub dir: PathBuf,
    /// The host's directory that is the container's root.
    pub rootfs: PathBuf,
    /// What the guest mounts itself instead.
    image: Option<Image>,
    /// As the guest shall see it.
    pub spec: Spec,
    pub shares: Vec<Share>,
    pub hooks: Hooks,
    pub annotations: HashMap<String, String>,
    pub netns: Netns,
    /// Kinds that the process which stands for the container is to have of its own; not the mount and
    /// the network namespace.
    pub own_namespaces: CloneFlags,
    /// It is configured with one.
    pub has_mount_namespace: bool,
    /// Interfaces of the host's that are moved into its network namespace, and their names there.
    pub interfaces: Vec<(String, String)>,
    pub cgroups_path: Option<PathBuf>,
    /// What the host's cgroup is limited to.
    pub resources: LinuxResources,
}

impl Bundle {
    /// Reads a bundle and says what cannot be had.
    pub(super) fn open(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join("config.json");
        let read = || -> io::Result<(PathBuf, Spec)> {
            let text = fs::read(&path)?;
            Ok((dir.canonicalize()?, crate::json::from_slice(&text)?))
        };
        let (dir, spec) = read().map_err(|source| BundleError::Config {
            path: path.clone(),
            source,
        })?;
        Self::new(dir, spec)
    }

    fn new(dir: PathBuf, mut spec: Spec) -> Result<Self, BundleError> {
        if !spec.version().starts_with("1.") {
            return Err(BundleError::Version(spec.version().clone()));
        }
        let root = spec.root().as_ref().ok_or(BundleError::Missing("root"))?;
        let rootfs = dir.join(root.path());
        let rootfs = rootfs.canonicalize().map_err(file("root.path", &rootfs))?;
        if !rootfs.is_dir() {
            return refuse("root.path", format!("{} is no directory", rootfs.display()));
        }
        let image = rootfs::image(&rootfs).map_err(file("root.path", &rootfs))?;
        let namespaces = namespaces(&mut spec)?;
        let shares = mounts::mounts(&mut spec, &dir)?;
        if let Some(process) = spec.process_mut() {
            // Names of the host's rules for its own system calls and files, which nobody in the
            // guest reaches.
            process.set_apparmor_profile(None);
            process.set_selinux_label(None);
        }
        let hooks = spec.hooks().clone().unwrap_or_default();
        spec.set_hooks(None);
        let annotations = spec.annotations().clone().unwrap_or_default();
        let interfaces = interfaces(&mut spec, &namespaces.network)?;
        let (cgroups_path, resources) = linux(&mut spec)?;
        Ok(Self {
            dir,
            rootfs,
            image,
            spec,
            shares,
            hooks,
            annotations,
            netns: namespaces.network,
            own_namespaces: namespaces.own,
            has_mount_namespace: namespaces.has_mount,
            interfaces,
            cgroups_path,
            resources,
        })
    }

    /// Whether the container's process has a terminal.
    pub(super) fn terminal(&self) -> bool {
        let process = self.spec.process().as_ref();
        process.and_then(|process| process.terminal()) == Some(true)
    }

    /// Whether its network may be set up when it is made already: where the namespace is its own, engines
    /// find it by its process (`ctr run --cni`, Podman for a container with a user namespace).
    pub(super) fn may_get_network_late(&self) -> bool {
        self.netns == Netns::New
    }

    /// The host's file that is the container's /etc/resolv.conf, where the engine has made one for it and
    /// its network is its own.
    pub(super) fn resolv_conf(&self) -> Option<&Path> {
        let mut shares = self.shares.iter();
        let share = shares.find(|share| share.target == Path::new("/etc/resolv.conf"))?;
        (self.netns != Netns::Host).then_some(&share.source)
    }

    /// Whether not even the guest's kernel can write to the root. Where the container's own /dev is in
    /// the root, the guest makes devices there before it is read-only.
    fn is_read_only(&self) -> bool {
        let root = self.spec.root().as_ref();
        let mut mounts = self.spec.mounts().iter().flatten();
        root.and_then(|root| root.readonly()) == Some(true)
            && mounts.any(|mount| mount.destination() == Path::new("/dev"))
    }

    /// Makes in the root what the guest cannot make there.
    pub(super) fn prepare(&self) -> Result<(), BundleError> {
        if !self.is_read_only() {
            return Ok(());
        }
        let is_file = |target: &Path| {
            let mut shares = self.shares.iter();
            shares.any(|share| share.target == target && share.source.is_file())
        };
        let mounts = self.spec.mounts().iter().flatten();
        let places: Vec<_> = mounts
            .map(|mount| Place {
                path: mount.destination().clone(),
                is_file: is_file(mount.destination()),
            })
            .collect();
        let process = self.spec.process().as_ref();
        let cwd = process.map_or(Path::new("/"), |process| process.cwd());
        rootfs::make(&self.rootfs, &places, cwd).map_err(file("root.path", &self.rootfs))
    }

    /// The VM that runs it. `run`: where its sockets are.
    pub(super) fn machine(&self, run: PathBuf, taps: Vec<Tap>) -> Machine {
        let limit = memory_limit(&self.resources);
        Machine {
            kernel: None,
            cpus: cpus(&self.resources),
            cpuset: None,
            memory: limit.map(Bytes),
            root: match &self.image {
                Some(image) => Root::Image(image.clone()),
                None => Root::Directory {
                    path: self.rootfs.clone(),
                    read_only: self.is_read_only(),
                    rights: rootfs::rights(&self.rootfs, self.is_read_only()),
                },
            },
            shares: self
                .shares
                .iter()
                .map(|share| Shared {
                    source: share.source.clone(),
                    is_image: false,
                    read_only: share.read_only,
                    rights: share.rights,
                    fill_from: None,
                    copy_of: None,
                })
                .collect(),
            disks: Vec::new(),
            uplink: match self.netns {
                Netns::Host => network::host_uplink().filter(|_| network::has_passt()),
                _ => None,
            },
            ports: Vec::new(),
            taps,
            // The shim is in both already.
            netns: None,
            limits: None,
            run,
        }
    }
}

/// A limit that is one.
fn memory_limit(resources: &LinuxResources) -> Option<u64> {
    let unified = resources.unified().as_ref();
    if let Some(max) = unified.and_then(|all| all.get("memory.max")) {
        return max.trim().parse().ok().filter(|limit| *limit > 0);
    }
    let limit = resources.memory().as_ref().and_then(LinuxMemory::limit)?;
    u64::try_from(limit).ok().filter(|limit| *limit > 0)
}

/// How many CPUs a container may use, by its quota, or by the set that it is bound to.
fn cpus(resources: &LinuxResources) -> Option<f64> {
    let cpu = resources.cpu().clone().unwrap_or_default();
    let unified = |file: &str| resources.unified().as_ref()?.get(file);
    let (quota, period) = match unified("cpu.max").and_then(|max| max.split_once(' ')) {
        Some((quota, period)) => (quota.trim().parse().ok(), period.trim().parse().ok()),
        None => (cpu.quota(), cpu.period()),
    };
    let set = unified("cpuset.cpus").or(cpu.cpus().as_ref());
    match (quota.filter(|quota| *quota > 0), set) {
        #[expect(clippy::cast_precision_loss, reason = "microseconds")]
        (Some(quota), _) => Some(quota as f64 / period.unwrap_or(100_000).max(1) as f64),
        (None, set) => count(set?).map(f64::from),
    }
}

/// How many there are in a list like `0-2,7`.
fn count(set: &str) -> Option<u32> {
    let range = |text: &str| -> Option<u32> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    let parts = set.split(',').filter(|part| !part.trim().is_empty());
    parts.map(range).sum::<Option<u32>>().filter(|all| *all > 0)
}

/// What namespaces a container has on the host.
struct Namespaces {
    network: Netns,
    own: CloneFlags,
    has_mount: bool,
}

/// Whether a path is the network namespace of this process, the host's. What is there is nobody's to be led
/// into a guest.
fn is_our_netns(path: &Path) -> bool {
    let identity = |path: &Path| {
        let about = fs::metadata(path).ok()?;
        Some((about.dev(), about.ino()))
    };
    let ours = identity(Path::new("/proc/self/ns/net"));
    ours.is_some() && ours == identity(path)
}

/// Takes the network namespace out, and refuses what joins other containers.
fn namespaces(spec: &mut Spec) -> Result<Namespaces, BundleError> {
    const FIELD: &str = "linux.namespaces";
    let linux = spec.linux_mut().get_or_insert_default();
    let mut found = Namespaces {
        network: Netns::Host,
        own: CloneFlags::empty(),
        has_mount: false,
    };
    let mut has_uts = false;
    for namespace in linux.namespaces_mut().iter_mut().flatten() {
        let path = namespace
            .path()
            .clone()
            .filter(|path| path != Path::new(""));
        match (namespace.typ(), path) {
            (LinuxNamespaceType::Network, path) => {
                namespace.set_path(None);
                found.network = match path {
                    None => Netns::New,
                    // As Docker has it.
                    Some(path) if is_our_netns(&path) => Netns::Host,
                    Some(path) => Netns::Path(path),
                };
            }
            (kind, None) => {
                namespace.set_path(None);
                has_uts |= kind == LinuxNamespaceType::Uts;
                found.has_mount |= kind == LinuxNamespaceType::Mount;
                found.own |= match kind {
                    LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
                    LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
                    LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
                    _ => CloneFlags::empty(),
                };
            }
            (kind, Some(path)) => {
                return refuse(
                    FIELD,
                    format!(
                        "{kind} is to be joined at {}; containers in VMs share no kernel, so give \
                         it one of its own",
                        path.display()
                    ),
                );
            }
        }
    }
    // The guest has a name of its own in any case.
    if !has_uts && (spec.hostname().is_some() || spec.domainname().is_some()) {
        let mut uts = LinuxNamespace::default();
        uts.set_typ(LinuxNamespaceType::Uts);
        let linux = spec.linux_mut().get_or_insert_default();
        linux.namespaces_mut().get_or_insert_default().push(uts);
    }
    Ok(found)
}

/// Takes out which interfaces it gets.
fn interfaces(spec: &mut Spec, netns: &Netns) -> Result<Vec<(String, String)>, BundleError> {
    let linux = spec.linux_mut().get_or_insert_default();
    let devices = linux.net_devices().clone().unwrap_or_default();
    linux.set_net_devices(None);
    if !devices.is_empty() && *netns == Netns::Host {
        return refuse(
            "linux.netDevices",
            "there is no network namespace to move them to",
        );
    }
    let named = devices.into_iter().map(|(name, device)| {
        let own = device.name().clone().filter(|own| !own.is_empty());
        (name.clone(), own.unwrap_or(name))
    });
    Ok(named.collect())
}

/// What of `linux` is the host's: its cgroup and the limits that name the host's own things.
fn linux(spec: &mut Spec) -> Result<(Option<PathBuf>, LinuxResources), BundleError> {
    let linux = spec.linux_mut().get_or_insert_default();
    if linux.intel_rdt().is_some() {
        return refuse("linux.intelRdt", "it is not supported");
    }
    memory_policy(linux.memory_policy().as_ref())?;
    seccomp(linux.seccomp().as_ref())?;
    linux.set_mount_label(None);
    let path = linux.cgroups_path().clone();
    linux.set_cgroups_path(None);
    let resources = linux.resources().clone().unwrap_or_default();
    limits::check(&resources).or_else(|bad| refuse(bad.field(), bad.to_string()))?;
    if let Some(resources) = linux.resources_mut() {
        // Numbers of the host's CPUs, nodes and disks. The host's cgroup has them.
        if let Some(cpu) = resources.cpu_mut() {
            cpu.set_cpus(None);
            cpu.set_mems(None);
        }
        if let Some(unified) = resources.unified_mut() {
            unified.retain(|file, _| !limits::is_of_the_host(file));
        }
        resources.set_block_io(None);
        resources.set_hugepage_limits(None);
        resources.set_network(None);
        resources.set_rdma(None);
    }
    Ok((path, resources))
}

/// A guest has one node of memory, whose policy is the default one.
fn memory_policy(policy: Option<&LinuxMemoryPolicy>) -> Result<(), BundleError> {
    let Some(policy) = policy else { return Ok(()) };
    let has_nodes = policy
        .nodes()
        .as_ref()
        .is_some_and(|nodes| !nodes.trim().is_empty());
    let has_flags = policy.flags().as_ref().is_some_and(|all| !all.is_empty());
    match policy.mode() {
        MemoryPolicyModeType::MpolDefault if !has_nodes && !has_flags => Ok(()),
        _ => refuse(
            "linux.memoryPolicy",
            "the guest's kernel knows no nodes of memory",
        ),
    }
}

/// Refuses to ask somebody on the host about calls of the guest's.
fn seccomp(seccomp: Option<&LinuxSeccomp>) -> Result<(), BundleError> {
    let Some(seccomp) = seccomp else {
        return Ok(());
    };
    let is_asked = |action| action == LinuxSeccompAction::ScmpActNotify;
    let mut calls = seccomp.syscalls().iter().flatten();
    if !is_asked(seccomp.default_action()) && !calls.any(|call| is_asked(call.action())) {
        return Ok(());
    }
    // Who waits there learns that nothing comes.
    if let Some(path) = seccomp.listener_path() {
        let _ = UnixStream::connect(path);
    }
    refuse(
        "linux.seccomp",
        "SCMP_ACT_NOTIFY: who is asked on the host cannot answer for another kernel's calls",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Rights;
    use crate::vm::storage_path;

    type Change = fn(&mut serde_json::Value);

    fn bundle(change: impl FnOnce(&mut serde_json::Value)) -> Result<Bundle, BundleError> {
        let mut config = serde_json::json!({
            "ociVersion": "1.0.2-dev",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/",
                "apparmorProfile": "docker-default"},
            "root": {"path": "."},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}],
                "cgroupsPath": "/a/b",
                "resources": {"cpu": {"cpus": "0-2", "shares": 5}, "memory": {"limit": 1 << 20}}},
        });
        change(&mut config);
        let spec = crate::json::from_value(config).unwrap();
        Bundle::new(std::env::temp_dir(), spec)
    }

    /// If it fails, the guest is told of the host's names and numbers, or the host forgets them.
    #[test]
    fn what_is_the_hosts_stays_there() {
        let bundle = bundle(|_| {}).unwrap();
        let text = serde_json::to_string(&bundle.spec).unwrap();
        for word in ["docker-default", "/a/b", "0-2"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
        assert!(text.contains("\"shares\":5"));
        assert_eq!(bundle.cgroups_path.as_deref(), Some(Path::new("/a/b")));
        assert_eq!(bundle.netns, Netns::New);
        let machine = bundle.machine("/run/x".into(), Vec::new());
        assert_eq!(
            (machine.cpus, machine.memory),
            (Some(3.0), Some(Bytes(1 << 20)))
        );
    }

    /// If it fails, a bind comes from the guest's own files, or is writable when it must not be.
    #[test]
    fn binds_are_shared() {
        let bundle = bundle(|config| {
            config["mounts"].as_array_mut().unwrap().extend([
                serde_json::json!({"destination": "/etc/x", "source": "/etc/passwd", "options": ["bind", "ro"]}),
                serde_json::json!({"destination": "/d", "type": "bind", "source": "/usr", "options": ["rbind"]}),
            ]);
        })
        .unwrap();
        let mounts = bundle.spec.mounts().clone().unwrap();
        assert_eq!(mounts[0].typ().as_deref(), Some("proc"));
        assert_eq!(
            mounts[1].source().as_deref(),
            Some(storage_path(0).as_path())
        );
        assert_eq!(
            mounts[2].source().as_deref(),
            Some(storage_path(1).as_path())
        );
        let expected = [("/etc/passwd", true), ("/usr", false)];
        assert_eq!(
            bundle.machine("/r".into(), Vec::new()).shares,
            expected.map(|(source, read_only)| Shared {
                source: source.into(),
                is_image: false,
                read_only,
                rights: Rights::default(),
                fill_from: None,
                copy_of: None,
            })
        );
    }

    /// If it fails, a container silently lacks what was asked for.
    #[test]
    fn what_cannot_be_is_refused() {
        let changes: [(&str, Change); 8] = [
            ("hugepageLimits.pageSize", |c| {
                let limits = serde_json::json!([{"pageSize": "2MB/../../x", "limit": 0}]);
                c["linux"]["resources"]["hugepageLimits"] = limits;
            }),
            ("share no kernel", |c| {
                c["linux"]["namespaces"][0]["path"] = "/proc/1/ns/pid".into();
            }),
            ("SCMP_ACT_NOTIFY", |c| {
                c["linux"]["seccomp"] = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW",
                    "listenerPath": "/nothing",
                    "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
            }),
            ("memoryPolicy", |c| {
                c["linux"]["memoryPolicy"] = serde_json::json!({"mode": "MPOL_BIND", "nodes": "0"});
            }),
            ("/dev/null", |c| {
                c["mounts"][0] =
                    serde_json::json!({"destination": "/x", "type": "bind", "source": "/dev/null"});
            }),
            ("netDevices", |c| {
                c["linux"]["netDevices"] = serde_json::json!({"eth9": {}});
                c["linux"]["namespaces"] = serde_json::json!([{"type": "pid"}]);
            }),
            ("version", |c| c["ociVersion"] = "2.0.0".into()),
            ("root", |c| {
                c.as_object_mut().unwrap().remove("root");
            }),
        ];
        for (word, change) in changes {
            let error = crate::describe(&bundle(change).unwrap_err());
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    /// If it fails, a container that asks for the host's namespaces is refused, or the process that
    /// stands for one has the host's where it asked for its own.
    #[test]
    fn namespaces_are_its_own_or_the_hosts() {
        let bundle = |kinds: serde_json::Value| {
            let change = |config: &mut serde_json::Value| {
                config["linux"]["namespaces"] = kinds;
                config["hostname"] = "name".into();
            };
            bundle(change).unwrap()
        };
        let none = bundle(serde_json::json!([]));
        assert_eq!((none.netns, none.has_mount_namespace), (Netns::Host, false));
        assert!(none.own_namespaces.is_empty());
        assert!(serde_json::to_string(&none.spec).unwrap().contains("uts"));
        let kinds = ["mount", "network", "uts", "pid"];
        let kinds = kinds.map(|kind| serde_json::json!({"type": kind}));
        let some = bundle(kinds.to_vec().into());
        assert_eq!((some.netns, some.has_mount_namespace), (Netns::New, true));
        assert_eq!(some.own_namespaces, CloneFlags::CLONE_NEWUTS);
        // With the host's by its path, its interfaces would be led into the guest.
        let path = format!("/proc/{}/ns/net", std::process::id());
        let by_path = |path: &str| {
            let kind = serde_json::json!([{"type": "network", "path": path}]);
            bundle(kind).netns
        };
        assert_eq!(by_path(&path), Netns::Host);
        let other = "/proc/self/ns/uts";
        assert_eq!(by_path(other), Netns::Path(other.into()));
    }

    /// If it fails, a container bound to CPUs has another number of them.
    #[test]
    fn cpus_are_counted() {
        assert_eq!(count("0-2,7"), Some(4));
        assert_eq!(count("3"), Some(1));
        for bad in ["", "a", "2-1", "0-4294967295", "1-"] {
            assert_eq!(count(bad), None, "{bad}");
        }
        let bundle = bundle(|config| {
            config["linux"]["resources"]["unified"] = serde_json::json!({
                "cpu.max": "400000 100000", "memory.max": "4096", "cpuset.cpus": "1"});
        });
        let bundle = bundle.unwrap();
        assert_eq!(cpus(&bundle.resources), Some(4.0));
        assert_eq!(memory_limit(&bundle.resources), Some(4096));
        let text = serde_json::to_string(&bundle.spec).unwrap();
        assert!(text.contains("cpu.max") && !text.contains("cpuset.cpus"));
    }
}
