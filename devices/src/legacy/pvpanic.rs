//! The paravirtual panic port: a guest kernel says that it is beyond help.

use std::fmt;

use super::{PowerEvent, PowerHandler};
use crate::bus::BusDevice;

/// Event bit: the kernel panicked.
const PANICKED: u8 = 1 << 0;
/// Event bit: the kernel crashed, and its crash kernel takes over.
const CRASH_LOADED: u8 = 1 << 1;

/// One port. Reading it says which events the host understands, writing it reports them.
pub struct PvPanic {
    power: PowerHandler,
}

impl PvPanic {
    /// The port where guests look for it.
    pub const BASE: u64 = 0x505;
    /// Number of ports.
    pub const LEN: u64 = 1;

    /// A port that rings `power`.
    pub fn new(power: PowerHandler) -> Self {
        Self { power }
    }
}

impl fmt::Debug for PvPanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PvPanic").finish_non_exhaustive()
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let Some(events) = data.first_mut() {
            *events = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let events = data.first().copied().unwrap_or(0);
        if events & PANICKED != 0 {
            (self.power)(PowerEvent::Panic);
        } else if events & CRASH_LOADED != 0 {
            (self.power)(PowerEvent::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::recorder;
    use super::*;

    /// If it fails, a panicking guest is not told from one that powers off, or a stray write counts
    /// as a panic.
    #[test]
    fn a_panic_is_reported_and_nothing_else_is() {
        let (power, seen) = recorder();
        let mut device = PvPanic::new(power);
        let mut data = [0xff];
        device.read(0, &mut data);
        assert_eq!(data, [3]);
        for events in [0, 0xfc, 2, 1, 3] {
            device.write(0, &[events]);
        }
        assert_eq!(
            *seen.lock().unwrap(),
            [
                PowerEvent::CrashLoaded,
                PowerEvent::Panic,
                PowerEvent::Panic
            ]
        );
    }
}
