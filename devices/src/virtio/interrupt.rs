//! How a device gets the driver's attention.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Bit of InterruptStatus: the device used a buffer (virtio 1.2, section 4.2.2).
pub const USED_BUFFER: u32 = 1;
/// Bit of InterruptStatus: the configuration, or the device's status, changed.
pub const CONFIG_CHANGE: u32 = 2;
/// Kept beside the two above, never shown to the driver as an interrupt: the device cannot go on
/// and the status register shows DEVICE_NEEDS_RESET.
const NEEDS_RESET: u32 = 1 << 31;

/// What the device and the transport say to each other about interrupts.
#[derive(Debug, Default)]
struct State {
    status: AtomicU32,
    /// Counts the changes of the configuration space; a reset does not set it back.
    generation: AtomicU32,
}

/// A device's interrupt line: an irqfd, and the status word that tells the driver why it rang.
/// Clones ring the same line.
#[derive(Clone, Debug)]
pub struct Interrupt {
    state: Arc<State>,
    irqfd: Arc<EventFd>,
}

impl Interrupt {
    /// A line that rings `irqfd`.
    pub fn new(irqfd: EventFd) -> Self {
        Self {
            state: Arc::default(),
            irqfd: Arc::new(irqfd),
        }
    }

    /// The event file descriptor that KVM turns into an interrupt.
    pub fn irqfd(&self) -> &EventFd {
        &self.irqfd
    }

    /// Tells the driver that buffers were used.
    pub fn used_buffer(&self) {
        self.ring(USED_BUFFER);
    }

    /// Tells the driver that the device's configuration space changed. Call it after the change,
    /// with the device's lock held since before it.
    pub fn config_change(&self) {
        self.state.generation.fetch_add(1, Ordering::AcqRel);
        self.ring(CONFIG_CHANGE);
    }

    /// Tells the driver that the device cannot go on: what it found in the rings cannot be.
    pub fn needs_reset(&self) {
        self.ring(NEEDS_RESET | CONFIG_CHANGE);
    }

    /// What the driver reads as InterruptStatus.
    pub fn status(&self) -> u32 {
        self.state.status.load(Ordering::Acquire) & (USED_BUFFER | CONFIG_CHANGE)
    }

    /// What the driver reads as ConfigGeneration: another number after each change.
    pub fn generation(&self) -> u32 {
        self.state.generation.load(Ordering::Acquire)
    }

    /// The driver acknowledges the bits of `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.state
            .status
            .fetch_and(!(bits & (USED_BUFFER | CONFIG_CHANGE)), Ordering::AcqRel);
    }

    /// Whether the device said that it cannot go on.
    pub fn is_reset_needed(&self) -> bool {
        self.state.status.load(Ordering::Acquire) & NEEDS_RESET != 0
    }

    /// The driver reset the device: nothing is pending any more.
    pub fn clear(&self) {
        self.state.status.store(0, Ordering::Release);
    }

    fn ring(&self, bits: u32) {
        self.state.status.fetch_or(bits, Ordering::AcqRel);
        // The counter cannot overflow in practice (2^64 - 2 interrupts that KVM never took); if it
        // did, an interrupt is pending anyway.
        let _ = self.irqfd.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, the driver loses a cause of interrupt, or the device forgets that it is broken.
    #[test]
    fn an_acknowledgement_clears_causes_but_not_the_need_for_a_reset() {
        let line = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        line.used_buffer();
        line.config_change();
        line.acknowledge(USED_BUFFER);
        assert_eq!((line.status(), line.generation()), (CONFIG_CHANGE, 1));
        line.clone().needs_reset();
        line.acknowledge(u32::MAX);
        assert_eq!((line.status(), line.is_reset_needed()), (0, true));
        line.clear();
        assert_eq!((line.is_reset_needed(), line.generation()), (false, 1));
        assert_eq!(line.irqfd().read().unwrap(), 3);
    }
}
