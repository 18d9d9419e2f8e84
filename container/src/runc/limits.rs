//! Limits of a configuration as files of a cgroup (v2) of the host's, for the VM as a whole.

use std::path::Path;

use cofferdam_agent_protocol::cgroup::{cpu_weight, io_weight};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

/// A file, and what is written to it.
type Setting = (String, String);

/// Names in the resources that would become paths to other files, or to none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadName {
    /// Of a size.
    #[error("{0:?} is no size of huge pages; they are named as in 64KB, 2MB or 1GB")]
    PageSize(String),
    /// Of a file.
    #[error("{0:?} is no file of a cgroup")]
    File(String),
}

impl BadName {
    /// Where in the configuration it is.
    pub(super) fn field(&self) -> &'static str {
        match self {
            Self::PageSize(_) => "linux.resources.hugepageLimits.pageSize",
            Self::File(_) => "linux.resources.unified",
        }
    }
}

/// Looks at the names that become a cgroup's files.
pub(super) fn check(resources: &LinuxResources) -> Result<(), BadName> {
    let mut pages = resources.hugepage_limits().iter().flatten();
    if let Some(page) = pages.find(|page| !is_page_size(page.page_size())) {
        return Err(BadName::PageSize(page.page_size().clone()));
    }
    let mut files = resources.unified().iter().flatten().map(|(file, _)| file);
    let is_file = |file: &str| file.contains('.') && !file.contains('/') && !file.starts_with('.');
    match files.find(|file| !is_file(file)) {
        Some(file) => Err(BadName::File(file.clone())),
        None => Ok(()),
    }
}

/// As the kernel names them.
fn is_page_size(text: &str) -> bool {
    let units = ["KB", "MB", "GB"];
    let number = units.iter().find_map(|unit| text.strip_suffix(unit));
    number.is_some_and(|number| {
        !number.starts_with('0')
            && !number.is_empty()
            && number.bytes().all(|digit| digit.is_ascii_digit())
    })
}

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
            all.push(setting("cpu.weight", cpu_weight(shares)));
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
    all.filter(move |(file, _)| is_wanted(file))
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
            false => setting("io.weight", io_weight(weight)),
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
            "unified": {"memory.max": "9", "pids.max": "5"},
        }));
        let expected = ["memory.low=20", "memory.swap.max=30", "cpuset.cpus=0-1"];
        assert_eq!(lines(&of(&resources)), expected);
        let expected = ["cpu.weight=100", "cpu.max=5000 10000"];
        assert_eq!(lines(&pace(&resources)), expected);
        let more = read(serde_json::json!({"cpu": {"quota": -1, "idle": 1},
            "unified": {"cpu.weight": "42", "memory.min": "4096"}}));
        assert_eq!(lines(&of(&more)), ["memory.min=4096"]);
        let expected = ["cpu.idle=1", "cpu.max=max", "cpu.weight=42"];
        assert_eq!(lines(&pace(&more)), expected);
        let none = read(serde_json::json!({"cpu": {"quota": 0, "shares": 0}, "memory": {}}));
        assert!(of(&none).is_empty() && pace(&none).is_empty());
    }

    /// If it fails, who writes a configuration has files written that are not the cgroup's, or a limit is
    /// passed over.
    #[test]
    fn names_that_are_paths_are_refused() {
        let page = |size: &str| {
            let limits = serde_json::json!([{"pageSize": size, "limit": 1}]);
            check(&read(serde_json::json!({"hugepageLimits": limits})))
        };
        for good in ["64KB", "2MB", "1GB", "16GB"] {
            assert_eq!(page(good), Ok(()), "{good}");
        }
        for bad in [
            "", "MB", "2", "2mb", "02MB", "-2MB", "2MB/../x", "../2MB", "2 MB", "2TB",
        ] {
            let error = page(bad).unwrap_err();
            assert!(error.field().ends_with("pageSize"), "{bad}: {error}");
        }
        let unified = |file: &str| check(&read(serde_json::json!({"unified": {file: "1"}})));
        assert_eq!(unified("hugetlb.2MB.max"), Ok(()));
        for bad in ["../x.y", "io./../x", ".x.y", "x", "", "a/b.c"] {
            let error = unified(bad).unwrap_err();
            assert!(error.field().ends_with("unified"), "{bad}: {error}");
        }
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
