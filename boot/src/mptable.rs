//! The MP table of Intel's MultiProcessor Specification 1.4, for guests without ACPI, and for the
//! others too: a Linux that could read one looks for it before it reads ACPI, 16 bytes at a time,
//! and maps each of them anew. A table where it looks second spares it 4,096 of these steps.

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::GuestMemory;
use crate::layout::{BASE_MEMORY_END, MP_TABLE};

/// CPUs that fit into the last KiB of base memory.
pub const CPUS_MAX: u8 = 32;

/// The configuration table follows the floating pointer structure.
const TABLE: GuestAddress = GuestAddress(MP_TABLE.0 + 16);
const HEADER_SIZE: usize = 44;
const SPECIFICATION: u8 = 4; // 1.4
const APIC_VERSION: u8 = 0x14;
/// ISA interrupts, which are the I/O APIC's pins of the same number.
const ISA_IRQS: u8 = 16;
/// Destination 'all local APICs'.
const ALL_APICS: u8 = 0xff;

/// Why the table could not be written.
#[derive(Debug, Error)]
pub enum MpTableError {
    /// There are too many CPUs for it.
    #[error("an MP table for {0} CPUs does not fit, at most {CPUS_MAX} do")]
    Cpus(u8),
    /// Guest memory has no room for it.
    #[error("the MP table cannot be written to guest memory")]
    Write(#[source] GuestMemoryError),
}

/// Writes the table at [`crate::layout::MP_TABLE`]: `cpus` CPUs with APIC IDs from 0, one ISA bus,
/// one I/O APIC whose first pins are the ISA interrupts. Addresses are guest physical.
///
/// # Errors
/// If there are more than [`CPUS_MAX`] CPUs or no base memory.
pub fn write(
    mem: &GuestMemory,
    cpus: u8,
    lapic_address: u32,
    ioapic_address: u32,
) -> Result<(), MpTableError> {
    if cpus > CPUS_MAX {
        return Err(MpTableError::Cpus(cpus));
    }
    let mut bytes = floating_pointer();
    bytes.extend(configuration(cpus, lapic_address, ioapic_address));
    debug_assert!(MP_TABLE.0 + bytes.len() as u64 <= BASE_MEMORY_END);
    mem.write_slice(&bytes, MP_TABLE)
        .map_err(MpTableError::Write)
}

/// MP 4.1.
fn floating_pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(TABLE.0.to_le_bytes().iter().take(4));
    bytes.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

/// MP 4.2 and 4.3.
fn configuration(cpus: u8, lapic_address: u32, ioapic_address: u32) -> Vec<u8> {
    // An ID of its own, after those of the CPUs.
    let ioapic = cpus;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut entry = |parts: &[&[u8]]| {
        parts
            .iter()
            .for_each(|part| entries.extend_from_slice(part));
        count += 1;
    };
    for cpu in 0..cpus {
        let (enabled, bootstrap) = (1, u8::from(cpu == 0) << 1);
        entry(&[&[0, cpu, APIC_VERSION, enabled | bootstrap], &[0; 16]]);
    }
    entry(&[&[1, 0], b"ISA   "]);
    entry(&[&[2, ioapic, APIC_VERSION, 1], &ioapic_address.to_le_bytes()]);
    for irq in 0..ISA_IRQS {
        entry(&[&[3, 0, 0, 0, 0, irq, ioapic, irq]]);
    }
    // Local interrupts: LINT0 takes the external interrupt controller's, LINT1 the NMI.
    entry(&[&[4, 3, 0, 0, 0, 0, ALL_APICS, 0]]);
    entry(&[&[4, 1, 0, 0, 0, 0, ALL_APICS, 1]]);

    let length = u16::try_from(HEADER_SIZE + entries.len()).unwrap_or(u16::MAX);
    let mut table = b"PCMP".to_vec();
    table.extend(length.to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    // OEM ID of 8 bytes, product ID of 12.
    table.extend(b"COFFER  MICROVM     ");
    table.extend([0; 6]); // no OEM table
    table.extend(count.to_le_bytes());
    table.extend(lapic_address.to_le_bytes());
    table.extend([0; 4]); // no extended table
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// The byte that makes the sum zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    /// If this fails, a guest without ACPI finds no table, or other CPUs than it has.
    #[test]
    fn is_sound() {
        for cpus in [1, 2, CPUS_MAX] {
            let mem = memory();
            write(&mem, cpus, 0xfee0_0000, 0xfec0_0000).unwrap();
            let mut bytes = [0; 0x400];
            mem.read_slice(&mut bytes, MP_TABLE).unwrap();
            assert_eq!(&bytes[..4], b"_MP_");
            assert_eq!(checksum(&bytes[..16]), 0);
            let table = &bytes[16..];
            assert_eq!(&table[..4], b"PCMP");
            let length = u16::from_le_bytes([table[4], table[5]]);
            let table = &table[..usize::from(length)];
            assert_eq!(checksum(table), 0);

            let count = u16::from_le_bytes([table[34], table[35]]);
            let (mut at, mut seen) = (HEADER_SIZE, [0_u16; 5]);
            for _ in 0..count {
                seen[usize::from(table[at])] += 1;
                at += if table[at] == 0 { 20 } else { 8 };
            }
            assert_eq!(at, table.len());
            assert_eq!(seen, [u16::from(cpus), 1, 1, 16, 2]);
        }
    }

    /// If this fails, a table for many CPUs runs into the VGA hole.
    #[test]
    fn cpus_are_bounded() {
        let error = write(&memory(), CPUS_MAX + 1, 0, 0).unwrap_err();
        assert!(matches!(error, MpTableError::Cpus(33)), "{error}");
        let small = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        assert!(matches!(
            write(&small, 1, 0, 0),
            Err(MpTableError::Write(_))
        ));
    }
}
