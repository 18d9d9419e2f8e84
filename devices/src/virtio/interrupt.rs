//! How a device gets its driver's attention.

use std::fmt;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::EventFd;

use super::registers::Registers;

/// Bit of InterruptStatus: the device used a buffer (virtio 1.2, section 4.2.2).
pub const USED_BUFFER: u32 = 1;
/// Bit of InterruptStatus: the configuration, or the device's status, changed.
pub const CONFIG_CHANGE: u32 = 2;
/// Bit of the device status: the device cannot go on.
const NEEDS_RESET: u32 = virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

/// A line of the guest's interrupt controller, as the monitor hands it to a device.
pub trait Line: fmt::Debug + Send + Sync {
    /// Sends an edge.
    fn ring(&self);

    /// An event file descriptor that does the same for whoever writes to it, another process too, as
    /// long as nobody calls [`Self::ring`]. It may take longer. Fails if the host has no more.
    fn irqfd(&self) -> io::Result<&EventFd>;
}

/// An irqfd is a line by itself.
impl Line for EventFd {
    fn ring(&self) {
        // The counter cannot overflow in practice (2^64 - 2 interrupts that KVM never took); if it
        // did, an interrupt is pending anyway.
        let _ = self.write(1);
    }

    fn irqfd(&self) -> io::Result<&EventFd> {
        Ok(self)
    }
}

/// A device's interrupt: a line, and the registers that tell the driver why it rang. Clones ring the
/// same line.
///
/// While the device is active, InterruptStatus always says that a buffer was used: the line is the
/// device's own and rings for nothing else but what the other bit says, so drivers that look at
/// their queues each time lose nothing, and neither setting nor acknowledging the bit takes an exit.
#[derive(Clone, Debug)]
pub struct Interrupt {
    registers: Registers,
    line: Arc<dyn Line>,
}

impl Interrupt {
    /// An interrupt on `line`, with its causes in `registers`.
    pub fn new(line: impl Line + 'static, registers: Registers) -> Self {
        Self {
            registers,
            line: Arc::new(line),
        }
    }

    /// The event file descriptor that KVM turns into an interrupt. While the device is active,
    /// writing to it is all that "used buffers" needs: another process may do so, in place of us.
    pub fn irqfd(&self) -> io::Result<&EventFd> {
        self.line.irqfd()
    }

    /// Tells the driver that buffers were used.
    pub fn used_buffer(&self) {
        self.line.ring();
    }

    /// Tells the driver that the device's configuration space changed; `config` is all of it as it
    /// is now. Call it with the device's lock held.
    ///
    /// The driver may read while the bytes change. The generation tells it so if it notices, and
    /// the interrupt makes it read again in any case.
    pub fn config_change(&self, config: &[u8]) {
        self.registers.store_config(config);
        let generation = self.generation().wrapping_add(1);
        self.registers
            .store(reg::VIRTIO_MMIO_CONFIG_GENERATION, generation);
        self.change();
    }

    /// Tells the driver that the device cannot go on: what it found in the rings cannot be.
    pub fn needs_reset(&self) {
        self.registers
            .set_bits(reg::VIRTIO_MMIO_STATUS, NEEDS_RESET);
        self.change();
    }

    /// What the driver reads as ConfigGeneration: another number after each change. A reset does
    /// not set it back.
    pub fn generation(&self) -> u32 {
        self.registers.load(reg::VIRTIO_MMIO_CONFIG_GENERATION)
    }

    /// Whether the device said that it cannot go on.
    pub fn is_reset_needed(&self) -> bool {
        self.registers.load(reg::VIRTIO_MMIO_STATUS) & NEEDS_RESET != 0
    }

    /// The driver started the device.
    pub(super) fn start(&self) {
        self.registers
            .set_bits(reg::VIRTIO_MMIO_INTERRUPT_STATUS, USED_BUFFER);
    }

    /// The driver acknowledges the bits of `bits`.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.registers
            .clear_bits(reg::VIRTIO_MMIO_INTERRUPT_STATUS, bits & CONFIG_CHANGE);
    }

    /// The driver reset the device: nothing is pending any more.
    pub(super) fn clear(&self) {
        self.registers.store(reg::VIRTIO_MMIO_INTERRUPT_STATUS, 0);
        self.registers.store(reg::VIRTIO_MMIO_STATUS, 0);
    }

    fn change(&self) {
        self.registers
            .set_bits(reg::VIRTIO_MMIO_INTERRUPT_STATUS, CONFIG_CHANGE);
        self.line.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, the driver loses a cause of interrupt, or the device forgets that it is broken.
    #[test]
    fn an_acknowledgement_clears_a_change_but_not_the_need_for_a_reset() {
        let registers = Registers::new();
        let line = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), registers.clone());
        let status = || registers.load(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        line.start();
        line.used_buffer();
        line.config_change(&[7]);
        assert_eq!(
            (status(), line.generation()),
            (USED_BUFFER | CONFIG_CHANGE, 1)
        );
        assert_eq!(registers.load(0x100), 7);
        line.acknowledge(u32::MAX);
        assert_eq!(status(), USED_BUFFER);
        line.clone().needs_reset();
        line.acknowledge(u32::MAX);
        assert_eq!((status(), line.is_reset_needed()), (USED_BUFFER, true));
        line.clear();
        assert_eq!((status(), line.is_reset_needed()), (0, false));
        assert_eq!(line.generation(), 1);
        assert_eq!(line.irqfd().unwrap().read().unwrap(), 3);
    }
}
