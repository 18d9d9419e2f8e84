//! The keyboard controller, of which nothing is left but its reset line.

use std::convert::Infallible;
use std::fmt;

use vm_superio::{I8042Device, Trigger};

use super::{PowerEvent, PowerHandler};
use crate::bus::BusDevice;

/// Offset of the status (read) and command (write) register.
const COMMAND: u64 = 4;
/// Output buffer always full, input buffer always empty. A driver that drains the output buffer in
/// search of a controller gives up after a few reads, and one that waits until it may write the
/// reset command need not wait.
const STATUS: u8 = 0xfd;

/// Ports 0x60 to 0x64 of a PC. All but a reset goes nowhere.
pub struct I8042 {
    controller: I8042Device<ResetLine>,
}

/// The output that is wired to the CPU's reset.
struct ResetLine(PowerHandler);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)(PowerEvent::Reset);
        Ok(())
    }
}

impl I8042 {
    /// First port on a PC.
    pub const BASE: u64 = 0x60;
    /// Number of ports.
    pub const LEN: u64 = 5;

    /// A controller whose reset line rings `power`.
    pub fn new(power: PowerHandler) -> Self {
        Self {
            controller: I8042Device::new(ResetLine(power)),
        }
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
        if let (Ok(offset), Some(&byte)) = (u8::try_from(offset), data.first()) {
            let Ok(()) = self.controller.write(offset, byte);
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
