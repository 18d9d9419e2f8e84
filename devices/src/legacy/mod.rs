//! Devices at fixed ports: serial, i8042 reset, boot timer, power, pvpanic.

use std::sync::Arc;

pub mod boot_timer;
pub mod i8042;
pub mod power;
pub mod pvpanic;
pub mod serial;

pub use boot_timer::{BootTimer, ExitStatus};
pub use i8042::I8042;
pub use power::Power;
pub use pvpanic::PvPanic;
pub use serial::Serial;

/// What a guest asks of, or tells, the monitor through a device of this module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// The guest wants to be switched off (ACPI S5).
    PowerOff,
    /// The guest wants a reset.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// The guest's kernel crashed and has handed over to its crash kernel, which goes on.
    CrashLoaded,
}

/// What the monitor does about a [`PowerEvent`]. Called on a vCPU thread with the device locked, as
/// often as the guest likes: it must not block, nor log without a limit.
pub type PowerHandler = Arc<dyn Fn(PowerEvent) + Send + Sync>;

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Mutex;

    use super::*;

    /// A handler that remembers what it was told.
    pub(crate) fn recorder() -> (PowerHandler, Arc<Mutex<Vec<PowerEvent>>>) {
        let seen: Arc<Mutex<Vec<PowerEvent>>> = Arc::default();
        let handler = {
            let seen = Arc::clone(&seen);
            Arc::new(move |event| seen.lock().unwrap().push(event))
        };
        (handler, seen)
    }
}
