//! Interrupt lines of virtio devices.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use cofferdam_devices::virtio::interrupt::Line;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An edge-triggered line of the I/O APIC.
///
/// The monitor's own devices ring it by an ioctl, since KVM hands an irqfd of such a line on to a
/// kernel thread: two context switches before the guest hears of it. An irqfd is made for others who
/// ask for it; it makes an edge only as long as the monitor itself does not ring, for after that the
/// line rests high.
pub(super) struct IrqLine {
    vm: Arc<VmFd>,
    gsi: u32,
    irqfd: OnceLock<EventFd>,
}

impl IrqLine {
    /// The line `gsi` of `vm`.
    pub(super) fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self {
            vm,
            gsi,
            irqfd: OnceLock::new(),
        }
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

    fn irqfd(&self) -> io::Result<&EventFd> {
        if let Some(irqfd) = self.irqfd.get() {
            return Ok(irqfd);
        }
        let irqfd = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        self.vm
            .register_irqfd(&irqfd, self.gsi)
            .map_err(io::Error::from)?;
        Ok(self.irqfd.get_or_init(|| irqfd))
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IrqLine({})", self.gsi)
    }
}
