//! Containers of one image that idle: their memory, and how soon their agents were there.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use cofferdam_agent_protocol::Client;

use super::{IDLE, IMAGE, WRITES, cofferdam};
use crate::io::jobs::float;
use crate::measure::{MeasureError, read};
use crate::report::Idle;
use crate::rows::Places;

/// Until the last one idles, and what it gave back is back: free pages are reported every two seconds,
/// and huge pages that are mostly empty are looked for two and ten seconds after a boot.
const SETTLE: Duration = Duration::from_secs(12);

/// Part of the path of each of the image's EROFS files.
const LAYERS: &str = "/images/layers/";

/// Starts containers, looks, and removes them.
pub fn measure(places: &Places) -> Result<Idle, MeasureError> {
    // What the host's kernel keeps from the first run on is not a container's.
    let before = available()?;
    for number in 0..IDLE {
        run(
            places,
            &[
                "run",
                "-d",
                "--network",
                "none",
                "--name",
                &name(number),
                IMAGE,
                "sleep",
                "1000000",
            ],
        )?;
    }
    thread::sleep(SETTLE);
    let taken = before.saturating_sub(available()?);
    let mut idle = Idle {
        containers: IDLE,
        host_kib: taken / u64::from(IDLE),
        ..Idle::default()
    };
    for process in processes().map_err(|error| MeasureError::File("/proc".into(), error))? {
        process.add_to(&mut idle);
    }
    for sum in [
        &mut idle.guest_kib,
        &mut idle.monitor_kib,
        &mut idle.shim_kib,
    ] {
        *sum /= u64::from(IDLE);
    }
    idle.agent_ready_ms = slowest_agent()?;
    for number in 0..IDLE {
        run(places, &["rm", "-f", &name(number)])?;
    }
    Ok(idle)
}

fn name(number: u32) -> String {
    format!("idle-{number}")
}

fn run(places: &Places, args: &[&str]) -> Result<(), MeasureError> {
    let failed = |error| MeasureError::File(format!("cofferdam {}", args.join(" ")), error);
    let mut command = cofferdam(places, args);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().map_err(failed)?;
    match status.success() {
        true => Ok(()),
        false => Err(failed(io::Error::other(status.to_string()))),
    }
}

/// What all agents say of their own start, and the longest of it, in milliseconds.
fn slowest_agent() -> Result<f64, MeasureError> {
    let run = Path::new(WRITES).join("run");
    let failed = |error| MeasureError::File(run.display().to_string(), error);
    let mut slowest: Option<f64> = None;
    for entry in fs::read_dir(&run).map_err(failed)?.flatten() {
        let vsock = entry.path().join("vsock");
        if vsock.exists() {
            let hello = Client::connect(&vsock)
                .map_err(|error| failed(io::Error::other(error)))?
                .1;
            let took = float(hello.ready_us.saturating_sub(hello.started_us)) / 1e3;
            slowest = Some(slowest.map_or(took, |so_far| so_far.max(took)));
        }
    }
    slowest.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

/// KiB that the lab's kernel could give to somebody now.
fn available() -> Result<u64, MeasureError> {
    let text = read("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| {
            MeasureError::File("/proc/meminfo".into(), io::ErrorKind::InvalidData.into())
        })
}

/// A process of ours.
struct Process {
    name: String,
    smaps: String,
}

fn processes() -> io::Result<Vec<Process>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.starts_with("cofferdam") && !name.starts_with("cofferdam-bench") {
            let smaps = fs::read_to_string(path.join("smaps"))?;
            let name = name.trim().to_owned();
            processes.push(Process { name, smaps });
        }
    }
    Ok(processes)
}

impl Process {
    /// Adds what is in each mapping: the guest's memory is the monitor's largest that is no file.
    fn add_to(&self, idle: &mut Idle) {
        let mappings = mappings(&self.smaps);
        let largest = mappings
            .iter()
            .filter(|mapping| !mapping.name.starts_with('/'))
            .map(|mapping| mapping.size)
            .max();
        let is_monitor = self.name == "cofferdam";
        for mapping in &mappings {
            if mapping.name.contains(LAYERS) {
                idle.image_pss_kib += mapping.pss;
                idle.image_rss_kib += mapping.rss;
                idle.image_kib = idle.image_kib.max(mapping.size);
            } else if !is_monitor {
                idle.shim_kib += mapping.pss;
            } else if !mapping.name.starts_with('/') && Some(mapping.size) == largest {
                idle.guest_kib += mapping.pss;
            } else {
                idle.monitor_kib += mapping.pss;
            }
        }
    }
}

/// One mapping of a process, sizes in KiB.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mapping {
    /// Where it ends.
    end: u64,
    name: String,
    size: u64,
    rss: u64,
    pss: u64,
}

/// Those without a name that follow one another are one: what is told the kernel of a part of a mapping
/// splits it.
fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let address = |text: &str| u64::from_str_radix(text, 16).unwrap_or_default();
        if let Some((start, end)) = first.split_once('-').filter(|_| !first.ends_with(':')) {
            let name = words.nth(4).unwrap_or_default().to_owned();
            let (start, end) = (address(start), address(end));
            match mappings.last_mut() {
                Some(last) if last.end == start && name.is_empty() && last.name.is_empty() => {
                    last.end = end;
                }
                _ => mappings.push(Mapping {
                    end,
                    name,
                    ..Mapping::default()
                }),
            }
            continue;
        }
        let kib = words.next().and_then(|kib| kib.parse::<u64>().ok());
        let (Some(mapping), Some(kib)) = (mappings.last_mut(), kib) else {
            continue;
        };
        match first {
            "Size:" => mapping.size += kib,
            "Rss:" => mapping.rss += kib,
            "Pss:" => mapping.pss += kib,
            _ => {}
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 00:01 7                                  /bench/cofferdam
Size:               1024 kB
Rss:                 800 kB
Pss:                 400 kB
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Size:               2048 kB
Rss:                2000 kB
Pss:                2000 kB
7f0000200000-7f0020000000 rw-p 00000000 00:00 0
Size:             522240 kB
Rss:               18000 kB
Pss:               18000 kB
7f0020000000-7f0020200000 r--s 00000000 00:01 9                          /tmp/images/layers/l.erofs
Size:               2048 kB
Rss:                1000 kB
Pss:                  50 kB
";

    /// If it fails, one kind of memory counts as another.
    #[test]
    fn memory_is_told_apart() {
        let mut idle = Idle::default();
        let process = |name: &str| Process {
            name: name.into(),
            smaps: SMAPS.into(),
        };
        process("cofferdam").add_to(&mut idle);
        assert_eq!(
            (idle.guest_kib, idle.monitor_kib, idle.shim_kib),
            (20_000, 400, 0)
        );
        assert_eq!(
            (idle.image_pss_kib, idle.image_rss_kib, idle.image_kib),
            (50, 1000, 2048)
        );
        process("cofferdam-conta").add_to(&mut idle);
        assert_eq!(idle.shim_kib, 20_400);
    }
}
