//! KVM's tracepoints: what made a guest leave its CPU, and what of that went up to the monitor.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where tracefs is mounted.
const TRACEFS: &str = "/sys/kernel/tracing";
/// What is counted.
const COUNTED: [&str; 4] = [
    "kvm/kvm_entry",
    "kvm/kvm_exit",
    "kvm/kvm_userspace_exit",
    "kvm/kvm_page_fault",
];
/// What is counted while a guest does jobs.
const COUNTED_IN_JOBS: [&str; 3] = ["kvm/kvm_cpuid", "kvm/kvm_exit", "kvm/kvm_userspace_exit"];
/// The CPUID leaves with which the guest says that the measured part of a job begins and ends.
const LEAF_BEGIN: &str = "b0b0001";
const LEAF_END: &str = "b0b0002";
/// The function that all ranges pass which a monitor gives to KVM as guest memory, by its name up
/// to Linux 6.13 and after.
const SLOT_FUNCTIONS: [&str; 2] = ["__kvm_set_memory_region", "kvm_set_memory_region"];
/// What is taken of its second argument, a `kvm_userspace_memory_region2`.
const SLOT_FIELDS: &str = "size=+16(%si):u64 address=+24(%si):u64";
/// KiB of buffer: QEMU's boot fills one and a half thousand.
const BUFFER_KIB: &str = "16384";

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A file of tracefs.
    #[error("tracing: {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The buffer was too small.
    #[error("tracing: the buffer was full, so the counts are not whole")]
    Overrun,
}

/// What is traced until it is told to stop.
#[derive(Debug)]
pub struct Trace {
    events: Vec<String>,
}

impl Trace {
    /// Traces what [`Counts`] counts.
    pub fn counts() -> Result<Self, TraceError> {
        Self::start(COUNTED.map(str::to_owned).to_vec())
    }

    /// Traces what [`JobCounts`] counts.
    pub fn jobs() -> Result<Self, TraceError> {
        Self::start(COUNTED_IN_JOBS.map(str::to_owned).to_vec())
    }

    /// Traces the ranges that become guest memory.
    pub fn memory_slots() -> Result<Self, TraceError> {
        let [function, later_name] =
            SLOT_FUNCTIONS.map(|function| format!("p:bench/memory_slot {function} {SLOT_FIELDS}"));
        write("kprobe_events", &function).or_else(|_| write("kprobe_events", &later_name))?;
        Self::start(vec!["bench/memory_slot".to_owned()])
    }

    fn start(events: Vec<String>) -> Result<Self, TraceError> {
        // The clock that all other times are of.
        write("trace_clock", "mono")?;
        write("buffer_size_kb", BUFFER_KIB)?;
        write("trace", "")?;
        for event in &events {
            write(&format!("events/{event}/enable"), "1")?;
        }
        write("tracing_on", "1")?;
        Ok(Self { events })
    }

    /// Stops, and returns the trace as text, one event a line.
    pub fn stop(self) -> Result<String, TraceError> {
        write("tracing_on", "0")?;
        for event in &self.events {
            write(&format!("events/{event}/enable"), "0")?;
        }
        let path = Path::new(TRACEFS).join("trace");
        let text = fs::read_to_string(&path).map_err(|source| TraceError::File { path, source })?;
        write("kprobe_events", "")?;
        if is_whole(&text) {
            Ok(text)
        } else {
            Err(TraceError::Overrun)
        }
    }
}

fn write(file: &str, value: &str) -> Result<(), TraceError> {
    let path = Path::new(TRACEFS).join(file);
    fs::write(&path, value).map_err(|source| TraceError::File { path, source })
}

/// False if the header `# entries-in-buffer/entries-written: 12/34` tells of lost events.
fn is_whole(text: &str) -> bool {
    let header = text
        .lines()
        .find_map(|line| line.split_once("entries-written: "));
    let counts = header.and_then(|(_, counts)| counts.split_whitespace().next());
    counts
        .and_then(|counts| counts.split_once('/'))
        .is_some_and(|(kept, all)| kept == all)
}

/// One line of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Event<'a> {
    /// ns.
    time: u64,
    name: &'a str,
    fields: &'a str,
}

impl<'a> Event<'a> {
    /// Takes ` qemu-system-x86-191  [000] d..1.   6.774010: kvm_entry: vcpu 0, rip 0xfff0` apart.
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (_, rest) = line.split_once("] ")?;
        let (_flags, rest) = rest.trim_start().split_once(' ')?;
        let (time, rest) = rest.trim_start().split_once(": ")?;
        let (name, fields) = rest.split_once(':')?;
        let (seconds, micros) = time.split_once('.')?;
        let time = seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
        Some(Self {
            time: time * 1000,
            name,
            fields: fields.trim_start(),
        })
    }

    /// The field's value: the word after its name.
    fn word(&self, name: &str) -> Option<&'a str> {
        let mut words = self.fields.split_whitespace();
        words.by_ref().find(|word| *word == name)?;
        words.next()
    }

    fn number(&self, name: &str) -> Option<u64> {
        let word = self.word(name)?;
        word.strip_prefix("0x")
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
    }
}

