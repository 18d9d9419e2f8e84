//! The wall clock of the guest.

use nix::time::{ClockId, clock_gettime};

use crate::error::{Context, Result};

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

/// Nanoseconds since 1970.
pub fn now() -> Result<i64> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).context(|| "read the clock".into())?;
    Ok(now
        .tv_sec()
        .saturating_mul(SECOND)
        .saturating_add(now.tv_nsec()))
}

/// Moves the clock by so many nanoseconds, at once or as slowly as the kernel does.
pub fn move_by(ns: i64, slowly: bool) -> Result<()> {
    // SAFETY: all of it are numbers, and zero is one.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    if slowly {
        change.modes = libc::ADJ_OFFSET_SINGLESHOT;
        change.offset = ns / 1000;
    } else {
        change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
        // With ADJ_NANO, nanoseconds; they are not negative.
        change.time.tv_sec = ns.div_euclid(SECOND);
        change.time.tv_usec = ns.rem_euclid(SECOND);
    }
    // SAFETY: the kernel reads and writes the structure, which outlives the call.
    if unsafe { libc::adjtimex(&raw mut change) } < 0 {
        let error = std::io::Error::last_os_error();
        return Err(error).context(|| format!("move the clock by {ns} ns"));
    }
    Ok(())
}
