//! Limits of what a container's VM takes of the host: a cgroup (version 2) for its monitor and all that
//! the monitor starts. The container's own limits hold in the guest; these hold if the guest is no
//! guest any more.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use cofferdam_agent_protocol::cgroup::cpu_weight;
use rustix::fs::{Access, access, statfs};

/// Where cgroups are.
const ROOT: &str = "/sys/fs/cgroup";
/// Of the file system there, if it is version 2 (linux/magic.h).
const CGROUP2: i64 = 0x6367_7270;
/// The group of all our groups.
const OURS: &str = "cofferdam";
/// What a monitor and its helpers need beside the guest's memory: their own, page tables, and room for
/// pages of files that are on their way, in bytes.
const OVERHEAD: u64 = 128 << 20;
/// Threads and processes of a monitor and its helpers; far more than they have.
const PIDS: u32 = 512;
/// In microseconds, as of the kernel's default.
const PERIOD: u32 = 100_000;

/// Why there is no cgroup for a VM.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// None that is version 2, or none that is ours.
    #[error("there is no cgroup (version 2) that this user may divide")]
    None,
    /// One that cannot be made.
    #[error("cannot make the cgroup {path}")]
    Make {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What a VM may take.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Names the group.
    pub name: String,
    /// Bytes of the guest.
    pub memory: u64,
    /// CPUs; as many as there are where nothing is said.
    pub cpus: Option<f64>,
    /// The share of CPUs that are busy, as Docker counts.
    pub cpu_shares: Option<u64>,
}

/// The cgroup of a VM. Dropped, all that is in it is killed, and it goes.
#[derive(Debug)]
pub struct HostCgroup {
    path: PathBuf,
    /// The directory, into which processes are born.
    pub dir: File,
}

impl HostCgroup {
    /// Makes it. A limit whose controller is not there for us is left out, and logged.
    pub fn make(limits: &Limits) -> Result<Self, LimitError> {
        let base = base().ok_or(LimitError::None)?;
        let all = base.join(OURS);
        let path = all.join(&limits.name);
        let made = || {
            fs::create_dir_all(&all)?;
            for group in [&base, &all] {
                // One by one: those that are there already, or not for us, keep none of the others away.
                for controller in ["+memory", "+cpu", "+pids"] {
                    let _ = fs::write(group.join("cgroup.subtree_control"), controller);
                }
            }
            match fs::create_dir(&path) {
                // Of a life that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            File::open(&path)
        };
        let dir = made().map_err(|source: io::Error| LimitError::Make {
            path: path.clone(),
            source,
        })?;
        for (file, value) in values(limits) {
            if let Err(error) = fs::write(path.join(file), &value) {
                log::warn!("the host does not limit the VM by {file}: {error}");
            }
        }
        Ok(Self { path, dir })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for HostCgroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Changes how many CPUs a VM may take, whose cgroup that is.
pub fn set_cpus(path: &Path, cpus: f64) -> io::Result<()> {
    fs::write(path.join("cpu.max"), quota(cpus))
}

fn quota(cpus: f64) -> String {
    format!("{:.0} {PERIOD}", cpus * f64::from(PERIOD))
}

/// The cgroup of a container on the host's kernel, as its runtime takes it.
pub fn path_for_runtime(id: &str) -> PathBuf {
    Path::new("/").join(OURS).join(id)
}

/// Where that is on the host.
pub fn of_process(id: &str) -> PathBuf {
    Path::new(ROOT).join(OURS).join(id)
}

/// Kills what is in a cgroup of ours, and removes it.
pub fn remove(path: &Path) {
    // Read from a file: it is nobody else's.
    if path.parent().and_then(Path::file_name) != Some(OURS.as_ref()) {
        return;
    }
    let _ = fs::write(path.join("cgroup.kill"), "1");
    // The killed are gone in a moment.
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                thread::sleep(Duration::from_millis(5));
            }
            _ => return,
        }
    }
    log::warn!("the cgroup {} is still in use", path.display());
}

/// What is written where.
fn values(limits: &Limits) -> Vec<(&'static str, String)> {
    let memory = limits.memory.saturating_add(OVERHEAD);
    let mut all = vec![
        ("memory.max", memory.to_string()),
        ("pids.max", PIDS.to_string()),
        // Killed as one: half a VM is none.
        ("memory.oom.group", "1".to_owned()),
    ];
    if let Some(cpus) = limits.cpus {
        all.push(("cpu.max", quota(cpus)));
    }
    if let Some(shares) = limits.cpu_shares {
        all.push(("cpu.weight", cpu_weight(shares).to_string()));
    }
    all
}

/// The cgroup below which ours are: of root the first one, of others the first of theirs that was given
/// to them, as systemd does for a user's services.
fn base() -> Option<PathBuf> {
    let root = Path::new(ROOT);
    let kind = statfs(root).ok()?.f_type;
    if kind != CGROUP2 {
        return None;
    }
    if rustix::process::geteuid().is_root() {
        return Some(root.to_owned());
    }
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let is_ours = |path: &Path| {
        let writable = |path: &Path| access(path, Access::WRITE_OK).is_ok();
        writable(path) && writable(&path.join("cgroup.procs"))
    };
    let chain = ancestors(&own)?;
    chain
        .into_iter()
        .map(|path| root.join(path))
        .find(|path| is_ours(path))
}

/// The cgroups that a process is in, the outermost first, by the text of /proc/self/cgroup.
fn ancestors(text: &str) -> Option<Vec<PathBuf>> {
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut all: Vec<PathBuf> = Path::new(own).ancestors().map(Path::to_owned).collect();
    all.reverse();
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a VM gets less than its container was promised, or all of the host.
    #[test]
    fn the_limits_have_room_for_the_monitor() {
        let limits = Limits {
            name: "x".into(),
            memory: 512 << 20,
            cpus: Some(1.5),
            cpu_shares: Some(1024),
        };
        let all = values(&limits);
        assert!(all.contains(&("memory.max", (640 << 20).to_string())));
        assert!(all.contains(&("cpu.max", "150000 100000".into())));
        let none = Limits {
            cpus: None,
            cpu_shares: None,
            ..limits
        };
        assert!(!values(&none).iter().any(|(file, _)| *file == "cpu.max"));
    }

    /// If it fails, cgroups are made where they are another's.
    #[test]
    fn the_outermost_comes_first() {
        let all = ancestors("1:name=x:/y\n0::/user.slice/a.scope\n").unwrap();
        assert_eq!(
            all,
            ["", "user.slice", "user.slice/a.scope"].map(PathBuf::from)
        );
        assert_eq!(ancestors("1:name=x:/y\n"), None);
        // What is not ours is not touched.
        remove(Path::new("/sys/fs/cgroup/system.slice"));
    }
}
