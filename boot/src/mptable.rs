//! The MP table of Intel's MultiProcessor Specification 1.4, for guests without ACPI.
use crate::GuestMemory;

/// Why the table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum MpTableError {}

/// Writes the table at [`crate::layout::MP_TABLE`].
///
/// # Errors
/// If there are too many CPUs or no base memory.
pub fn write(
    _mem: &GuestMemory,
    _cpus: u8,
    _lapic_address: u32,
    _ioapic_address: u32,
) -> Result<(), MpTableError> {
    unimplemented!()
}
