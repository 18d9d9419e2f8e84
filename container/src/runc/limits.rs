//! Limits of a configuration as files of a cgroup (v2) of the host's, for the VM as a whole.

use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

/// A file, and what is written to it.
type Setting = (String, String);

fn setting(file: &str, value: impl ToString) -> Setting {
    (file.to_owned(), value.to_string())
}

/// A number of bytes; less than 0 is no limit, and 0 nothing.
fn amount(bytes: Option<i64>) -> Option<String> {
    match bytes? {
        0 => None,
        bytes if bytes < 0 => Some("max".into()),
        bytes => Some(bytes.to_string()),
    }
}

/// What holds for the VM as for the container: which CPUs, how much of it is kept or swapped out.
pub(super) fn of(resources: &LinuxResources) -> Vec<Setting> {
    let mut all = Vec::new();
    if let Some(memory) = resources.memory() {
        all.extend(amount(memory.reservation()).map(|low| setting("memory.low", low)));
        all.extend(swap(memory).map(|swap| setting("memory.swap.max", swap)));
    }
    if let Some(cpu) = resources.cpu() {
        for (file, set) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            let set = set.as_ref().filter(|set| !set.is_empty());
            all.extend(set.map(|set| setting(file, set)));
        }
    }
    all.extend(unified(resources, |file| {
        !is_pace(file) && !["memory.max", "memory.high", "pids.max"].contains(&file)
    }));
    all
}

/// How much of it may be swapped out. In the specification that is memory and swap together.
fn swap(memory: &LinuxMemory) -> Option<String> {
    let both = memory.swap().filter(|both| *both != 0)?;
    match memory.limit() {
        _ if both < 0 => Some("max".into()),
        Some(limit) if limit > 0 => both.checked_sub(limit).map(|swap| swap.max(0).to_string()),
        _ => None,
    }
}

/// How fast it may go.
pub(super) fn pace(resources: &LinuxResources) -> Vec<Setting> {
    let mut all = Vec::new();
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares > 0) {
            // From 2..262144 to 1..10000, as runc and crun do.
            let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
            all.push(setting("cpu.weight", weight));
        }
        all.extend(cpu.idle().map(|idle| setting("cpu.idle", idle)));
        all.extend(quota(cpu).map(|quota| setting("cpu.max", quota)));
        all.extend(cpu.burst().map(|burst| setting("cpu.max.burst", burst)));
    }
    all.extend(unified(resources, is_pace));
    all
}

fn is_pace(file: &str) -> bool {
    file.starts_with("cpu.")
}

/// Whether a file of a cgroup names what only the host has: its CPUs, disks, huge pages.
pub(super) fn is_of_the_host(file: &str) -> bool {
    let kinds = ["cpuset.", "hugetlb.", "io.", "rdma.", "misc."];
    kinds.iter().any(|kind| file.starts_with(kind))
}

/// What is not named stays as it is; a quota of 0 names none.
fn quota(cpu: &LinuxCpu) -> Option<String> {
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    let quota = quota.map(|quota| match quota {
        quota if quota > 0 => quota.to_string(),
        _ => "max".into(),
    });
    match (quota, period) {
        (None, None) => None,
        (Some(quota), None) => Some(quota),
        (quota, Some(period)) => Some(format!("{} {period}", quota.unwrap_or("max".into()))),
    }
}

fn unified(
    resources: &LinuxResources,
    is_wanted: impl Fn(&str) -> bool,
) -> impl Iterator<Item = Setting> {
    let all = resources.unified().iter().flatten();
    let sound = |file: &str| !file.contains('/') && !file.starts_with('.');
    all.filter(move |(file, _)| sound(file) && is_wanted(file))
        .map(|(file, value)| (file.clone(), value.clone()))
}

