//! Keeps a guest's clock with the host's. KVM tells a guest the time of day once, when it boots; from then on it
//! counts by the CPU's counter, which nobody corrects as the host's clock is, and does not hear when that is
//! set, or has slept.

use std::fs::File;
use std::io::{self, PipeWriter, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cofferdam_agent_protocol::api::ClockRequest;
use cofferdam_agent_protocol::{Client, ClientError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, clock_gettime,
    timerfd_create, timerfd_settime,
};

/// Between two looks at a guest's clock. It goes wrong by no more than half a millisecond in a second, or the
/// host's would be useless, too.
const INTERVAL: Duration = Duration::from_secs(120);
/// What is left as it is, in nanoseconds.
const TOLERANCE: u64 = 5_000_000;
/// What is too much for slow corrections, in nanoseconds.
const JUMP: u64 = 100_000_000;

/// Who keeps a guest's clock, until it is dropped.
#[derive(Debug)]
pub struct Keeper(#[expect(dead_code, reason = "its end is heard")] PipeWriter);

impl Keeper {
    /// Sets the clock of a guest in which nothing runs yet, and keeps it from there on.
    pub fn start(agent: &Arc<Client>) -> io::Result<Self> {
        let (end, keeper) = io::pipe()?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = File::from(timerfd_create(TimerfdClockId::Realtime, flags)?);
        correct(agent, true);
        let agent = Arc::clone(agent);
        thread::Builder::new().spawn(move || {
            while wait(&timer, &end).is_ok_and(|goes_on| goes_on) {
                correct(&agent, false);
            }
        })?;
        Ok(Self(keeper))
    }
}

/// Waits until it is time to look, or the host's clock is set. Gives `false` at the end.
fn wait(mut timer: &File, end: &impl AsFd) -> io::Result<bool> {
    let now = clock_gettime(ClockId::Realtime);
    let mut at = Itimerspec {
        it_interval: Timespec::default(),
        it_value: now,
    };
    at.it_value.tv_sec += i64::try_from(INTERVAL.as_secs()).unwrap_or(i64::MAX);
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    match timerfd_settime(timer, flags, &at) {
        // The clock was set since the last look.
        Ok(_) | Err(Errno::CANCELED) => {}
        Err(error) => return Err(error.into()),
    }
    let mut fds = [
        PollFd::new(&timer, PollFlags::IN),
        PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
            Ok(_) => break,
        }
    }
    // That the clock was set is an error here (ECANCELED), and what we want to hear.
    let _ = timer.read(&mut [0; 8]);
    Ok(true)
}

/// Corrects the clock, if it needs to be; `at_once` also where little is wrong.
fn correct(agent: &Client, at_once: bool) {
    let result = agent.compare_clocks().and_then(|found| {
        let Some(slowly) = correction(found.ahead_ns, found.doubt_ns, at_once) else {
            return Ok(());
        };
        let mut request = ClockRequest::new();
        request.move_ns = found.ahead_ns.saturating_neg();
        request.slowly = slowly;
        agent.clock(request).map(drop)
    });
    match result {
        // The guest is gone, or goes.
        Ok(()) | Err(ClientError::Connect { .. } | ClientError::Lost { .. }) => {}
        Err(error) => log::warn!("the guest's clock: {}", crate::describe(&error)),
    }
}

/// Whether a clock is moved, and then whether slowly. What may be our own mistake is left alone.
fn correction(ahead_ns: i64, doubt_ns: i64, at_once: bool) -> Option<bool> {
    let wrong = ahead_ns.unsigned_abs();
    let is_sure = wrong > TOLERANCE.saturating_add(doubt_ns.unsigned_abs());
    is_sure.then_some(!at_once && wrong < JUMP)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a guest's clock jumps for nothing, or stays wrong.
    #[test]
    fn a_clock_is_moved_as_far_as_it_is_wrong_for_sure() {
        let ms = 1_000_000;
        for (ahead, doubt, at_once, expected) in [
            (4 * ms, 0, true, None),
            (-40 * ms, 50 * ms, true, None),
            (-40 * ms, ms, true, Some(false)),
            (-40 * ms, ms, false, Some(true)),
            (40 * ms, ms, false, Some(true)),
            (2000 * ms, 300 * ms, false, Some(false)),
            (i64::MIN, i64::MAX, false, None),
        ] {
            assert_eq!(
                correction(ahead, doubt, at_once),
                expected,
                "{ahead} {doubt}"
            );
        }
    }

    /// If it fails, a shim looks at its guest's clock without end, or never ends itself.
    #[test]
    fn nothing_is_done_before_it_is_time_and_the_end_is_heard() {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = File::from(timerfd_create(TimerfdClockId::Realtime, flags).unwrap());
        let (end, keeper) = io::pipe().unwrap();
        let waiting = thread::spawn(move || wait(&timer, &end).unwrap());
        drop(keeper);
        assert!(!waiting.join().unwrap());
    }
}
