//! The guest's processes.

use cofferdam_agent_protocol::api::ProcessInfo;
use cofferdam_agent_protocol::procfs;
use nix::time::{ClockId, clock_gettime};

/// A process; `None` if it is gone.
pub fn info(pid: u32) -> Option<ProcessInfo> {
    let mut info = procfs::process(pid)?;
    info.started_unix_ns += boot_time();
    Some(info)
}

/// Nanoseconds from 1970 to the guest's start.
fn boot_time() -> i64 {
    let clock = |id| {
        let time = clock_gettime(id).ok()?;
        Some(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
    };
    let since = || Some(clock(ClockId::CLOCK_REALTIME)? - clock(ClockId::CLOCK_BOOTTIME)?);
    since().unwrap_or(0)
}
