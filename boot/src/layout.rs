//! Where things lie in guest physical memory.
//!
//! All that the monitor itself writes lies below 1 MiB, so that a kernel may lie anywhere above.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::GuestMemory;

/// Size of a page, in bytes.
pub const PAGE_SIZE: u64 = 0x1000;

/// The boot GDT, see [`crate::gdt`].
pub const GDT: GuestAddress = GuestAddress(0x500);
/// PVH `hvm_start_info`, its module list and its memory map: one page.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// Linux `boot_params`, the 'zero page': one page.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Top of the boot stack, which grows down through the page above the zero page.
pub const BOOT_STACK: GuestAddress = GuestAddress(0x8ff0);
/// Page tables of the 64-bit entry: PML4, PDPT and up to four page directories.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The command line, up to [`COMMAND_LINE_SIZE`] bytes.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Room for the command line in bytes, its NUL included.
pub const COMMAND_LINE_SIZE: u64 = 0x1_0000;
/// The last KiB of base memory (where a BIOS has its EBDA): the MP table, if there is one.
pub const MP_TABLE: GuestAddress = GuestAddress(0x9_fc00);
/// End of base memory.
pub const BASE_MEMORY_END: u64 = 0xa_0000;
/// ACPI tables, RSDP first: where a kernel that is not told looks for it.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// Room for ACPI tables, in bytes.
pub const ACPI_TABLES_SIZE: u64 = 0x1_0000;
/// A reserved page for the VM generation ID.
pub const VMGENID: GuestAddress = GuestAddress(0xf_f000);
/// First byte a kernel may occupy.
pub const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);
/// The MMIO hole, where no RAM is: from here ...
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// ... to here, where RAM goes on.
pub const MMIO_HOLE_END: u64 = 1 << 32;

/// Size of the RAM that starts at guest physical address 0, in bytes; 0 if none does.
///
/// This is the memory where kernels, initrds and all the boot data go.
#[must_use]
pub fn low_memory_size(mem: &GuestMemory) -> u64 {
    mem.find_region(GuestAddress(0))
        .map_or(0, |region| region.len().min(MMIO_HOLE_START))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, two structures overwrite each other or the kernel.
    #[test]
    fn places_are_apart() {
        let places = [
            (GDT.0, 0x100),
            (PVH_START_INFO.0, PAGE_SIZE),
            (ZERO_PAGE.0, PAGE_SIZE),
            (BOOT_STACK.0 & !(PAGE_SIZE - 1), PAGE_SIZE),
            (PAGE_TABLES.0, 6 * PAGE_SIZE),
            (COMMAND_LINE.0, COMMAND_LINE_SIZE),
            (MP_TABLE.0, 0x400),
            (ACPI_TABLES.0, ACPI_TABLES_SIZE),
            (VMGENID.0, PAGE_SIZE),
            (HIGH_MEMORY.0, 0),
        ];
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        assert_eq!(MP_TABLE.0 + 0x400, BASE_MEMORY_END);
    }
}
