//! ACPI tables.
use crate::GuestMemory;
use vm_memory::GuestAddress;

/// A virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Base of its registers.
    pub base: u32,
    /// Size of its registers in bytes.
    pub len: u32,
    /// Its interrupt.
    pub gsi: u32,
}

/// A 16550 serial port (eight I/O ports).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial {
    /// First port.
    pub port: u16,
    /// Its interrupt.
    pub gsi: u32,
}

/// The machine to describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Number of CPUs; APIC IDs are 0 and up.
    pub cpus: u8,
    /// Base address of the local APICs.
    pub lapic_address: u32,
    /// Base address of the I/O APIC (ID = number of CPUs, GSI base 0).
    pub ioapic_address: u32,
    /// virtio-mmio devices.
    pub virtio: Vec<VirtioMmio>,
    /// COM1, if there is one.
    pub serial: Option<Serial>,
    /// Interrupt of the generic event device: one edge means 'power button pressed'.
    pub ged_gsi: u32,
    /// Where the VM generation ID is, if there is one.
    pub vmgenid: Option<GuestAddress>,
    /// Port of the sleep control register; the guest writes [`SLEEP_CONTROL_S5`] to power off.
    pub sleep_control_port: u16,
    /// Port of the sleep status register.
    pub sleep_status_port: u16,
    /// Port of the reset register.
    pub reset_port: u16,
    /// What the guest writes to the reset register.
    pub reset_value: u8,
    /// Port of a pvpanic device, if there is one.
    pub pvpanic_port: Option<u16>,
}

/// `SLP_TYP` of soft-off.
const SLP_TYP_S5: u8 = 5;
/// What a guest writes to the sleep control register to power off: `SLP_EN` and `SLP_TYP` 5.
pub const SLEEP_CONTROL_S5: u8 = 1 << 5 | SLP_TYP_S5 << 2;

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {}

/// Writes the tables at [`crate::layout::ACPI_TABLES`] and returns the address of the RSDP.
///
/// # Errors
/// If they do not fit.
pub fn write(_mem: &GuestMemory, _config: &AcpiConfig) -> Result<GuestAddress, AcpiError> {
    unimplemented!()
}