/// What a trace tells, up to a time.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// When the vCPU was first entered, ns.
    pub first_entry: Option<u64>,
    /// Exits from the guest by their reason.
    pub exits: BTreeMap<String, u64>,
    /// Exits to user space by their reason.
    pub user_exits: BTreeMap<String, u64>,
    /// Exits to user space by what was accessed: port and direction, or page of the address.
    pub places: BTreeMap<String, u64>,
    /// Nested page faults by the 2 MiB of guest memory that they were in.
    pub faults: BTreeMap<String, u64>,
}

impl Counts {
    /// Counts the events of a trace that are not after `end`, in ns.
    pub fn parse(trace: &str, end: u64) -> Self {
        let mut counts = Self::default();
        let mut place = None;
        for event in trace
            .lines()
            .filter_map(Event::parse)
            .filter(|event| event.time <= end)
        {
            match event.name {
                "kvm_entry" => {
                    counts.first_entry.get_or_insert(event.time);
                }
                "kvm_exit" => {
                    count(&mut counts.exits, event.word("reason").unwrap_or("?"));
                    place = place_of(&event);
                }
                "kvm_userspace_exit" => {
                    let reason = event.word("reason").unwrap_or("?");
                    let reason = reason.trim_start_matches("KVM_EXIT_").to_lowercase();
                    let place = place
                        .as_deref()
                        .filter(|_| matches!(&*reason, "io" | "mmio"));
                    count(&mut counts.places, place.unwrap_or(&reason));
                    count(&mut counts.user_exits, &reason);
                }
                "kvm_page_fault" => {
                    let address = event.number("address").unwrap_or(u64::MAX);
                    count(
                        &mut counts.faults,
                        &format!("{:#010x}", address & !0x1f_ffff),
                    );
                }
                _ => {}
            }
        }
        counts
    }
}

/// What a trace tells of one job, between the guest's marks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobCounts {
    /// Exits from the guest.
    pub exits: u64,
    /// Those to user space.
    pub user_exits: u64,
    /// The same by what was accessed.
    pub places: BTreeMap<String, u64>,
}

impl JobCounts {
    /// The counts of all jobs, in the order in which they were done.
    pub fn parse(trace: &str) -> Vec<Self> {
        let mut jobs = Vec::new();
        let mut now: Option<Self> = None;
        let mut place = None;
        for event in trace.lines().filter_map(Event::parse) {
            match (event.name, now.as_mut()) {
                ("kvm_cpuid", _) => match event.word("func") {
                    Some(LEAF_BEGIN) => now = Some(Self::default()),
                    Some(LEAF_END) => jobs.extend(now.take().map(Self::without_mark)),
                    _ => {}
                },
                ("kvm_exit", Some(counts)) => {
                    counts.exits += 1;
                    place = place_of(&event);
                }
                ("kvm_userspace_exit", Some(counts)) => {
                    counts.user_exits += 1;
                    let reason = event.word("reason").unwrap_or("?");
                    let reason = reason.trim_start_matches("KVM_EXIT_").to_lowercase();
                    let place = place
                        .as_deref()
                        .filter(|_| matches!(&*reason, "io" | "mmio"));
                    count(&mut counts.places, place.unwrap_or(&reason));
                }
                _ => {}
            }
        }
        jobs
    }

    /// The exit of the mark at the end came before the record that tells it from others.
    fn without_mark(mut self) -> Self {
        self.exits = self.exits.saturating_sub(1);
        self
    }
}

/// What an exit's instruction accessed, by SVM's exit information: for I/O the port in the upper
/// half of the first (APM 2, 15.10.2), for a nested page fault the address in the second (15.25.6).
fn place_of(exit: &Event<'_>) -> Option<String> {
    match exit.word("reason")? {
        "io" => {
            let info = exit.number("info1")?;
            let direction = if info & 1 == 1 { "in" } else { "out" };
            Some(format!("{direction} {:#x}", (info >> 16) & 0xffff))
        }
        "npf" => Some(format!("mmio {:#x}", exit.number("info2")? & !0xfff)),
        _ => None,
    }
}

fn count(counts: &mut BTreeMap<String, u64>, key: &str) {
    *counts.entry(key.to_owned()).or_default() += 1;
}