/// What names the host's own disks and huge pages, and so holds here alone. `dir`: the cgroup.
pub(super) fn of_the_host(dir: &Path, resources: &LinuxResources) -> Vec<Setting> {
    let has = |file: &str| dir.join(file).exists();
    let mut all = Vec::new();
    for page in resources.hugepage_limits().iter().flatten() {
        let reserved = format!("hugetlb.{}.rsvd.max", page.page_size());
        if has(&reserved) {
            all.push((reserved, page.limit().to_string()));
        }
        let file = format!("hugetlb.{}.max", page.page_size());
        all.push((file, page.limit().to_string()));
    }
    if let Some(block) = resources.block_io() {
        block_io(block, has("io.bfq.weight"), &mut all);
    }
    all
}

/// `has_bfq`: the scheduler has its own file for weights, in the specification's numbers.
fn block_io(block: &LinuxBlockIo, has_bfq: bool, all: &mut Vec<Setting>) {
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        all.push(match has_bfq {
            true => setting("io.bfq.weight", weight),
            // From 10..1000 to 1..10000, as runc and crun do.
            false => setting(
                "io.weight",
                1 + u32::from(weight).saturating_sub(10) * 9999 / 990,
            ),
        });
    }
    for device in block.weight_device().iter().flatten().filter(|_| has_bfq) {
        if let Some(weight) = device.weight() {
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            all.push(setting("io.bfq.weight", value));
        }
    }
    let mut throttle = |key: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        all.extend(devices.iter().flatten().map(|device| {
            let (major, minor) = (device.major(), device.minor());
            setting("io.max", format!("{major}:{minor} {key}={}", device.rate()))
        }));
    };
    throttle("rbps", block.throttle_read_bps_device());
    throttle("wbps", block.throttle_write_bps_device());
    throttle("riops", block.throttle_read_iops_device());
    throttle("wiops", block.throttle_write_iops_device());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> LinuxResources {
        crate::json::from_value(json).unwrap()
    }

    fn lines(all: &[Setting]) -> Vec<String> {
        all.iter()
            .map(|(file, value)| format!("{file}={value}"))
            .collect()
    }

    /// If it fails, the VM of a container may take more of the host than was said.
    #[test]
    fn limits_become_files() {
        let resources = read(serde_json::json!({
            "memory": {"limit": 50, "swap": 80, "reservation": 20},
            "cpu": {"shares": 1024, "cpus": "0-1", "quota": 5000, "period": 10000},
            "unified": {"memory.max": "9", "pids.max": "5", "../x.y": "1"},
        }));
        let expected = ["memory.low=20", "memory.swap.max=30", "cpuset.cpus=0-1"];
        assert_eq!(lines(&of(&resources)), expected);
        let expected = ["cpu.weight=39", "cpu.max=5000 10000"];
        assert_eq!(lines(&pace(&resources)), expected);
        let more = read(serde_json::json!({"cpu": {"quota": -1, "idle": 1},
            "unified": {"cpu.weight": "42", "memory.min": "4096"}}));
        assert_eq!(lines(&of(&more)), ["memory.min=4096"]);
        let expected = ["cpu.idle=1", "cpu.max=max", "cpu.weight=42"];
        assert_eq!(lines(&pace(&more)), expected);
        let none = read(serde_json::json!({"cpu": {"quota": 0, "shares": 0}, "memory": {}}));
        assert!(of(&none).is_empty() && pace(&none).is_empty());
    }

    /// If it fails, limits for the host's disks and huge pages hold nowhere.
    #[test]
    fn limits_of_the_hosts_own() {
        let resources = read(serde_json::json!({
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
            "blockIO": {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 9}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 1, "rate": 6}]},
        }));
        let found = lines(&of_the_host(Path::new("/nothing"), &resources));
        let expected = [
            "hugetlb.2MB.max=4096",
            "io.weight=4950",
            "io.max=8:0 rbps=7",
            "io.max=8:1 wiops=6",
        ];
        assert_eq!(found, expected);
        let mut bfq = Vec::new();
        block_io(resources.block_io().as_ref().unwrap(), true, &mut bfq);
        assert_eq!(
            lines(&bfq)[..2],
            ["io.bfq.weight=500", "io.bfq.weight=8:0 9"]
        );
    }
}
