//! From what was asked for and what the image says to the configuration of the OCI runtime
//! specification (config.json), as Docker would make it.

mod caps;
mod devices;
mod seccomp;

pub use devices::add as add_devices;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oci_spec::image::{Config, ImageConfiguration};
use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxPids, LinuxResources,
    Mount, PosixRlimit, PosixRlimitBuilder, Process, Root, Spec, User,
};

use cofferdam_agent_protocol::users::{self, Unknown};

use crate::limits;
use crate::options::{Bytes, Isolation, MemorySwap, Options, OptionsError, Tmpfs, pairs};
use crate::root::RootDir;

/// `PATH` where the image has none: Docker's.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Microseconds that a share of a CPU is measured over: the kernel's own default.
const CPU_PERIOD: u64 = 100_000;
/// Docker's size of /dev/shm.
const SHM_SIZE: Bytes = Bytes(64 << 20);

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Nothing to run.
    #[error("no command specified: the image {0} has none; give one behind its name")]
    NoCommand(String),
    /// Not a capability.
    #[error("there is no capability {0:?}")]
    Capability(String),
    /// Not a kernel parameter.
    #[error("--sysctl {0}: expected NAME=VALUE")]
    Sysctl(String),
    /// A working directory that is none.
    #[error("the working directory {0:?} is not absolute")]
    Workdir(String),
    /// An option that cannot be.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A profile of system calls that is none.
    #[error("the seccomp profile {path}")]
    Profile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: std::io::Error,
    },
    /// A device that is none.
    #[error("cannot give {path} to the container")]
    Device {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A part of the specification that cannot be.
    #[error("the configuration cannot be made")]
    Oci(#[from] oci_spec::OciSpecError),
}

/// Something from outside, at a path where the runtime finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// As the runtime sees it.
    pub source: PathBuf,
    /// In the container.
    pub target: String,
    /// The container may not write.
    pub read_only: bool,
}

/// A container's configuration.
///
/// `id` is the container's; `rootfs` the bundle's directory with the root file system, `binds` what
/// is mounted from outside, in order. A user that is given by name stands in `process.user.username`
/// for who has the root file system before him.
pub fn build(
    id: &str,
    options: &Options,
    image: &ImageConfiguration,
    rootfs: &Path,
    binds: &[Bind],
) -> Result<Spec, SpecError> {
    let none = Config::default();
    let config = image.config().as_ref().unwrap_or(&none);
    let mut root = Root::default();
    root.set_path(rootfs.to_owned());
    root.set_readonly(Some(options.read_only));

    let mut spec = Spec::default();
    spec.set_root(Some(root));
    spec.set_hostname(Some(hostname(id, options)));
    spec.set_domainname(options.domainname.clone());
    let process = process(id, options, config)?;
    let mut linux = linux(id, options)?;
    if let Some(path) = options.security()?.seccomp {
        linux.set_seccomp(Some(seccomp::load(&path, &caps::names(&process))?));
    }
    spec.set_process(Some(process));
    spec.set_mounts(Some(mounts(options, binds)));
    spec.set_linux(Some(linux));
    let mut annotations: HashMap<String, String> = labels(options, image).into_iter().collect();
    annotations.extend(pairs(&options.annotation));
    spec.set_annotations(Some(annotations));
    Ok(spec)
}

/// The image's labels and the user's.
pub fn labels(options: &Options, image: &ImageConfiguration) -> BTreeMap<String, String> {
    let of_image = image.labels_of_config().into_iter().flatten();
    let mut labels: BTreeMap<_, _> = of_image.map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.extend(options.labels());
    labels
}

/// The name that the container has for itself.
pub fn hostname(id: &str, options: &Options) -> String {
    let short = || id.chars().take(12).collect();
    let given = options.hostname.clone().filter(|name| !name.is_empty());
    given.unwrap_or_else(short)
}

/// What is run, with its arguments.
///
/// A user's entry point puts the image's command aside, too, as its arguments would be another
/// program's.
pub fn command(options: &Options, image: &Config) -> Result<Vec<String>, SpecError> {
    let of_image = image.entrypoint().as_deref().unwrap_or_default();
    let mut args = match options.entrypoint.as_deref() {
        None => of_image.to_vec(),
        Some("") => Vec::new(),
        Some(program) => vec![program.to_owned()],
    };
    if !options.command.is_empty() {
        args.extend_from_slice(&options.command);
    } else if options.entrypoint.is_none() {
        args.extend_from_slice(image.cmd().as_deref().unwrap_or_default());
    }
    if args.is_empty() {
        return Err(SpecError::NoCommand(options.image.clone()));
    }
    Ok(args)
}

