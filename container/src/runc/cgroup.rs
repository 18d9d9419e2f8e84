//! The cgroup of a container on the host, which engines name and read: the VM and all that serves it
//! are in it. The container's own limits hold in the guest; here the VM is kept to them as a whole, as
//! far as they mean the same there: what it takes of CPUs and of the host's disks, what of its memory is
//! swapped or kept. Its memory is the container's and more, and its threads are not the container's.

use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::cgroup::{cpu_weight, pids, tree};
use oci_spec::runtime::LinuxResources;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::limits;

const ROOT: &str = "/sys/fs/cgroup";
/// How long processes that were killed may take to leave.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the monitor, the file-system process and the shim have beyond the guest's memory, and the
/// kernel for them.
const BESIDE: u64 = 96 << 20;
/// Far more than the monitor's threads, and those of a few hundred processes that stand for an exec.
const TASKS: u64 = 4096;

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
pub(super) enum CgroupError {
    /// A path that is none.
    #[error("linux.cgroupsPath {path}: {why}")]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Engines and people look for runc's words.
    #[error("container's cgroup is not empty: {count} process(es) found in {path}")]
    Taken {
        /// Which.
        path: PathBuf,
        /// How many there are.
        count: usize,
    },
    /// What joins it would stand still.
    #[error("container's cgroup unexpectedly frozen: {0}")]
    Frozen(PathBuf),
    /// The kernel says no.
    #[error("cannot {action} the cgroup {path}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// With which.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Whether there are cgroups to be made: the host has version 2.
pub(super) fn are_there() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// That of a process.
pub(super) fn of(pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(ROOT).join(path))
}

/// The directory of a cgroup, by its path; none if that is the first of all.
pub(super) fn directory(path: &Path) -> Result<Option<PathBuf>, CgroupError> {
    let bad = |why| CgroupError::Path {
        path: path.to_owned(),
        why,
    };
    let mut dir = PathBuf::from(ROOT);
    for step in path.components() {
        match step {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => dir.push(name),
            _ => return Err(bad("it leads out of the cgroups")),
        }
    }
    Ok((dir != Path::new(ROOT)).then_some(dir))
}

/// Refuses one that somebody else is in, or below: it would have the container's limits, and `delete` could
/// not remove it. And one that is frozen.
pub(super) fn check(dir: &Path) -> Result<(), CgroupError> {
    let says = |dir: &Path, line: &str| {
        let text = fs::read_to_string(dir.join("cgroup.events"));
        text.is_ok_and(|text| text.lines().any(|found| found == line))
    };
    if says(dir, "populated 1") {
        let count = pids(dir).map_or(0, |all| all.len());
        let path = dir.to_owned();
        return Err(CgroupError::Taken { path, count });
    }
    // One that is not there yet is frozen if that is which it will be in.
    match dir.ancestors().find(|dir| dir.exists()) {
        Some(dir) if says(dir, "frozen 1") => Err(CgroupError::Frozen(dir.to_owned())),
        _ => Ok(()),
    }
}

/// Makes it, with limits.
pub(super) fn make(dir: &Path, limits: &[Limit]) -> Result<(), CgroupError> {
    let kernel = |action| {
        move |source| CgroupError::Kernel {
            action,
            path: dir.to_owned(),
            source,
        }
    };
    let mut at = PathBuf::from(ROOT);
    for step in dir.strip_prefix(ROOT).unwrap_or(dir).components() {
        // What a parent cannot hand down is not limited here; in the guest it is.
        for controller in ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"] {
            let _ = fs::write(at.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        at.push(step);
        match fs::create_dir(&at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(kernel("make")(error));
            }
            _ => {}
        }
    }
    // The quota is for the container, which is not there before its VM has booted.
    let now = limits
        .iter()
        .filter(|limit| !matches!(limit, Limit::Quota { .. }));
    write_all(dir, now.map(Limit::file))
}

/// Sets what else `resources` name, of a container that is made, or is there: its memory stays what it is.
pub(super) fn apply(dir: &Path, resources: &LinuxResources) -> Result<(), CgroupError> {
    write_all(dir, limits::of(resources))?;
    write_exactly(dir, limits::of_the_host(dir, resources))
}

/// Sets how fast it may go, for when it has booted.
pub(super) fn pace(dir: &Path, resources: &LinuxResources) -> Result<(), CgroupError> {
    write_all(dir, limits::pace(resources))
}

/// What holds in the guest all the same where there is no such controller.
fn write_all(
    dir: &Path,
    all: impl IntoIterator<Item = (impl AsRef<str>, String)>,
) -> Result<(), CgroupError> {
    for (file, value) in all {
        match write(dir, file.as_ref(), &value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            done => done.map_err(limit(dir))?,
        }
    }
    Ok(())
}

/// What holds nowhere else.
fn write_exactly(
    dir: &Path,
    all: impl IntoIterator<Item = (String, String)>,
) -> Result<(), CgroupError> {
    all.into_iter()
        .try_for_each(|(file, value)| write(dir, &file, &value))
        .map_err(limit(dir))
}

/// Says which file it was.
fn write(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    // Never another than the kernel made.
    let open = fs::File::options().write(true).open(dir.join(file));
    let written = open.and_then(|mut file| file.write_all(value.as_bytes()));
    written.map_err(|error| io::Error::new(error.kind(), format!("{value:?} to {file}: {error}")))
}

