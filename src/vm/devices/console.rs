//! The serial console.

use std::sync::{Arc, Mutex};

use cofferdam_boot::acpi::Serial as SerialAddress;
use cofferdam_devices::console::Console;
use cofferdam_devices::legacy::Serial;

use super::{DeviceError, Devices, event_fd};
use crate::arch::layout;
use crate::config::ConsoleConfig;
use crate::vm::lifecycle::{StopReason, Stopper};

impl Devices<'_> {
    /// The serial port, with what it leads to.
    pub(super) fn add_console(
        &mut self,
        config: &ConsoleConfig,
        stopper: &Stopper,
    ) -> Result<(), DeviceError> {
        let irq = event_fd()?;
        let line = irq.try_clone().map_err(DeviceError::EventFd)?;
        let quit = stopper.clone();
        let console = match config {
            ConsoleConfig::Off => return Ok(()),
            ConsoleConfig::Stdio => Console::stdio(irq, move || quit.stop(StopReason::Quit)),
            ConsoleConfig::File(path) => Console::file(irq, path, false),
            ConsoleConfig::Socket(path) => Console::socket(irq, path),
            ConsoleConfig::Pty => Console::pty(irq),
        }?;
        if let Some(path) = console.pty_path() {
            // Whoever asked for a pty needs its name, whatever the log's level.
            eprintln!("cofferdam: the console is at {}", path.display());
        }
        self.vm
            .register_irqfd(&line, layout::SERIAL_GSI)
            .map_err(DeviceError::Irq)?;
        self.pio
            .insert(Serial::COM1_BASE, Serial::LEN, "serial", console.serial())?;
        let port = u16::try_from(Serial::COM1_BASE).unwrap_or_default();
        self.serial = Some(SerialAddress {
            port,
            gsi: layout::SERIAL_GSI,
        });
        let console = Arc::new(Mutex::new(console));
        self.subscribers.push(console.clone());
        self.console = Some(console);
        Ok(())
    }
}
