//! The cgroup of a container on the host, which engines name and read: the VM and all that serves it
//! are in it. The container's own limits hold in the guest; here the VM is kept to them as a whole.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;

const ROOT: &str = "/sys/fs/cgroup";
/// How long processes that were killed may take to leave.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the monitor, the file-system process and the shim have beyond the guest's memory, and the
/// kernel for them.
const BESIDE: u64 = 96 << 20;

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

/// The directory of the cgroup that a configuration names; none where there are none to be made: the
/// host has no cgroup v2, or we are not root, or none is named.
pub(super) fn find(path: Option<&Path>, systemd: bool) -> Result<Option<PathBuf>, CgroupError> {
    let is_v2 = Path::new(ROOT).join("cgroup.controllers").exists();
    let Some(path) = path.filter(|_| is_v2 && rustix::process::geteuid().is_root()) else {
        return Ok(None);
    };
    let bad = |why| CgroupError::Path {
        path: path.to_owned(),
        why,
    };
    let below = match systemd {
        true => of_systemd(&path.to_string_lossy())
            .ok_or_else(|| bad("SLICE:PREFIX:NAME is expected with --systemd-cgroup"))?,
        false => path.to_owned(),
    };
    let mut dir = PathBuf::from(ROOT);
    for step in below.components() {
        match step {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => dir.push(name),
            _ => return Err(bad("it leads out of the cgroups")),
        }
    }
    Ok((dir != Path::new(ROOT)).then_some(dir))
}

/// The path of a scope in a slice, as systemd lays it out: `a-b.slice` lies in `a.slice`.
fn of_systemd(text: &str) -> Option<PathBuf> {
    let (slice, rest) = text.split_once(':')?;
    let (prefix, name) = rest.split_once(':')?;
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let words = slice.strip_suffix(".slice")?;
    let mut path = PathBuf::new();
    let mut so_far = String::new();
    for word in words.split('-').filter(|word| !word.is_empty()) {
        so_far = match so_far.as_str() {
            "" => word.to_owned(),
            before => format!("{before}-{word}"),
        };
        path.push(format!("{so_far}.slice"));
    }
    if name.is_empty() || name.contains('/') || prefix.contains('/') {
        return None;
    }
    let scope = match prefix {
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    };
    Some(path.join(scope))
}

/// Makes it, with limits: `vm`, bytes of the VM's memory, and what is said of CPUs.
pub(super) fn make(dir: &Path, vm: u64, resources: &LinuxResources) -> Result<(), CgroupError> {
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
        for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
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
    for (file, value) in limits(vm, resources) {
        match fs::write(dir.join(file), value) {
            // No such controller here.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {}
            done => done.map_err(kernel("limit"))?,
        }
    }
    Ok(())
}

fn limits(vm: u64, resources: &LinuxResources) -> Vec<(&'static str, String)> {
    let mut all = vec![("memory.max", vm.saturating_add(BESIDE).to_string())];
    let Some(cpu) = resources.cpu() else {
        return all;
    };
    if let Some(set) = cpu.cpus().as_ref().filter(|set| !set.is_empty()) {
        all.push(("cpuset.cpus", set.clone()));
    }
    if let Some(set) = cpu.mems().as_ref().filter(|set| !set.is_empty()) {
        all.push(("cpuset.mems", set.clone()));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
        // From 2..262144 to 1..10000, as runc and crun do.
        let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
        all.push(("cpu.weight", weight.to_string()));
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

/// Kills what is left in it, and removes it. One that is gone is gone.
pub(super) fn remove(dir: &Path) -> Result<(), CgroupError> {
    let _ = fs::write(dir.join("cgroup.kill"), "1");
    let until = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                thread::sleep(Duration::from_millis(2));
            }
            done => {
                return done.map_err(|source| CgroupError::Kernel {
                    action: "remove",
                    path: dir.to_owned(),
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, containers are not where engines look for them, or anywhere on the host.
    #[test]
    fn systemds_paths_are_understood() {
        for (text, path) in [
            ("machine.slice:libpod:ab", "machine.slice/libpod-ab.scope"),
            ("a-b.slice:cri:x", "a.slice/a-b.slice/cri-x.scope"),
            (":docker:x", "system.slice/docker-x.scope"),
            ("a.slice::x", "a.slice/x.scope"),
        ] {
            assert_eq!(of_systemd(text).as_deref(), Some(Path::new(path)), "{text}");
        }
        for bad in [
            "",
            "/a/b",
            "a.slice:b",
            "a:b:c",
            "a.slice:b:../c",
            "a.slice:b:",
        ] {
            assert_eq!(of_systemd(bad), None, "{bad}");
        }
    }

    /// If it fails, the VM of a container may take more of the host than was said, or dies of less.
    #[test]
    fn the_vm_is_limited_as_a_whole() {
        let resources = serde_json::json!({"cpu": {"shares": 1024, "cpus": "0-1"}});
        let all = limits(1 << 30, &serde_json::from_value(resources).unwrap());
        let all: std::collections::HashMap<_, _> = all.into_iter().collect();
        assert_eq!(all["memory.max"], ((1_u64 << 30) + BESIDE).to_string());
        assert_eq!(
            (all["cpuset.cpus"].as_str(), all["cpu.weight"].as_str()),
            ("0-1", "39")
        );
    }
}