fn limit(dir: &Path) -> impl FnOnce(io::Error) -> CgroupError + '_ {
    move |source| CgroupError::Kernel {
        action: "limit",
        path: dir.to_owned(),
        source,
    }
}

/// A limit of the VM and all that serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// Bytes.
    Memory(u64),
    /// Processes and threads.
    Tasks(u64),
    /// Among others, 1 to 10000.
    Weight(u64),
    /// Microseconds of a CPU in each period.
    Quota { quota: u64, period: u64 },
    /// The host's CPUs, as a list.
    Cpus(String),
    /// The host's memory nodes, as a list.
    Nodes(String),
}

impl Limit {
    /// The file of a cgroup, and what is written to it.
    fn file(&self) -> (&'static str, String) {
        match self {
            Self::Memory(bytes) => ("memory.max", bytes.to_string()),
            Self::Tasks(count) => ("pids.max", count.to_string()),
            Self::Weight(weight) => ("cpu.weight", weight.to_string()),
            Self::Quota { quota, period } => ("cpu.max", format!("{quota} {period}")),
            Self::Cpus(set) => ("cpuset.cpus", set.clone()),
            Self::Nodes(set) => ("cpuset.mems", set.clone()),
        }
    }
}

/// What a VM of `vm` bytes is kept to on the host.
pub(super) fn limits(vm: u64, resources: &LinuxResources) -> Vec<Limit> {
    let mut all = vec![Limit::Memory(vm.saturating_add(BESIDE))];
    // Who wants no limit of them gets none.
    if resources
        .pids()
        .as_ref()
        .is_none_or(|pids| pids.limit() >= 0)
    {
        all.push(Limit::Tasks(TASKS));
    }
    let Some(cpu) = resources.cpu() else {
        return all;
    };
    let is_set = |set: &&String| !set.is_empty();
    all.extend(cpu.cpus().iter().find(is_set).cloned().map(Limit::Cpus));
    all.extend(cpu.mems().iter().find(is_set).cloned().map(Limit::Nodes));
    if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
        all.push(Limit::Weight(cpu_weight(shares)));
    }
    let quota = cpu.quota().and_then(|quota| u64::try_from(quota).ok());
    if let Some(quota) = quota.filter(|quota| *quota > 0) {
        let period = cpu.period().filter(|period| *period > 0);
        let period = period.unwrap_or(100_000);
        all.push(Limit::Quota { quota, period });
    }
    all
}

/// Puts a process into it.
pub(super) fn join(dir: &Path, pid: u32) -> Result<(), CgroupError> {
    fs::write(dir.join("cgroup.procs"), pid.to_string()).map_err(|source| CgroupError::Kernel {
        action: "join",
        path: dir.to_owned(),
        source,
    })
}

/// Removes it and all below, once the container's processes are gone: its VM ended with its shim, and what
/// stands for further processes of it is ended here; `container` is its directory. A cgroup that is gone is
/// gone. Whoever else has come into it lives on, and it stays.
pub(super) fn remove(dir: &Path, container: &Path) -> Result<(), CgroupError> {
    end_own(dir, container);
    let until = Instant::now() + PATIENCE;
    loop {
        let removed = tree(dir).and_then(|all| all.iter().try_for_each(fs::remove_dir));
        let source = match removed {
            Ok(()) => return Ok(()),
            // Gone, or one below has gone in between.
            Err(_) if !dir.exists() => return Ok(()),
            Err(error) if Instant::now() > until => error,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                thread::sleep(Duration::from_millis(2));
                continue;
            }
            Err(error) => error,
        };
        let path = dir.to_owned();
        return Err(match pids(dir).map_or(0, |all| all.len()) {
            0 => CgroupError::Kernel {
                action: "remove",
                path,
                source,
            },
            count => CgroupError::Taken { path, count },
        });
    }
}

/// Kills our processes that have the container's directory among their arguments. One whose output nobody
/// reads would stay.
fn end_own(dir: &Path, container: &Path) {
    let all = pids(dir).unwrap_or_default().into_iter();
    for pid in all.filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
        // Opened before it is looked at: it is not another that gets the signal.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut args = line.split(|byte| *byte == 0);
        if args.any(|arg| arg == container.as_os_str().as_encoded_bytes()) {
            let _ = pidfd_send_signal(&process, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, the VM of a container may take more of the host than was said, or dies of less.
    #[test]
    fn the_vm_is_limited_as_a_whole() {
        let resources = serde_json::json!({
            "cpu": {"shares": 1024, "cpus": "0-1", "mems": "", "quota": 50000}
        });
        let all = limits(1 << 30, &crate::json::from_value(resources).unwrap());
        let all: std::collections::HashMap<_, _> = all.iter().map(Limit::file).collect();
        assert_eq!(all["memory.max"], ((1_u64 << 30) + BESIDE).to_string());
        for (file, value) in [
            ("cpuset.cpus", "0-1"),
            ("cpu.weight", "100"),
            ("cpu.max", "50000 100000"),
        ] {
            assert_eq!(all[file], value);
        }
        assert!(!all.contains_key("cpuset.mems"));
    }
}
