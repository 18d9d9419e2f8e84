//! The registers of ACPI's hardware-reduced sleep and reset (ACPI 6.5, sections 4.8.3.6, 4.8.3.7).

use std::fmt;

use super::{PowerEvent, PowerHandler};
use crate::bus::BusDevice;

/// Offset of the sleep control register.
const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register. Its WAK_STS is never set: nothing here wakes up.
const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
const RESET: u64 = 2;

/// In the sleep control register: enter the state of SLP_TYP.
const SLP_EN: u8 = 1 << 5;
/// In the sleep control register: the state, three bits wide.
const SLP_TYP_SHIFT: u8 = 2;

/// Three ports: sleep control, sleep status, reset. The FADT and `\_S5` name the same numbers.
pub struct Power {
    power: PowerHandler,
}

impl Power {
    /// First port; that of the sleep control register.
    pub const BASE: u64 = 0x600;
    /// Number of ports.
    pub const LEN: u64 = 3;
    /// Port of the sleep control register.
    pub const SLEEP_CONTROL_PORT: u16 = 0x600;
    /// Port of the sleep status register.
    pub const SLEEP_STATUS_PORT: u16 = 0x601;
    /// Port of the reset register.
    pub const RESET_PORT: u16 = 0x602;
    /// SLP_TYP of S5, soft off.
    pub const S5: u8 = 5;
    /// The value that resets when it is written to the reset register.
    pub const RESET_VALUE: u8 = 1;

    /// Registers that ring `power`.
    pub fn new(power: PowerHandler) -> Self {
        Self { power }
    }
}

impl fmt::Debug for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Power").finish_non_exhaustive()
    }
}

impl BusDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if matches!(offset, SLEEP_CONTROL | SLEEP_STATUS | RESET) {
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else {
            return;
        };
        match offset {
            SLEEP_CONTROL if value & SLP_EN != 0 && (value >> SLP_TYP_SHIFT) & 7 == Self::S5 => {
                (self.power)(PowerEvent::PowerOff);
            }
            RESET if value == Self::RESET_VALUE => (self.power)(PowerEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::recorder;
    use super::*;

    /// If it fails, `poweroff` or `reboot` in the guest does nothing, or any write ends it.
    #[test]
    fn only_s5_and_the_reset_value_end_the_guest() {
        let (power, seen) = recorder();
        let mut device = Power::new(power);
        for (offset, value) in [
            (0, 5 << 2),
            (0, 0x20),
            (0, 0x20 | 3 << 2),
            (1, 0x34),
            (2, 2),
        ] {
            device.write(offset, &[value]);
        }
        assert!(seen.lock().unwrap().is_empty());
        device.write(0, &[0x20 | 5 << 2]);
        device.write(2, &[1]);
        assert_eq!(
            *seen.lock().unwrap(),
            [PowerEvent::PowerOff, PowerEvent::Reset]
        );
    }

    /// If it fails, a guest that waits for WAK_STS believes that it has slept.
    #[test]
    fn the_registers_read_as_zero() {
        let (power, _) = recorder();
        let mut device = Power::new(power);
        for offset in 0..Power::LEN {
            let mut data = [0xff];
            device.read(offset, &mut data);
            assert_eq!(data, [0]);
        }
    }
}
