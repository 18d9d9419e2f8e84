//! Resource limits of the process: locked memory and open files.

use super::Finding;
use super::procfs::{self, CAP_IPC_LOCK, Limit};

/// Open files a VM with a few devices wants with room to spare: each virtqueue takes two eventfds.
const ENOUGH_FILES: u64 = 1024;

/// Whether guest memory can be locked, as pass-through of host devices wants.
pub fn locked_memory() -> Finding {
    if procfs::has_capability(CAP_IPC_LOCK) {
        return Finding::ok("none for this user (CAP_IPC_LOCK)");
    }
    judge_locked_memory(procfs::limit("Max locked memory"))
}

fn judge_locked_memory(limit: Option<Limit>) -> Finding {
    let mend = "sudo prlimit --pid $$ --memlock=unlimited";
    match limit {
        None => Finding::limited("not to be read from /proc/self/limits"),
        Some(Limit { soft: u64::MAX, .. }) => Finding::ok("none"),
        Some(Limit { soft, .. }) => {
            Finding::limited(format!("{} KiB: less than a guest's memory", soft / 1024))
                .mended_by(mend)
        }
    }
}

/// Whether there are file descriptors enough for a VM.
pub fn open_files() -> Finding {
    judge_open_files(procfs::limit("Max open files"))
}

fn judge_open_files(limit: Option<Limit>) -> Finding {
    match limit {
        None => Finding::limited("not to be read from /proc/self/limits"),
        Some(Limit { soft: u64::MAX, .. }) => Finding::ok("none"),
        Some(Limit { soft, .. }) if soft >= ENOUGH_FILES => Finding::ok(soft.to_string()),
        Some(Limit { soft, hard }) => {
            let mend = if hard >= ENOUGH_FILES {
                format!("ulimit -n {ENOUGH_FILES}")
            } else {
                format!("sudo prlimit --pid $$ --nofile={ENOUGH_FILES}:{ENOUGH_FILES}")
            };
            Finding::limited(format!("{soft}: few for a VM with several devices")).mended_by(mend)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    /// If this fails, a low limit goes unseen, or the command offered is one the kernel refuses.
    #[test]
    fn low_limits_are_limited_with_a_command_that_works() {
        let low = judge_open_files(Some(Limit {
            soft: 256,
            hard: 4096,
        }));
        assert_eq!(
            (low.state, low.mend.as_deref()),
            (State::Limited, Some("ulimit -n 1024"))
        );
        let hard = judge_open_files(Some(Limit {
            soft: 256,
            hard: 256,
        }));
        assert!(hard.mend.unwrap().starts_with("sudo prlimit"));
        assert_eq!(
            judge_open_files(Some(Limit {
                soft: 1024,
                hard: 1024
            }))
            .state,
            State::Ok
        );

        let locked = judge_locked_memory(Some(Limit {
            soft: 8 << 20,
            hard: 8 << 20,
        }));
        assert_eq!(locked.state, State::Limited);
        assert!(locked.detail.starts_with("8192 KiB"));
        let none = judge_locked_memory(Some(Limit {
            soft: u64::MAX,
            hard: u64::MAX,
        }));
        assert_eq!(none.state, State::Ok);
    }
}
