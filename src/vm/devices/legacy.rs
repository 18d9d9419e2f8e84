//! The small devices at fixed ports.

use std::sync::Arc;

use cofferdam_devices::legacy::{BootTimer, I8042, Power, PowerEvent, PowerHandler, PvPanic};

use super::{DeviceError, Devices};
use crate::telemetry;
use crate::vm::lifecycle::{StopReason, Stopper};

impl Devices<'_> {
    /// The small devices at fixed ports.
    pub(super) fn add_legacy(&mut self, stopper: &Stopper) -> Result<(), DeviceError> {
        let power = power_handler(stopper.clone());
        self.add_ports(I8042::BASE, I8042::LEN, "i8042", I8042::new(power.clone()))?;
        self.add_ports(Power::BASE, Power::LEN, "power", Power::new(power.clone()))?;
        self.add_ports(PvPanic::BASE, PvPanic::LEN, "pvpanic", PvPanic::new(power))?;
        let timer = BootTimer::new(telemetry::start(), |time| {
            log::info!(
                "the guest's init runs {} us after the monitor's start",
                time.as_micros()
            );
        });
        self.exit_status = timer.exit_status();
        self.add_ports(BootTimer::BASE, BootTimer::LEN, "boot timer", timer)
    }
}

/// What the guest asks of the power registers, done.
fn power_handler(stopper: Stopper) -> PowerHandler {
    Arc::new(move |event| match event {
        PowerEvent::PowerOff => stopper.stop(StopReason::PowerOff),
        PowerEvent::Reset => stopper.stop(StopReason::Reset),
        PowerEvent::Panic => stopper.panicked(),
        // A crash kernel goes on, and ends the VM in its own time.
        PowerEvent::CrashLoaded => {}
    })
}