fn process(id: &str, options: &Options, image: &Config) -> Result<Process, SpecError> {
    let of_image = image.working_dir().as_deref().filter(|dir| !dir.is_empty());
    let cwd = options.workdir.as_deref().or(of_image).unwrap_or("/");
    if !cwd.starts_with('/') {
        return Err(SpecError::Workdir(cwd.to_owned()));
    }
    let of_image = image.user().as_deref().filter(|user| !user.is_empty());
    let mut user = user(options.user.as_deref().or(of_image).unwrap_or("0"));
    if !options.group_add.is_empty() {
        user.set_additional_gids(Some(options.group_add.clone()));
    }
    let capabilities = if options.privileged {
        caps::all()
    } else {
        caps::of(&options.cap_add, &options.cap_drop)?
    };
    // Who has a name may be root; who has it in the image decides then.
    let may_be_root = user.uid() == 0;

    let mut process = Process::default();
    process.set_terminal(Some(options.tty));
    process.set_args(Some(command(options, image)?));
    process.set_env(Some(env(&hostname(id, options), options, image)));
    process.set_cwd(cwd.into());
    process.set_user(user);
    process.set_capabilities(Some(caps::process(capabilities, may_be_root)));
    let rlimits: Result<_, _> = options.ulimit.iter().map(rlimit).collect();
    process.set_rlimits(Some(rlimits?));
    process.set_no_new_privileges(Some(options.security()?.no_new_privileges));
    Ok(process)
}

fn rlimit(limit: &crate::options::Ulimit) -> Result<PosixRlimit, SpecError> {
    let rlimit = PosixRlimitBuilder::default().typ(limit.kind);
    Ok(rlimit.soft(limit.soft).hard(limit.hard).build()?)
}

/// `UID[:GID]`, or names, which stay as they are written.
pub fn user(text: &str) -> User {
    let mut user = User::default();
    let (name, group) = text.split_once(':').unwrap_or((text, ""));
    if let Ok(uid) = name.parse() {
        user.set_uid(uid);
    }
    match group.parse() {
        Ok(gid) => user.set_gid(gid),
        Err(_) => user.set_gid(0),
    };
    // Also of a number, the group and further groups are in the image's files.
    user.set_username(Some(text.to_owned()));
    user
}

/// Puts numbers in the place of a user's name, as the files below `root` have them. Who turns out not to
/// be root has no capabilities in effect.
pub fn resolve_user(process: &mut Process, root: &RootDir) -> Result<(), Unknown> {
    let Some(name) = process.user().username().clone() else {
        return Ok(());
    };
    let found = users::find(&name, &root.text("/etc/passwd"), &root.text("/etc/group"))?;
    let mut groups = process.user().additional_gids().clone().unwrap_or_default();
    groups.extend(found.groups);
    let user = process.user_mut();
    user.set_username(None);
    user.set_uid(found.uid).set_gid(found.gid);
    user.set_additional_gids(Some(groups));
    if found.uid != 0 {
        set_capabilities(process, false);
    }
    Ok(())
}

/// The image's variables, then the user's, each once.
fn env(hostname: &str, options: &Options, image: &Config) -> Vec<String> {
    let mut env = vec![format!("PATH={PATH}"), format!("HOSTNAME={hostname}")];
    if options.tty {
        env.push("TERM=xterm".into());
    }
    merge_env(&mut env, image.env().as_deref().unwrap_or_default());
    merge_env(&mut env, &options.env);
    env
}

/// Adds variables, each in the place of another of its name.
pub fn merge_env(env: &mut Vec<String>, more: &[String]) {
    for variable in more {
        let name = variable.split('=').next().unwrap_or_default();
        let is_same = |other: &String| other.split('=').next() == Some(name);
        match env.iter_mut().find(|other| is_same(other)) {
            Some(other) => other.clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
}

/// The capabilities of one more process: those of its container, or all; to be used at once by root.
pub fn set_capabilities(process: &mut Process, privileged: bool) {
    let of_container = process
        .capabilities()
        .as_ref()
        .and_then(|c| c.bounding().clone());
    let set = match privileged {
        true => caps::all(),
        false => of_container.unwrap_or_default(),
    };
    let is_root = process.user().uid() == 0;
    process.set_capabilities(Some(caps::process(set, is_root)));
}

/// Has the container in the network namespace at a path, and not in one of its own.
pub fn join_network(spec: &mut Spec, netns: &Path) {
    let linux = spec.linux_mut().as_mut();
    let namespaces = linux.and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        if namespace.typ() == LinuxNamespaceType::Network {
            namespace.set_path(Some(netns.to_owned()));
        }
    }
}

/// Has a program of the host's run the container's: bound to where the container's own devices are, so
/// that nothing of it is in its files.
pub fn put_below(spec: &mut Spec, init: &Path) {
    const INIT: &str = "/dev/init";
    let init = Bind {
        source: init.to_owned(),
        target: INIT.to_owned(),
        read_only: true,
    };
    spec.mounts_mut().get_or_insert_default().push(bind(&init));
    if let Some(process) = spec.process_mut() {
        let mut args = [INIT, "--"].map(str::to_owned).to_vec();
        args.extend(process.args().iter().flatten().cloned());
        process.set_args(Some(args));
    }
}

fn mount(target: &str, kind: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(target.into());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.to_owned()));
    mount.set_options(Some(options.iter().map(|&o| o.to_owned()).collect()));
    mount
}

