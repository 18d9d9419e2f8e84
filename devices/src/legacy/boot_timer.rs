//! Two write-only ports for the guest's init: 'I have booted', and the status it ends with.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::bus::BusDevice;

/// Offset of the boot timer.
const BOOTED: u64 = 0;
/// Offset of the exit status.
const EXIT_STATUS: u64 = 1;
/// What a guest writes to the boot timer to say that it has booted.
const MAGIC: u8 = 123;
/// In [`ExitStatus`]: the guest has written none yet. No byte has this value.
const NONE: u16 = 0x100;

/// The status that the guest's init ended with, if it said so. Clones see the same status.
#[derive(Clone, Debug)]
pub struct ExitStatus(Arc<AtomicU16>);

impl ExitStatus {
    /// What the guest wrote last, or nothing.
    pub fn get(&self) -> Option<u8> {
        u8::try_from(self.0.load(Ordering::Acquire)).ok()
    }
}

impl Default for ExitStatus {
    fn default() -> Self {
        Self(Arc::new(AtomicU16::new(NONE)))
    }
}

/// The boot timer and the exit status port. Both read as if nobody was there.
pub struct BootTimer {
    start: Instant,
    /// Gone after the first call: a guest must not fill the log.
    on_boot: Option<Box<dyn FnOnce(Duration) + Send>>,
    status: ExitStatus,
}

impl BootTimer {
    /// First port; that of the boot timer.
    pub const BASE: u64 = 0x604;
    /// Number of ports.
    pub const LEN: u64 = 2;

    /// A timer that, once, tells `on_boot` how long after `start` the guest had booted.
    pub fn new(start: Instant, on_boot: impl FnOnce(Duration) + Send + 'static) -> Self {
        Self {
            start,
            on_boot: Some(Box::new(on_boot)),
            status: ExitStatus::default(),
        }
    }

    /// The handle by which the monitor reads the exit status.
    pub fn exit_status(&self) -> ExitStatus {
        self.status.clone()
    }
}

impl fmt::Debug for BootTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootTimer")
            .field("start", &self.start)
            .field("booted", &self.on_boot.is_none())
            .field("status", &self.status)
            .finish()
    }
}

impl BusDevice for BootTimer {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data.first()) {
            (BOOTED, Some(&MAGIC)) => {
                if let Some(on_boot) = self.on_boot.take() {
                    on_boot(self.start.elapsed());
                }
            }
            (EXIT_STATUS, Some(&status)) => {
                self.status.0.store(u16::from(status), Ordering::Release);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// If it fails, boot time is not measured, or a guest can fill the host's log.
    #[test]
    fn the_first_magic_byte_and_no_other_stops_the_timer() {
        let seen: Arc<Mutex<Vec<Duration>>> = Arc::default();
        let log = Arc::clone(&seen);
        let start = Instant::now();
        let mut timer = BootTimer::new(start, move |time| log.lock().unwrap().push(time));
        timer.write(0, &[122]);
        timer.write(1, &[123]);
        assert!(seen.lock().unwrap().is_empty());
        timer.write(0, &[123]);
        timer.write(0, &[123]);
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 1);
        assert!(seen[0] <= start.elapsed());
    }

    /// If it fails, the monitor ends with a status that the guest did not ask for.
    #[test]
    fn the_last_status_is_kept_and_none_is_not_zero() {
        let mut timer = BootTimer::new(Instant::now(), |_| {});
        let status = timer.exit_status();
        assert_eq!(status.get(), None);
        timer.write(1, &[0]);
        assert_eq!(status.get(), Some(0));
        timer.write(1, &[255]);
        assert_eq!(status.get(), Some(255));
    }
}
