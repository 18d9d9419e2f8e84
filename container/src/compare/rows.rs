//! What is measured, and how it is told.

use super::report::{Better, Group};

/// A row, before anything was measured.
#[derive(Debug)]
pub struct Definition {
    /// Unlike that of all others.
    pub id: &'static str,
    /// What it belongs to.
    pub group: Group,
    /// For people.
    pub title: &'static str,
    /// Of its numbers.
    pub unit: &'static str,
    /// Which are better.
    pub better: Option<Better>,
    /// What was done and counted.
    pub note: &'static str,
}

const LESS: Option<Better> = Some(Better::Less);
const MORE: Option<Better> = Some(Better::More);

macro_rules! rows {
    ($($group:ident { $($id:literal, $title:literal, $unit:literal, $better:expr, $note:literal;)* })*) => {
        &[$($(Definition {
            id: $id,
            group: Group::$group,
            title: $title,
            unit: $unit,
            better: $better,
            note: $note,
        },)*)*]
    };
}

/// All of them, in the order of tables.
pub const ROWS: &[Definition] = rows! {
    Time {
        "first_output", "start to first output", "ms", LESS,
            "from before `cofferdam run --rm` is started to the first byte of what echo prints";
        "whole", "made, run and removed", "ms", LESS,
            "from before that command is started to its end";
    }
    Size {
        "processes", "idle container: processes", "MiB", LESS,
            "of all processes that it has on the host, its own sleep and the guest's memory among \
             them: what is theirs alone, and their share of the rest (PSS)";
        "shim", "of these: the shim", "MiB", LESS,
            "the process of Cofferdam that holds the container";
        "monitor", "of these: the monitor itself", "MiB", LESS,
            "without the guest's memory and the pages of the image";
        "guest", "of these: the guest's memory", "MiB", LESS,
            "what the guest has touched and not given back: its kernel, the agent, the workload";
        "cgroup_kernel", "kernel memory of its cgroup", "MiB", LESS,
            "what the host's kernel has for the container and charges to its cgroup";
        "host_memory", "host memory for each of three", "MiB", LESS,
            "how much less memory the host has available with three idle containers, divided by three; \
             other work on the host is in it";
        "disk", "disk beyond the image", "KiB", LESS,
            "blocks of the container's directories while it idles";
    }
    Work {
        "cpu", "CPU: arithmetic", "1000/s", MORE,
            "rounds of 10,000 steps of xorshift, of which each needs the one before";
        "syscall", "system calls", "1000/s", MORE,
            "getppid, which does nothing else";
        "process", "processes", "1/s", MORE,
            "fork, exit and wait";
        "memory", "fresh memory", "MiB/s", MORE,
            "mapped, written to once a page, and given back";
        "file", "files made and removed", "1/s", MORE,
            "of 4 KiB, in the container's own layer";
        "write", "file written", "MiB/s", MORE,
            "to the container's own layer in pieces of 1 MiB, fsync included; a layer that goes with its \
             container is not forced to the disk by a VM";
        "read", "file read back", "MiB/s", MORE,
            "after the kernel inside was told to forget it; a VM's host may still have it";
        "bridge", "TCP to the host, bridge", "MiB/s", MORE,
            "in writes of 128 KiB to a port of the host's at --network bridge";
        "passt", "TCP to the host, passt", "MiB/s", MORE,
            "in writes of 128 KiB to a port of the host's loopback, by --network passt, which takes no root";
    }
    Reach {
        "kernel", "kernel release", "", None, "as uname -r says";
        "own_kernel", "whose kernel", "", None,
            "by the boot's identity (/proc/sys/kernel/random/boot_id)";
        "host_calls", "host's system calls in reach", "calls", LESS,
            "each was tried once with senseless arguments: those that the host's kernel answered. With a \
             filter, those that end with EPERM do not count. A guest's calls end in its own kernel";
        "wall", "between it and those calls", "", None,
            "seccomp, as /proc/PID/status says: of the container's process, or of the threads of the VM's \
             monitor, which a guest would have to take over first";
        "host_proc", "host's /proc entries seen", "entries", LESS,
            "files below /proc but those of processes, if they are the host's kernel's";
        "host_sys", "host's /sys entries seen", "entries", LESS,
            "files below /sys, if they are the host's kernel's";
        "host_writable", "host's parameters writable", "entries", LESS,
            "files below /proc/sys that open for writing, if they are the host's kernel's; those of its \
             own namespaces among them";
        "host_devices", "host's devices seen", "devices", LESS,
            "block and PCI devices below /sys, if they are the host's kernel's";
        "nodes", "device nodes in /dev", "nodes", None, "of either kernel's";
        "own", "what its own kernel shows", "", None, "the same counts, if the kernel is its own";
        "sees", "CPUs and memory seen", "", None, "what it takes for the machine's";
    }
    Harm {
        "calm", "without harm: neighbour's longest pause", "ms", LESS,
            "of a container of the same kind that starts a process every 20 ms, for a second before any \
             harm is done";
        "fork", "a fork bomb", "", None,
            "processes that stay, for two seconds: on the host's kernel within --pids-limit 256, in a VM \
             without limit";
        "fork_neighbour", "fork bomb: neighbour's longest pause", "ms", LESS,
            "of a container of the same kind, meanwhile";
        "oom", "takes more memory than it may", "", None, "with --memory 64m, up to 512 MiB";
        "oom_neighbour", "too much memory: neighbour's longest pause", "ms", LESS,
            "of a container of the same kind, meanwhile";
        "panic", "panics its kernel", "", None,
            "as root with --privileged, by /proc/sysrq-trigger, in a VM only: never where the kernel is the \
             host's";
        "panic_neighbour", "kernel panic: neighbour's longest pause", "ms", LESS,
            "of a container of the same kind, meanwhile";
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a figure has the place of another.
    #[test]
    fn ids_are_unique_and_groups_in_order() {
        let mut ids: Vec<_> = ROWS.iter().map(|row| row.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ROWS.len());
        let mut titles: Vec<_> = ROWS.iter().map(|row| row.title).collect();
        titles.sort_unstable();
        titles.dedup();
        assert_eq!(titles.len(), ROWS.len());
        let mut groups: Vec<_> = ROWS.iter().map(|row| row.group).collect();
        groups.dedup();
        assert_eq!(groups, Group::ALL);
        for row in ROWS {
            assert_eq!(
                row.better.is_some(),
                !row.unit.is_empty() && row.id != "nodes",
                "{}",
                row.id
            );
        }
    }
}
