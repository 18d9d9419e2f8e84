//! How the kernel shares CPUs and disks between a process and others.

use std::io;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::spec::{IoPriority, Process, Scheduler};

/// Policies of the specification, by the kernel's numbers (linux/sched.h).
const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

const FLAGS: [(&str, u64); 5] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
];

/// Classes of the specification, by the kernel's numbers (linux/ioprio.h).
const CLASSES: [(&str, i64); 3] = [
    ("IOPRIO_CLASS_RT", 1),
    ("IOPRIO_CLASS_BE", 2),
    ("IOPRIO_CLASS_IDLE", 3),
];

/// struct sched_attr of the kernel, as of its first version.
#[repr(C)]
#[derive(Debug, Default, PartialEq, Eq)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Sets both for this process, as far as they are configured. Takes privileges.
pub fn set(process: &Process) -> Result<()> {
    if let Some(priority) = &process.io_priority {
        let number = io_priority(priority)?;
        /// This process.
        const WHO: libc::c_int = 1;
        // SAFETY: it takes numbers.
        let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO, 0, number) };
        done(result).context(|| format!("set process.ioPriority to {}", priority.class))?;
    }
    if let Some(scheduler) = &process.scheduler {
        let attributes = attributes(scheduler)?;
        // SAFETY: the kernel reads the attributes, which outlive the call; their size is in them.
        let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
        done(result).context(|| format!("set process.scheduler to {}", scheduler.policy))?;
    }
    Ok(())
}

/// Lets this process run on these CPUs alone; on all that its cgroup has, where none are named.
pub fn bind(list: Option<&str>) -> Result<()> {
    let all = format!("0-{}", CpuSet::count() - 1);
    let list = list.filter(|list| !list.is_empty()).unwrap_or(&all);
    let bad = || {
        Error::invalid(
            "process.execCPUAffinity",
            format!("{list:?} is no list of CPUs"),
        )
    };
    let set = cpus(list).ok_or_else(bad)?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .context(|| format!("set process.execCPUAffinity to {list} of the guest's CPUs"))
}

/// The CPUs of a list like `0-2,7`.
fn cpus(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last {
            return None;
        }
        for cpu in first..=last {
            // One beyond what the kernel can have ends it.
            set.set(cpu).ok()?;
        }
    }
    Some(set)
}

fn done(result: libc::c_long) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn io_priority(priority: &IoPriority) -> Result<libc::c_int> {
    const FIELD: &str = "process.ioPriority";
    let class = CLASSES.iter().find(|(name, _)| *name == priority.class);
    let (_, class) =
        class.ok_or_else(|| Error::invalid(FIELD, format!("{:?} is none", priority.class)))?;
    if !(0..=7).contains(&priority.priority) {
        let why = format!("{} is not from 0 to 7", priority.priority);
        return Err(Error::invalid(FIELD, why));
    }
    let number = class << 13 | priority.priority;
    libc::c_int::try_from(number).map_err(|_| Error::invalid(FIELD, "it is too large"))
}

fn attributes(scheduler: &Scheduler) -> Result<Attributes> {
    const FIELD: &str = "process.scheduler";
    let unknown = |name: &str| Error::invalid(FIELD, format!("{name:?} is not known"));
    let policy = POLICIES.iter().find(|(name, _)| *name == scheduler.policy);
    let (_, policy) = policy.ok_or_else(|| unknown(&scheduler.policy))?;
    let mut flags = 0;
    for flag in scheduler.flags.iter().flatten() {
        let known = FLAGS.iter().find(|(name, _)| name == flag);
        flags |= known.ok_or_else(|| unknown(flag))?.1;
    }
    let priority = u32::try_from(scheduler.priority);
    Ok(Attributes {
        size: u32::try_from(size_of::<Attributes>()).unwrap_or(0),
        policy: *policy,
        flags,
        nice: scheduler.nice,
        priority: priority.map_err(|_| Error::invalid(FIELD, "the priority is negative"))?,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a process runs on other CPUs than was said, or a list without an end keeps us busy.
    #[test]
    fn lists_become_sets() {
        let found = |list: &str| -> Option<Vec<usize>> {
            let set = cpus(list)?;
            Some((0..16).filter(|cpu| set.is_set(*cpu) == Ok(true)).collect())
        };
        assert_eq!(found("0-2,7").unwrap(), [0, 1, 2, 7]);
        assert_eq!(found(" 3 , 5-5,").unwrap(), [3, 5]);
        for bad in ["a", "2-1", "-1", "1-", "0-99999999999", "1024"] {
            assert!(found(bad).is_none(), "{bad}");
        }
        bind(None).unwrap();
        bind(Some("")).unwrap();
        assert!(bind(Some("x")).is_err());
    }

    /// If it fails, a process is scheduled in another way than was said, or a word that nobody knows
    /// is passed over.
    #[test]
    fn words_become_numbers() {
        let priority = |class: &str, priority| IoPriority {
            class: class.into(),
            priority,
        };
        let found = io_priority(&priority("IOPRIO_CLASS_IDLE", 3)).unwrap();
        assert_eq!(found, 3 << 13 | 3);
        assert!(io_priority(&priority("IOPRIO_CLASS_BE", 8)).is_err());
        assert!(io_priority(&priority("", 0)).is_err());
        let scheduler = |policy: &str, flag: &str| Scheduler {
            policy: policy.into(),
            nice: -5,
            flags: Some(vec![flag.into()]),
            ..Scheduler::default()
        };
        let found = attributes(&scheduler("SCHED_BATCH", "SCHED_FLAG_RESET_ON_FORK")).unwrap();
        assert_eq!(
            (found.size, found.policy, found.flags, found.nice),
            (48, 3, 1, -5)
        );
        assert!(attributes(&scheduler("SCHED_BATCH", "FLAG")).is_err());
        assert!(attributes(&scheduler("BATCH", "SCHED_FLAG_RESET_ON_FORK")).is_err());
    }
}
