//! What a cgroup (version 2) says of itself, and what it is told.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::api::{BlockIo, StatsResponse};

/// Its directory and all below, those below first.
pub fn tree(cgroup: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let mut rest = vec![cgroup.to_owned()];
    while let Some(path) = rest.pop() {
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                rest.push(entry.path());
            }
        }
        all.push(path);
    }
    all.reverse();
    Ok(all)
}

/// All processes in it and below.
pub fn pids(cgroup: &Path) -> io::Result<Vec<u32>> {
    /// `EOPNOTSUPP` of Linux.
    const NOT_SUPPORTED: i32 = 95;
    let mut all = Vec::new();
    for path in tree(cgroup)? {
        let text = match fs::read_to_string(path.join("cgroup.procs")) {
            // Of a kind that has threads only.
            Err(error) if error.raw_os_error() == Some(NOT_SUPPORTED) => continue,
            result => result?,
        };
        all.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    Ok(all)
}

/// What it uses; nothing of what its controllers do not say.
pub fn stats(cgroup: &Path) -> StatsResponse {
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    // 0 for `max` and for nothing.
    let number = |file: &str| read(file).trim().parse().unwrap_or(0);
    let mut stats = StatsResponse::new();
    stats.memory = number("memory.current");
    stats.memory_peak = number("memory.peak");
    stats.memory_limit = number("memory.max");
    stats.swap = number("memory.swap.current");
    stats.swap_limit = number("memory.swap.max");
    stats.memory_stat = keys(&read("memory.stat"));
    stats.memory_events = keys(&read("memory.events"));
    stats.cpu_stat = keys(&read("cpu.stat"));
    stats.pids = number("pids.current");
    stats.pids_limit = number("pids.max");
    stats.io = read("io.stat").lines().filter_map(block_io).collect();
    stats
}

/// `cpu.weight` (1 to 10000) of the specification's shares (2 to 262144), as runc (1.3.2) and crun (1.24) have
/// it: the least, the default (1024 shares, a weight of 100) and the most of both lie on one curve.
pub fn cpu_weight(shares: u64) -> u64 {
    const MOST: u32 = 262_144;
    let shares = match u32::try_from(shares) {
        Ok(shares) if shares < MOST => shares,
        _ => return 10_000,
    };
    if shares <= 2 {
        return 1;
    }
    let log = f64::from(shares).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(clippy::cast_possible_truncation, reason = "2 to 10000, and whole")]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight
}

/// `io.weight` (1 to 10000) of the specification's weight (10 to 1000), as runc and crun have it.
pub fn io_weight(weight: u16) -> u32 {
    1 + u32::from(weight).saturating_sub(10) * 9999 / 990
}

/// The lines `KEY NUMBER` of a file.
pub fn keys(text: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// A line of io.stat.
fn block_io(line: &str) -> Option<BlockIo> {
    let (device, rest) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let value = |key: &str| {
        let found = rest
            .split(' ')
            .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        found.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    let mut io = BlockIo::new();
    io.major = major.parse().ok()?;
    io.minor = minor.parse().ok()?;
    io.read_bytes = value("rbytes");
    io.write_bytes = value("wbytes");
    io.reads = value("rios");
    io.writes = value("wios");
    Some(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a container has another share of the CPUs than by runc or crun: that is seen where
    /// both run side by side, and by who reads `cpu.weight`.
    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [
            (1, 1),
            (2, 1),
            (3, 2),
            (100, 17),
            (512, 59),
            (1024, 100),
            (22_000, 1204),
            (262_143, 10_000),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
        assert_eq!([10, 500, 1000].map(io_weight), [1, 4950, 10_000]);
    }

    /// If it fails, `stats` shows nothing of disks.
    #[test]
    fn figures_of_disks_are_read() {
        let io = block_io("254:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0").unwrap();
        assert_eq!(
            (io.major, io.minor, io.read_bytes, io.write_bytes),
            (254, 16, 1, 2)
        );
        assert_eq!((io.reads, io.writes), (3, 4));
        assert!(block_io("garbage").is_none());
    }
}
