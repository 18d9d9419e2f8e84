//! The keyboard controller, of which nothing is left but its reset line.

use std::fmt;

use super::{PowerEvent, PowerHandler};
use crate::bus::BusDevice;

/// Offset of the status (read) and command (write) register.
const COMMAND: u64 = 4;
/// Command: pulse the output line that is wired to the CPU's reset.
const PULSE_RESET: u8 = 0xfe;
/// Output buffer always full, input buffer always empty. A driver that drains the output buffer in
/// search of a controller gives up after a few reads, and one that waits until it may write the
/// reset command need not wait.
const STATUS: u8 = 0xfd;

/// Ports 0x60 to 0x64 of a PC. All but a reset goes nowhere.
pub struct I8042 {
    power: PowerHandler,
}

impl I8042 {
    /// First port on a PC.
    pub const BASE: u64 = 0x60;
    /// Number of ports.
    pub const LEN: u64 = 5;

    /// A controller whose reset line rings `power`.
    pub fn new(power: PowerHandler) -> Self {
        Self { power }
    }
}

impl fmt::Debug for I8042 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("I8042").finish_non_exhaustive()
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (COMMAND, Some(status)) = (offset, data.first_mut()) {
            *status = STATUS;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if (offset, data.first()) == (COMMAND, Some(&PULSE_RESET)) {
            (self.power)(PowerEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::recorder;
    use super::*;

    /// If it fails, `reboot=k` does not end the guest, or any write to the controller does.
    #[test]
    fn only_the_reset_command_resets() {
        let (power, seen) = recorder();
        let mut device = I8042::new(power);
        for (offset, byte) in [(0, 0xfe), (1, 0xfe), (4, 0xff), (4, 0xd1), (4, 0x00)] {
            device.write(offset, &[byte]);
        }
        assert!(seen.lock().unwrap().is_empty());
        device.write(4, &[0xfe]);
        assert_eq!(*seen.lock().unwrap(), [PowerEvent::Reset]);
    }

    /// If it fails, a probing driver waits for a controller that is not there, or a reset waits for
    /// an input buffer that never empties.
    #[test]
    fn the_status_sends_probes_away_and_lets_the_reset_through() {
        let (power, _) = recorder();
        let mut data = [0xff];
        I8042::new(power).read(4, &mut data);
        assert_eq!(data[0] & 0b11, 0b01);
    }
}
