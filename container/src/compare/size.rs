//! How long a container takes to be there and be gone, and what it takes meanwhile.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::report::Cell;
use super::side::{Program, Run, Side, Started};
use super::{Cells, CompareError, Measure};
use crate::usage;

/// What [`sizes`] gives.
pub const ROWS: &[&str] = &[
    "processes",
    "shim",
    "monitor",
    "guest",
    "cgroup_kernel",
    "host_memory",
    "disk",
    "wall",
];
/// Idle containers at once.
const CONTAINERS: u32 = 3;
/// Until a container idles.
const SETTLE: Duration = Duration::from_secs(2);
const KIB_PER_MIB: f64 = 1024.0;

/// The image's own programs where it has them; ours are shared from the host, which costs a VM more.
const ECHO: [Program<'_>; 2] = [
    Program::Image(&["echo", "hello", "1"]),
    Program::Probe(&["hello"]),
];
const SLEEP: [Program<'_>; 2] = [
    Program::Image(&["sleep", "100000"]),
    Program::Probe(&["idle"]),
];

/// Runs containers that say a word.
pub fn times(measure: &Measure<'_>) -> Result<Cells, CompareError> {
    let run = |program| -> Result<Run, CompareError> {
        let run = measure.subject.run(&[], program)?;
        match run.number("hello") {
            Some(1.0) => Ok(run),
            _ => Err(CompareError::Container(run.excuse())),
        }
    };
    let [own, ours] = ECHO;
    // It does not count.
    let program = match run(own) {
        Ok(_) => own,
        Err(_) => ours,
    };
    let (mut first, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..measure.runs {
        let done = run(program)?;
        first.push(done.first_output.as_secs_f64() * 1e3);
        whole.push(done.whole.as_secs_f64() * 1e3);
    }
    Ok(vec![
        ("first_output", Cell::spread(first)),
        ("whole", Cell::spread(whole)),
    ])
}

/// Looks at idle containers.
pub fn sizes(measure: &Measure<'_>) -> Result<Cells, CompareError> {
    let before = available().map_err(io)?;
    let [own, ours] = SLEEP;
    let (first, program) = match measure.subject.start(own) {
        Ok(first) => (first, own),
        Err(_) => (measure.subject.start(ours)?, ours),
    };
    let mut others = Vec::new();
    for _ in 1..CONTAINERS {
        others.push(measure.subject.start(program)?);
    }
    thread::sleep(SETTLE);
    let taken = before.saturating_sub(available().map_err(io)?);
    drop(others);

    let shim = first.0.state()?.shim;
    let memory = Memory::of(shim).map_err(io)?;
    let mib = |kib: u64| Cell::number(kib as f64 / KIB_PER_MIB);
    let is_vm = measure.subject.side == Side::Vm;
    let of_vm = |kib: u64| match is_vm {
        true => mib(kib),
        false => Cell::text("none"),
    };
    let host_memory = taken as f64 / f64::from(CONTAINERS);
    Ok(vec![
        (
            "processes",
            mib(memory.shim + memory.monitor + memory.guest + memory.other),
        ),
        ("shim", mib(memory.shim)),
        ("monitor", of_vm(memory.monitor)),
        ("guest", of_vm(memory.guest)),
        ("cgroup_kernel", cgroup_kernel(&first)),
        ("host_memory", Cell::number(host_memory / KIB_PER_MIB)),
        ("disk", Cell::number(disk(&first) as f64 / 1024.0)),
        ("wall", wall(&first, is_vm)),
    ])
}

fn io(source: io::Error) -> CompareError {
    CompareError::Io {
        action: "look at a container's processes",
        source,
    }
}

/// KiB that the host could give to somebody now.
fn available() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    Ok(field(&text, "MemAvailable:"))
}

/// The number behind a name in a text of lines like `Name:   12 kB`.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Proportional set sizes in KiB.
#[derive(Debug, Default)]
struct Memory {
    shim: u64,
    /// All but the guest's memory.
    monitor: u64,
    guest: u64,
    /// Other processes of the container's: its own, those that serve its network and files.
    other: u64,
}

impl Memory {
    /// Of a shim and all that it started.
    fn of(shim: u32) -> io::Result<Self> {
        let mut memory = Self::default();
        for process in family(shim)? {
            let Ok(maps) = fs::read_to_string(format!("/proc/{process}/smaps")) else {
                continue;
            };
            let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            let (all, guest) = pss(&maps);
            match name.trim() {
                _ if process == shim => memory.shim += all,
                "cofferdam" => {
                    memory.guest += guest;
                    memory.monitor += all - guest;
                }
                _ => memory.other += all,
            }
        }
        Ok(memory)
    }
}

