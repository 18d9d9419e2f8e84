//! A container's cgroup (v2): limits, figures, freezing, and the end of all that is in it.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::api::StatsResponse;
use cofferdam_agent_protocol::cgroup as figures;

use crate::channel::Task;
use crate::error::{Context, Error, Result};
use crate::spec::{Cpu, Memory, Resources, Throttle};

/// Where the guest's cgroups are.
pub const ROOT: &str = "/sys/fs/cgroup";

/// How long processes that were killed, or are being frozen, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets the containers' cgroups have all controllers that the kernel has.
pub fn enable_controllers() -> Result<()> {
    let all = fs::read_to_string(format!("{ROOT}/cgroup.controllers"))
        .context(|| "read the controllers of cgroups".into())?;
    let wanted: Vec<_> = all
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    fs::write(format!("{ROOT}/cgroup.subtree_control"), wanted.join(" "))
        .context(|| "enable the controllers of cgroups".into())
}

/// Joins the cgroup `path`, or where the container's first process is if it took that one apart.
pub fn join(path: &str, task: &Task) -> Result<()> {
    let doing = || format!("join the cgroup {path}");
    match (fs::write(format!("{path}/cgroup.procs"), "0"), task) {
        // Cgroups with controllers for others have no processes of their own.
        (Err(error), Task::Exec { init, .. }) if error.raw_os_error() == Some(libc::EBUSY) => {
            let all = fs::read_to_string(format!("/proc/{init}/cgroup")).context(doing)?;
            let below = all
                .lines()
                .find_map(|line| line.strip_prefix("0::"))
                .unwrap_or("/");
            fs::write(format!("{ROOT}{below}/cgroup.procs"), "0").context(doing)
        }
        (result, _) => result.context(doing),
    }
}

/// One container's. Removed by [`Cgroup::delete`].
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the one of the container `id` with its limits.
    pub fn create(id: &str, resources: Option<&Resources>) -> Result<Self> {
        let path = Path::new(ROOT).join(format!("container-{id}"));
        fs::create_dir(&path).context(|| format!("make the cgroup {}", path.display()))?;
        let cgroup = Self { path };
        if let Some(resources) = resources
            && let Err(error) = cgroup.apply(resources)
        {
            let _ = fs::remove_dir(&cgroup.path);
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of one below it, as a path from it.
    pub fn below(&self, path: &str) -> Result<String> {
        let what = || format!("cgroup {path}");
        let steps = Path::new(path).components();
        let mut steps =
            steps.filter(|step| !matches!(step, Component::RootDir | Component::CurDir));
        if path.contains(':') || !steps.all(|step| matches!(step, Component::Normal(_))) {
            let why = "a path below the container's is expected; cgroup v2 has no others";
            return Err(Error::invalid(what(), why));
        }
        let dir = self.path.join(path.trim_start_matches('/'));
        if !dir.is_dir() {
            return Err(Error::invalid(what(), "there is none in the container"));
        }
        Ok(dir.display().to_string())
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.path.join(file), value)
            .context(|| format!("set {file} of the container's cgroup to {value:?}"))
    }

    /// Sets what the resources name.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        for (file, value) in settings(resources)? {
            self.write(&file, &value)?;
        }
        if let Some(rules) = resources
            .devices
            .as_deref()
            .filter(|rules| !rules.is_empty())
        {
            crate::device_rules::attach(&self.path, rules)?;
        }
        Ok(())
    }

    /// All processes in it and below.
    pub fn pids(&self) -> Result<Vec<u32>> {
        figures::pids(&self.path).context(|| "read the container's processes".into())
    }

    /// What it uses.
    pub fn stats(&self) -> StatsResponse {
        figures::stats(&self.path)
    }

    /// Kills all that is in it.
    pub fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Freezes or thaws it, and waits until it is so.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let wanted = u64::from(frozen);
        self.write("cgroup.freeze", &wanted.to_string())?;
        let until = Instant::now() + PATIENCE;
        while figures::keys(&self.read("cgroup.events")).get("frozen") != Some(&wanted) {
            if Instant::now() > until {
                let what = if frozen { "freeze" } else { "thaw" };
                return Err(Error::invalid(
                    "cgroup.events",
                    format!("the processes do not {what}"),
                ));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Removes it and all below, once the processes are gone.
    pub fn delete(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let Ok(tree) = figures::tree(&self.path) else {
                return Ok(());
            };
            let result = tree.iter().try_for_each(fs::remove_dir);
            match result {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error)
                    if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until =>
                {
                    thread::sleep(Duration::from_millis(1));
                }
                result => {
                    return result.context(|| format!("remove the cgroup {}", self.path.display()));
                }
            }
        }
    }

    /// How many processes the kernel killed in it for want of memory.
    pub fn oom_kills(&self) -> u64 {
        figures::keys(&self.read("memory.events"))
            .get("oom_kill")
            .copied()
            .unwrap_or(0)
    }

    /// What a file says; nothing if its controller is not there.
    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path.join(file)).unwrap_or_default()
    }
}