/// The ranges of the monitor's addresses, start and end, that a trace saw become guest memory.
pub fn parse_memory_slots(trace: &str) -> Vec<(u64, u64)> {
    let slots = trace.lines().filter_map(Event::parse).filter_map(|event| {
        let value = |name| {
            let (_, rest) = event.fields.split_once(name)?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        let (size, address) = (value("size=")?, value("address=")?);
        // Size 0 takes a slot away; KVM's own slots have no address in user space.
        (size > 0 && address > 0).then(|| (address, address.saturating_add(size)))
    });
    slots.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
# tracer: nop
#
# entries-in-buffer/entries-written: 10/10   #P:1
 qemu-system-x86-191     [000] .....     6.773919: kvm_userspace_exit: reason restart (4)
 qemu-system-x86-191     [000] d..1.     6.774010: kvm_entry: vcpu 0, rip 0xfff0
           vcpu0-19      [000] d..1.     6.774011: kvm_exit: vcpu 0 reason npf rip 0xfff0 info1 0x0000000100000014 info2 0x00000000fffffff0 intr_info 0x00000000 error_code 0x00000000
           vcpu0-19      [000] .....     6.774012: kvm_page_fault: vcpu 0 rip 0xfff0 address 0x00000000fffffff0 error_code 0x100000014
           vcpu0-19      [000] d..1.     6.774016: kvm_entry: vcpu 0, rip 0xfff0
           vcpu0-19      [000] d..1.     6.775011: kvm_exit: vcpu 0 reason io rip 0xfff0 info1 0x0000000003fd0241 info2 0x00000000fffffff0 intr_info 0x00000000 error_code 0x00000000
           vcpu0-19      [000] .....     6.775012: kvm_userspace_exit: reason KVM_EXIT_IO (2)
           vcpu0-19      [000] d..1.     6.776011: kvm_exit: vcpu 0 reason npf rip 0xfff0 info1 0x0000000100000014 info2 0x00000000d0000070 intr_info 0x00000000 error_code 0x00000000
           vcpu0-19      [000] .....     6.776012: kvm_userspace_exit: reason KVM_EXIT_MMIO (6)
           vcpu0-19      [000] .....     6.999999: kvm_userspace_exit: reason KVM_EXIT_SHUTDOWN (8)
";

    fn map(entries: &[(&str, u64)]) -> BTreeMap<String, u64> {
        entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), *value))
            .collect()
    }

    /// If it fails, the counts that the budgets look at are wrong.
    #[test]
    fn exits_are_counted_by_reason_and_place() {
        let counts = Counts::parse(TRACE, 6_776_012_000);
        assert_eq!(counts.first_entry, Some(6_774_010_000));
        assert_eq!(counts.exits, map(&[("npf", 2), ("io", 1)]));
        assert_eq!(
            counts.user_exits,
            map(&[("restart", 1), ("io", 1), ("mmio", 1)])
        );
        assert_eq!(
            counts.places,
            map(&[("restart", 1), ("in 0x3fd", 1), ("mmio 0xd0000000", 1)])
        );
        assert_eq!(counts.faults, map(&[("0xffe00000", 1)]));
    }

    /// If it fails, what follows the boot, the guest's idling, counts as part of it.
    #[test]
    fn what_comes_after_the_end_does_not_count() {
        let counts = Counts::parse(TRACE, 6_774_010_000);
        assert_eq!(counts.user_exits, map(&[("restart", 1)]));
        assert!(counts.exits.is_empty());
        assert_eq!(Counts::parse("", u64::MAX), Counts::default());
    }

    /// If it fails, exits outside of a job count as part of it, and no device has none.
    #[test]
    fn jobs_are_told_apart_by_their_marks() {
        let exit = |reason: &str| {
            format!(
                " vcpu0-19 [000] d..1. 6.1: kvm_exit: vcpu 0 reason {reason} rip 0xfff0 \
                 info1 0x0000000003fd0241 info2 0x00000000d0000070 intr_info 0x0\n"
            )
        };
        let user = |reason: &str| {
            format!(" vcpu0-19 [000] ..... 6.1: kvm_userspace_exit: reason KVM_EXIT_{reason} (6)\n")
        };
        let mark = |leaf: &str| {
            exit("cpuid")
                + &format!(" vcpu0-19 [000] ..... 6.1: kvm_cpuid: func {leaf} idx 0 rax 0 rbx 0\n")
        };
        let trace = mark("1")
            + &exit("io")
            + &user("IO")
            + &mark(LEAF_BEGIN)
            + &exit("npf")
            + &user("MMIO")
            + &exit("interrupt")
            + &user("INTR")
            + &mark(LEAF_END)
            + &exit("io")
            + &mark(LEAF_BEGIN)
            + &mark(LEAF_END);
        let first = JobCounts {
            exits: 2,
            user_exits: 2,
            places: map(&[("mmio 0xd0000000", 1), ("intr", 1)]),
        };
        assert_eq!(JobCounts::parse(&trace), [first, JobCounts::default()]);
    }

    /// If it fails, an overrun passes for a boot with few exits.
    #[test]
    fn a_trace_with_holes_is_noticed() {
        assert!(is_whole(TRACE));
        assert!(!is_whole(&TRACE.replace("10/10", "10/12")));
        assert!(!is_whole(""));
    }

    /// If it fails, guest memory counts as the monitor's or the other way round.
    #[test]
    fn slots_are_found_and_deletions_are_not() {
        let line = |size: u64, address: u64| {
            format!(
                " x-1 [000] d..1. 6.1: memory_slot: (__kvm_set_memory_region+0x4/0x40 [kvm]) \
                 size={size} address={address}\n"
            )
        };
        let trace = line(0x1000, 0x10000) + &line(0, 0x10000) + &line(0x1000, 0);
        assert_eq!(parse_memory_slots(&trace), [(0x10000, 0x11000)]);
    }
}
