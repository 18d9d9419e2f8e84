//! Interrupt lines of virtio devices.

use std::fmt;
use std::sync::Arc;

use cofferdam_devices::virtio::interrupt::Line;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::{DeviceError, event_fd};

/// An edge-triggered line of the I/O APIC.
///
/// The monitor's own devices ring it by an ioctl, since KVM hands an irqfd of such a line on to a
/// kernel thread: two context switches before the guest hears of it. The irqfd is there for others.
pub(super) struct IrqLine {
    vm: Arc<VmFd>,
    gsi: u32,
    irqfd: EventFd,
}

impl IrqLine {
    /// The line `gsi` of `vm`.
    pub(super) fn new(vm: Arc<VmFd>, gsi: u32) -> Result<Self, DeviceError> {
        let irqfd = event_fd()?;
        vm.register_irqfd(&irqfd, gsi).map_err(DeviceError::Irq)?;
        Ok(Self { vm, gsi, irqfd })
    }
}

impl Line for IrqLine {
    fn ring(&self) {
        // Lowered first: the line rests high, so that whoever rings it at the same time either makes
        // an edge or is covered by one that comes later than both began.
        for is_high in [false, true] {
            // Fails for a line that is not there only, and this one was there at the start.
            if let Err(error) = self.vm.set_irq_line(self.gsi, is_high) {
                log::error!("interrupt line {}: {error}", self.gsi);
            }
        }
    }

    fn irqfd(&self) -> &EventFd {
        &self.irqfd
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({})", self.gsi)
    }
}