/// The kernel's file systems, then what the user mounts, the shallow ones first: one may lie in
/// another.
fn mounts(options: &Options, binds: &[Bind]) -> Vec<Mount> {
    let hidden: &[&str] = &["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| [hidden, more].concat();
    let access = |is_writable| if is_writable { "rw" } else { "ro" };
    let sys = access(options.privileged);
    // systemd divides the container's own.
    let cgroup = access(options.privileged || options.is_systemd);
    let pts = [
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    let dev = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    let shm_size = format!("size={}", options.shm_size.unwrap_or(SHM_SIZE).0);
    let mut shm = mount("/dev/shm", "tmpfs", Path::new("shm"), &with(&["mode=1777"]));
    shm.options_mut().get_or_insert_default().push(shm_size);

    let mut mounts = vec![
        mount("/proc", "proc", Path::new("proc"), hidden),
        mount("/dev", "tmpfs", Path::new("tmpfs"), &dev),
        mount("/dev/pts", "devpts", Path::new("devpts"), &pts),
        mount("/sys", "sysfs", Path::new("sysfs"), &with(&[sys])),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            Path::new("cgroup"),
            &with(&["relatime", cgroup]),
        ),
        mount("/dev/mqueue", "mqueue", Path::new("mqueue"), hidden),
        shm,
    ];
    let mut users: Vec<Mount> = binds.iter().map(bind).collect();
    let memory = options.mounts().filter_map(|mount| match &mount.kind {
        crate::options::Kind::Tmpfs(tmpfs) => Some((tmpfs, mount.read_only)),
        _ => None,
    });
    users.extend(
        options
            .tmpfs
            .iter()
            .map(|t| (t, false))
            .chain(memory)
            .map(tmpfs),
    );
    users.sort_by_key(|mount| mount.destination().components().count());
    mounts.extend(users);
    mounts
}

fn bind(bind: &Bind) -> Mount {
    let access = if bind.read_only { "ro" } else { "rw" };
    mount(
        &bind.target,
        "bind",
        &bind.source,
        &["rbind", "rprivate", access],
    )
}

fn tmpfs((tmpfs, read_only): (&Tmpfs, bool)) -> Mount {
    let mut all = mount(
        &tmpfs.target,
        "tmpfs",
        Path::new("tmpfs"),
        &["nosuid", "nodev"],
    );
    let options = all.options_mut().get_or_insert_default();
    // As Docker: not executable unless asked for.
    if !tmpfs.options.iter().any(|option| option == "exec") {
        options.push("noexec".into());
    }
    if read_only {
        options.push("ro".into());
    }
    options.extend(tmpfs.options.iter().cloned());
    all
}

fn linux(id: &str, options: &Options) -> Result<Linux, SpecError> {
    let mut linux = Linux::default();
    let namespaces = [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Cgroup,
    ];
    let namespace = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    };
    linux.set_namespaces(Some(namespaces.map(namespace).to_vec()));
    linux.set_cgroups_path(Some(limits::path_for_runtime(id)));
    linux.set_resources(Some(resources(options)));
    if options.privileged {
        linux.set_masked_paths(None);
        linux.set_readonly_paths(None);
    }
    if let Some(bad) = options.sysctl.iter().find(|text| !text.contains('=')) {
        return Err(SpecError::Sysctl(bad.clone()));
    }
    linux.set_sysctl(Some(pairs(&options.sysctl).into_iter().collect()));
    Ok(linux)
}

/// Changes a container's limits to those that its options have now; what else is said there stays.
pub fn set_resources(spec: &mut Spec, options: &Options) {
    let linux = spec.linux_mut().get_or_insert_default();
    let resources = linux.resources_mut().get_or_insert_default();
    let mut now = self::resources(options);
    now.set_devices(resources.devices().clone());
    *resources = now;
}

/// The limits that options ask for.
pub fn resources(options: &Options) -> LinuxResources {
    let mut resources = LinuxResources::default();
    if let Some(limit) = options.memory {
        let bytes = i64::try_from(limit.0).unwrap_or(i64::MAX);
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(bytes));
        // Together with memory; so where nothing is said there is no swap.
        memory.set_swap(Some(match options.memory_swap {
            Some(MemorySwap::Unlimited) => -1,
            Some(MemorySwap::Limit(both)) => i64::try_from(both.0).unwrap_or(i64::MAX),
            None => bytes,
        }));
        resources.set_memory(Some(memory));
    }
    let mut cpu = LinuxCpu::default();
    if let Some(cpus) = options.cpus {
        #[expect(clippy::cast_possible_truncation, reason = "a few CPUs at most")]
        cpu.set_quota(Some((cpus * CPU_PERIOD as f64).round() as i64));
        cpu.set_period(Some(CPU_PERIOD));
    }
    cpu.set_shares(options.cpu_shares);
    // The CPUs are the host's; a VM as a whole runs on them.
    if options.isolation == Isolation::Process {
        cpu.set_cpus(options.cpuset_cpus.as_ref().map(ToString::to_string));
    }
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = options.pids_limit.filter(|limit| *limit > 0) {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    if options.privileged {
        devices::allow_all(&mut resources);
    }
    resources
}

#[cfg(test)]
mod tests;