/// KiB of all mappings in the text of smaps, and of the largest one that is not a file's: in a
/// monitor's, the guest's memory. Parts that follow one another count as one: what the kernel is told of
/// a part of a mapping divides it.
fn pss(smaps: &str) -> (u64, u64) {
    let (mut all, mut this, mut largest) = (0, (0, 0), (0, 0));
    let (mut is_file, mut last_end) = (false, String::new());
    for line in smaps.lines() {
        let mut fields = line.split_whitespace();
        let first = fields.next().unwrap_or_default();
        match first {
            "Size:" => this.0 += field(line, "Size:"),
            "Pss:" => {
                let pss = field(line, "Pss:");
                all += pss;
                this.1 += pss;
                if !is_file && this.0 > largest.0 {
                    largest = this;
                }
            }
            // A mapping's first line: addresses, rights, offset, device, inode, name.
            _ if !first.ends_with(':') => {
                if let Some((start, end)) = first.split_once('-') {
                    let name = fields.nth(4).unwrap_or_default();
                    let was_file = is_file;
                    is_file = name.starts_with('/') && !name.starts_with("/memfd:");
                    if start != last_end || is_file || was_file {
                        this = (0, 0);
                    }
                    end.clone_into(&mut last_end);
                }
            }
            _ => {}
        }
    }
    (all, largest.1)
}

/// A process and all that came of it.
fn family(root: u32) -> io::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(process) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name, in brackets, may have brackets and spaces.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        parents.extend(
            parent
                .and_then(|parent| parent.parse().ok())
                .map(|parent: u32| (process, parent)),
        );
    }
    let mut family = vec![root];
    let mut at = 0;
    while let Some(&parent) = family.get(at) {
        family.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(child, _)| child),
        );
        at += 1;
    }
    Ok(family)
}

/// What the host's kernel charges for itself to the cgroup of a container's process, or of its VM's
/// monitor.
fn cgroup_kernel(container: &Started) -> Cell {
    let kernel = || -> io::Result<u64> {
        let state = container.0.state().map_err(io::Error::other)?;
        let text = fs::read_to_string(format!("/proc/{}/cgroup", state.pid))?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let path = path.filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| io::Error::other("it is in none of its own"))?;
        let file = Path::new("/sys/fs/cgroup").join(path).join("memory.stat");
        let stat = fs::read_to_string(file)?;
        let bytes = stat.lines().find_map(|line| line.strip_prefix("kernel "));
        let bytes = bytes.and_then(|bytes| bytes.parse().ok());
        bytes.ok_or_else(|| io::Error::other("the kernel does not say"))
    };
    match kernel() {
        Ok(bytes) => Cell::number(bytes as f64 / 1024.0 / KIB_PER_MIB),
        Err(error) => Cell::missing(format!(
            "there is no cgroup v2 with a memory controller: {error}"
        )),
    }
}

/// The filter of system calls of the process that stands for a container on the host.
fn wall(container: &Started, is_vm: bool) -> Cell {
    let threads = || -> io::Result<(usize, usize)> {
        let state = container.0.state().map_err(io::Error::other)?;
        let (mut all, mut filtered) = (0, 0);
        for thread in fs::read_dir(format!("/proc/{}/task", state.pid))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            all += 1;
            filtered += usize::from(field(&status, "Seccomp:") == 2);
        }
        Ok((all, filtered))
    };
    let filter = match threads() {
        Ok((_, 0)) => "no filter".to_owned(),
        Ok((all, filtered)) if all == filtered => "a seccomp filter".to_owned(),
        Ok((all, filtered)) => format!("a filter, {filtered} of {all} threads"),
        Err(error) => return Cell::missing(error.to_string()),
    };
    Cell::text(match is_vm {
        true => format!("the CPU; then {filter}"),
        false => filter,
    })
}

/// Bytes that a container has on the disk for itself.
fn disk(container: &Started) -> u64 {
    [&container.0.dir, &container.0.run]
        .into_iter()
        .map(|directory| usage::of_tree(directory))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 00:01 7                                  /usr/bin/cofferdam
Size:               1024 kB
Pss:                 800 kB
Pss_Dirty:           100 kB
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Size:               2048 kB
Pss:                1500 kB
VmFlags: rd wr nh
7f0000200000-7f0020000000 rw-p 00000000 00:00 0
Size:             522240 kB
Pss:               18500 kB
VmFlags: rd wr
7f0020000000-7f0060000000 r--p 00000000 00:01 9                          /images/layer.erofs
Size:            1048576 kB
Pss:                 300 kB
7fff00000000-7fff00021000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
Pss:                  12 kB
";

    /// If it fails, the monitor is charged with the guest's memory, or the guest with the image's.
    #[test]
    fn the_guest_is_told_from_its_monitor() {
        assert_eq!(pss(SMAPS), (21_112, 20_000));
        let memfd = SMAPS.replace(
            "00:00 0\nSize:             522240",
            "00:01 5  /memfd:guest-memory (deleted)\nSize:             522240",
        );
        assert_eq!(pss(&memfd), (21_112, 20_000));
    }

    /// If it fails, processes of a container are not counted.
    #[test]
    fn a_family_has_children() {
        let mut child = std::process::Command::new("sleep")
            .arg("9")
            .spawn()
            .unwrap();
        let family = family(std::process::id()).unwrap();
        assert!(family.contains(&child.id()), "{family:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(field("A:  12 kB\nB: 7 kB\n", "B:") == 7);
    }
}
