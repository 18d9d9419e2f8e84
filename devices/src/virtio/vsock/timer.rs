//! A clock that ticks once, some time after it was started.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// The clock.
#[derive(Debug)]
pub(super) struct Timer {
    fd: OwnedFd,
    time: Timespec,
    is_running: bool,
}

impl Timer {
    /// One that ticks `time` after a start.
    pub(super) fn new(time: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            fd: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            time: Timespec::try_from(time).map_err(io::Error::other)?,
            is_running: false,
        })
    }

    /// Lets it tick in its time, or when it ticks anyway.
    pub(super) fn start(&mut self) {
        if self.is_running {
            return;
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: self.time,
        };
        // It has no reason to fail: both the descriptor and the time are good.
        self.is_running = timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once).is_ok();
    }

    /// It has ticked, and is not running any more.
    pub(super) fn ticked(&mut self) {
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        self.is_running = false;
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
