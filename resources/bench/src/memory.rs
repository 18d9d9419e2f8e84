//! What a monitor's memory is made of: the guest's, and its own.

use std::fs;
use std::io;

use crate::report::Memory;

/// Why a monitor's memory is not known.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file below `/proc/PID`.
    #[error("cannot read {0} of the monitor")]
    Proc(&'static str, #[source] io::Error),
    /// No mapping is the guest's, so something went wrong with the tracing.
    #[error("none of the monitor's mappings is guest memory")]
    NoGuest,
}

/// One mapping of a process, sizes in KiB.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    rss: u64,
    private: u64,
    anonymous: u64,
}

/// Looks at a process, of which the ranges in `slots` are guest memory.
pub fn examine(pid: u32, slots: &[(u64, u64)]) -> Result<Memory, MemoryError> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))
        .map_err(|error| MemoryError::Proc("smaps", error))?;
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .map_err(|error| MemoryError::Proc("task", error))?;
    let memory = add_up(&parse(&smaps), slots, tasks.count());
    if memory.guest_rss_kib == 0 {
        Err(MemoryError::NoGuest)
    } else {
        Ok(memory)
    }
}

/// Reads `/proc/PID/smaps`: a line of addresses for each mapping, then `Name: N kB` lines.
fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let Some((first, rest)) = line.split_once(' ') else {
            continue;
        };
        if let Some((start, end)) = addresses(first) {
            mappings.push(Mapping {
                start,
                end,
                ..Mapping::default()
            });
            continue;
        }
        let kib = rest
            .trim()
            .strip_suffix(" kB")
            .and_then(|kib| kib.parse::<u64>().ok());
        let (Some(mapping), Some(kib)) = (mappings.last_mut(), kib) else {
            continue;
        };
        match first {
            "Rss:" => mapping.rss = kib,
            "Private_Clean:" | "Private_Dirty:" => mapping.private += kib,
            "Anonymous:" => mapping.anonymous = kib,
            _ => {}
        }
    }
    mappings
}

fn addresses(text: &str) -> Option<(u64, u64)> {
    let (start, end) = text.split_once('-')?;
    Some((
        u64::from_str_radix(start, 16).ok()?,
        u64::from_str_radix(end, 16).ok()?,
    ))
}

/// A mapping is the guest's if most of it is: the kernel merges neighbours that look alike.
fn is_guest(mapping: &Mapping, slots: &[(u64, u64)]) -> bool {
    let overlap = |(start, end): &(u64, u64)| {
        (*end)
            .min(mapping.end)
            .saturating_sub((*start).max(mapping.start))
    };
    slots
        .iter()
        .any(|slot| overlap(slot) > (mapping.end - mapping.start) / 2)
}

fn add_up(mappings: &[Mapping], slots: &[(u64, u64)], threads: usize) -> Memory {
    let mut memory = Memory {
        threads: threads as u64,
        ..Memory::default()
    };
    for mapping in mappings {
        if is_guest(mapping, slots) {
            memory.guest_rss_kib += mapping.rss;
            memory.guest_anonymous_kib += mapping.anonymous;
        } else {
            memory.monitor_rss_kib += mapping.rss;
            memory.monitor_private_kib += mapping.private;
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 00:01 7                                  /bench/monitor
Size:               1024 kB
Rss:                 800 kB
Private_Clean:       700 kB
Private_Dirty:        10 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7fff0000-7fff8000 rw-p 00000000 00:00 0
Rss:                  32 kB
Private_Clean:         0 kB
Private_Dirty:        32 kB
Anonymous:            32 kB
7fff8000-7fffa000 r--p 00000000 00:01 9                                  /bench/vmlinux
Rss:                   8 kB
Private_Clean:         8 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
";

    /// If it fails, the monitor's share holds guest pages, or lacks its own.
    #[test]
    fn guest_memory_is_told_apart() {
        let memory = add_up(&parse(SMAPS), &[(0x7fff_0000, 0x7fff_a000)], 2);
        assert_eq!(
            memory,
            Memory {
                monitor_rss_kib: 800,
                monitor_private_kib: 710,
                guest_rss_kib: 40,
                guest_anonymous_kib: 32,
                threads: 2
            }
        );
    }

    /// If it fails, a slot that only touches a mapping makes all of it the guest's.
    #[test]
    fn a_mapping_with_little_guest_memory_is_the_monitors() {
        let memory = add_up(&parse(SMAPS), &[(0x4f_f000, 0x50_0000)], 2);
        assert_eq!((memory.monitor_rss_kib, memory.guest_rss_kib), (840, 0));
    }
}