/// Files and what is written to them, in an order that the kernel takes.
fn settings(resources: &Resources) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    if let Some(memory) = &resources.memory {
        memory_settings(memory, &mut all)?;
    }
    if let Some(cpu) = &resources.cpu {
        cpu_settings(cpu, &mut all);
    }
    if let Some(pids) = &resources.pids {
        let limit = if pids.limit > 0 {
            pids.limit.to_string()
        } else {
            "max".into()
        };
        all.push(("pids.max".into(), limit));
    }
    if let Some(block) = &resources.block_io {
        if let Some(weight) = block.weight.filter(|weight| *weight != 0) {
            let weight = figures::io_weight(weight);
            all.push(("io.weight".into(), format!("default {weight}")));
        }
        for (key, devices) in [
            ("rbps", &block.throttle_read_bps_device),
            ("wbps", &block.throttle_write_bps_device),
            ("riops", &block.throttle_read_iops_device),
            ("wiops", &block.throttle_write_iops_device),
        ] {
            for Throttle { major, minor, rate } in devices.iter().flatten() {
                all.push(("io.max".into(), format!("{major}:{minor} {key}={rate}")));
            }
        }
    }
    for limit in resources.hugepage_limits.iter().flatten() {
        let file = format!("hugetlb.{}.max", limit.page_size);
        all.push((checked(file)?, limit.limit.to_string()));
    }
    for (file, value) in resources.unified.iter().flatten() {
        all.push((checked(file.clone())?, value.clone()));
    }
    Ok(all)
}

/// The name of a file in a cgroup, and of none elsewhere.
fn checked(file: String) -> Result<String> {
    if file.contains('/') || !file.contains('.') || file.starts_with('.') {
        return Err(Error::invalid(
            "linux.resources",
            format!("{file} is no file of a cgroup"),
        ));
    }
    Ok(file)
}

fn memory_settings(memory: &Memory, all: &mut Vec<(String, String)>) -> Result<()> {
    let amount = |bytes: i64| {
        if bytes < 0 {
            "max".to_owned()
        } else {
            bytes.to_string()
        }
    };
    // In the specification the swap is memory and swap together; 0 is unset.
    if let Some(both) = memory.swap.filter(|both| *both != 0) {
        let swap = match memory.limit {
            _ if both < 0 => both,
            Some(limit) if limit > 0 && both >= limit => both - limit,
            _ => {
                let why = "the limit of memory and swap is below that of memory, or alone";
                return Err(Error::invalid("linux.resources.memory.swap", why));
            }
        };
        all.push(("memory.swap.max".into(), amount(swap)));
    }
    if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
        all.push(("memory.max".into(), amount(limit)));
    }
    if let Some(low) = memory.reservation.filter(|low| *low != 0) {
        all.push(("memory.low".into(), amount(low)));
    }
    if memory.disable_oom_killer == Some(true) {
        let why = "cgroup v2 cannot do without it";
        return Err(Error::invalid(
            "linux.resources.memory.disableOOMKiller",
            why,
        ));
    }
    Ok(())
}

fn cpu_settings(cpu: &Cpu, all: &mut Vec<(String, String)>) {
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        all.push(("cpu.weight".into(), figures::cpu_weight(shares).to_string()));
    }
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = match cpu.quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".into(),
        };
        let period = cpu.period.filter(|period| *period != 0).unwrap_or(100_000);
        all.push(("cpu.max".into(), format!("{quota} {period}")));
    }
    if let Some(burst) = cpu.burst {
        all.push(("cpu.max.burst".into(), burst.to_string()));
    }
    if let Some(idle) = cpu.idle {
        all.push(("cpu.idle".into(), idle.to_string()));
    }
    for (file, set) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if let Some(set) = set.as_ref().filter(|set| !set.is_empty()) {
            all.push((file.into(), set.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<(String, String)>> {
        settings(&serde_json::from_str(text).unwrap())
    }

    /// If it fails, a container has other limits than it was given.
    #[test]
    fn limits_become_files() {
        let all = parse(
            r#"{"memory":{"limit":1048576,"swap":3145728,"reservation":-1},"cpu":{"shares":1024,
            "quota":50000,"cpus":"0-1"},"pids":{"limit":0},"blockIO":{"weight":500,
            "throttleWriteBpsDevice":[{"major":253,"minor":0,"rate":9}]},
            "unified":{"memory.high":"5"}}"#,
        )
        .unwrap();
        let all: Vec<_> = all
            .iter()
            .map(|(file, value)| format!("{file}={value}"))
            .collect();
        assert_eq!(
            all,
            [
                "memory.swap.max=2097152",
                "memory.max=1048576",
                "memory.low=max",
                "cpu.weight=100",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "pids.max=max",
                "io.weight=default 4950",
                "io.max=253:0 wbps=9",
                "memory.high=5",
            ]
        );
    }

    /// If it fails, a limit that cannot be kept is passed over, or a file elsewhere is written.
    #[test]
    fn what_cannot_be_kept_is_refused() {
        for text in [
            r#"{"unified":{"../x.y":"5"}}"#,
            r#"{"unified":{"x":"5"}}"#,
            r#"{"memory":{"swap":5}}"#,
            r#"{"memory":{"limit":50,"swap":5}}"#,
            r#"{"memory":{"disableOOMKiller":true}}"#,
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    /// If it fails, a process gets out of its container's cgroup, or cannot be in one below.
    #[test]
    fn cgroups_below_are_found() {
        let cgroup = Cgroup {
            path: "/proc".into(),
        };
        assert_eq!(cgroup.below("").unwrap(), "/proc/");
        assert_eq!(cgroup.below("/").unwrap(), "/proc/");
        assert_eq!(cgroup.below("/self").unwrap(), "/proc/self");
        for bad in ["..", "self/../..", "cpu:self", "nothing"] {
            assert!(cgroup.below(bad).is_err(), "{bad}");
        }
    }
}
