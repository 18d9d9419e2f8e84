//! What /proc says of processes, of the machine and of a network.

use std::fs;

use crate::api::{InterfaceIo, ProcessInfo};

/// Of the kernel's times of processes; 100 on every architecture that we have.
const TICKS_PER_SECOND: u64 = 100;

/// A process, which has started so long after the machine did; `None` if it is gone.
pub fn process(pid: u32) -> Option<ProcessInfo> {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).ok();
    let text = |file: &str| Some(String::from_utf8_lossy(&read(file)?).into_owned());
    let mut info = parse_stat(&text("stat")?)?;
    info.pid = pid;
    let status = text("status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    info.uid = uid
        .and_then(|uid| uid.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let arguments = String::from_utf8_lossy(&read("cmdline")?).into_owned();
    if !arguments.is_empty() {
        let arguments = arguments.strip_suffix('\0').unwrap_or(&arguments);
        info.command = arguments.split('\0').map(str::to_owned).collect();
    }
    Some(info)
}

/// /proc/PID/stat. The start is after boot.
fn parse_stat(text: &str) -> Option<ProcessInfo> {
    // The name may have anything in it, parentheses too.
    let (front, rest) = text.rsplit_once(')')?;
    let (_, name) = front.split_once('(')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let mut info = ProcessInfo::new();
    info.command = vec![format!("[{name}]")];
    info.state = (*fields.first()?).to_owned();
    info.ppid = u32::try_from(number(1)?).ok()?;
    info.cpu_us = (number(11)? + number(12)?) * (1_000_000 / TICKS_PER_SECOND);
    let started = number(19)?.saturating_mul(1_000_000_000 / TICKS_PER_SECOND);
    info.started_unix_ns = i64::try_from(started).ok()?;
    Some(info)
}

/// A line of /proc/meminfo, in bytes.
pub fn memory(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// The figures of all interfaces but the loopback one, where a process is: a number, or `self`.
pub fn network(process: &str) -> Vec<InterfaceIo> {
    let text = fs::read_to_string(format!("/proc/{process}/net/dev")).unwrap_or_default();
    text.lines()
        .filter_map(interface)
        .filter(|one| one.name != "lo")
        .collect()
}

/// A line of /proc/net/dev.
fn interface(line: &str) -> Option<InterfaceIo> {
    let (name, rest) = line.split_once(':')?;
    let numbers: Vec<u64> = rest
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [
        rx,
        packets,
        errors,
        dropped,
        _,
        _,
        _,
        _,
        tx,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = *numbers
    else {
        return None;
    };
    let mut all = InterfaceIo::new();
    all.name = name.trim().to_owned();
    (all.rx_bytes, all.rx_packets, all.rx_errors, all.rx_dropped) = (rx, packets, errors, dropped);
    (all.tx_bytes, all.tx_packets, all.tx_errors) = (tx, tx_packets, tx_errors);
    all.tx_dropped = tx_dropped;
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, `top` shows nonsense, above all for programs with odd names.
    #[test]
    fn processes_are_described() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 200 0 0";
        let info = parse_stat(stat).unwrap();
        assert_eq!(
            (info.ppid, info.cpu_us, info.started_unix_ns),
            (3, 2_000_000, 2_000_000_000)
        );
        assert_eq!(
            (info.state.as_str(), info.command[0].as_str()),
            ("S", "[a) b (c]")
        );
        assert!(parse_stat("7 (a").is_none() && parse_stat("7 (a) S 3").is_none());
        let own = process(std::process::id()).unwrap();
        assert!(own.command[0].contains("cofferdam"), "{own:?}");
        assert!(memory("MemTotal") > 1 << 20);
    }

    /// If it fails, `stats` shows wrong figures of the network.
    #[test]
    fn figures_are_read() {
        let line = "  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0";
        let all = interface(line).unwrap();
        assert_eq!(
            (all.rx_bytes, all.rx_dropped, all.tx_bytes, all.tx_dropped),
            (1, 4, 5, 8)
        );
        assert_eq!(all.name, "eth0");
        assert!(interface(" face |bytes    packets").is_none());
    }
}
