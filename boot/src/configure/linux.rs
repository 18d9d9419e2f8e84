//! The 64-bit entry of the Linux boot protocol: zero page and page tables.

use linux_loader::bootparam::{
    E820_MAX_ENTRIES_ZEROPAGE, LOADED_HIGH, boot_e820_entry, boot_params, setup_header,
};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, e820, write_all};
use crate::layout::{COMMAND_LINE, MMIO_HOLE_END, PAGE_SIZE, PAGE_TABLES, ZERO_PAGE};
use crate::{GuestMemory, Initrd, Kernel};

/// 'Undefined' in the protocol's list of boot loaders, for those that have no number.
const LOADER_UNDEFINED: u8 = 0xff;

const PRESENT_WRITABLE: u64 = 0b11;
const HUGE_PAGE: u64 = 1 << 7;
const GIB: u64 = 1 << 30;
const ENTRIES: u64 = 512;

/// Writes `boot_params`.
pub(super) fn write_zero_page(
    mem: &GuestMemory,
    kernel: &Kernel,
    initrd: Option<&Initrd>,
    command_line_size: u32,
    rsdp: Option<GuestAddress>,
) -> Result<(), BootError> {
    let mut header = kernel.setup_header.unwrap_or_else(vmlinux_header);
    header.type_of_loader = LOADER_UNDEFINED;
    header.cmd_line_ptr = low_address(COMMAND_LINE);
    header.cmdline_size = command_line_size;
    let mut params = boot_params::default();
    if let Some(initrd) = initrd {
        header.ramdisk_image = low_address(initrd.base);
        header.ramdisk_size = u32::try_from(initrd.size).unwrap_or(u32::MAX);
    }
    params.hdr = header;
    params.acpi_rsdp_addr = rsdp.map_or(0, |address| address.0);

    let entries = e820(mem);
    let (count, max) = (entries.len(), E820_MAX_ENTRIES_ZEROPAGE);
    params.e820_entries = match u8::try_from(count) {
        Ok(entries) if count <= max => entries,
        _ => return Err(BootError::TooManyRanges { count, max }),
    };
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(entries) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.size,
            r#type: entry.kind as u32,
        };
    }
    params.e820_table = table;
    mem.write_obj(params, ZERO_PAGE)
        .map_err(|source| BootError::Write {
            what: "zero page",
            source,
        })
}

/// The setup header of a `vmlinux`, which has none of its own.
fn vmlinux_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020f,
        loadflags: LOADED_HIGH,
        kernel_alignment: 0x100_0000,
        ..setup_header::default()
    }
}

/// An address that is below 4 GiB because everything this crate places is.
fn low_address(address: GuestAddress) -> u32 {
    u32::try_from(address.0).unwrap_or(u32::MAX)
}

/// Writes an identity map of the first gibibytes up to the end of the kernel, in 2 MiB pages.
///
/// The protocol wants the kernel, the zero page and the command line mapped; the kernel maps what
/// else it needs. One gibibyte, three pages, does for all but the largest.
pub(super) fn write_page_tables(mem: &GuestMemory, kernel: &Kernel) -> Result<(), BootError> {
    let gibibytes = kernel.end.0.min(MMIO_HOLE_END).div_ceil(GIB).max(1);
    let pdpt = PAGE_TABLES.0 + PAGE_SIZE;
    let directory = |index: u64| pdpt + PAGE_SIZE + index * PAGE_SIZE;
    let entry = |present: bool, value: u64| if present { value | PRESENT_WRITABLE } else { 0 };

    let pml4 = (0..ENTRIES).map(|i| entry(i == 0, pdpt));
    let pointers = (0..ENTRIES).map(|i| entry(i < gibibytes, directory(i)));
    let pages = (0..gibibytes * ENTRIES).map(|i| entry(true, i << 21 | HUGE_PAGE));
    let tables: Vec<u64> = pml4.chain(pointers).chain(pages).collect();
    write_all(mem, PAGE_TABLES, &tables, "page tables")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples;
    use crate::{CommandLine, configure};

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[
            (GuestAddress(0), 32 << 20),
            (GuestAddress(4 << 30), 1 << 20),
        ])
        .unwrap()
    }

    /// If this fails, the kernel misses its command line, initrd, ACPI tables or memory.
    #[test]
    fn zero_page_says_where_everything_is() {
        let mem = memory();
        let kernel = samples::kernel();
        let initrd = Initrd {
            base: GuestAddress(0x1f0_0000),
            size: 0x1234,
            mapped: 0,
            copied: 0x1234,
        };
        let line = CommandLine::new("panic=-1", 100).unwrap();
        let rsdp = Some(GuestAddress(0xe_0000));
        configure(&mem, &kernel, Some(&initrd), &line, rsdp).unwrap();

        let params: boot_params = mem.read_obj(ZERO_PAGE).unwrap();
        let header = params.hdr;
        assert_eq!({ header.boot_flag }, 0xaa55);
        assert_eq!({ header.header }.to_le_bytes(), *b"HdrS");
        assert_eq!(u64::from(header.cmd_line_ptr), COMMAND_LINE.0);
        assert_eq!({ header.cmdline_size }, 8);
        assert_eq!({ header.ramdisk_image }, 0x1f0_0000);
        assert_eq!({ header.ramdisk_size }, 0x1234);
        assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
        assert_eq!(params.e820_entries, 6);
        let last = params.e820_table[5];
        assert_eq!({ last.addr }, 4 << 30);
        assert_eq!({ last.size }, 1 << 20);
        assert_eq!({ last.r#type }, 1);
        // The kernel takes a zero page with a non-zero sentinel for an uncleared one.
        assert_eq!(params.sentinel, 0);
    }

    /// If this fails, a bzImage does not find its own setup header.
    #[test]
    fn setup_header_of_the_image_is_kept() {
        let mem = memory();
        let mut kernel = samples::kernel();
        kernel.setup_header = Some(setup_header {
            pref_address: 0x100_0000,
            init_size: 0x1234,
            ..vmlinux_header()
        });
        let line = CommandLine::new("", 100).unwrap();
        configure(&mem, &kernel, None, &line, None).unwrap();
        let params: boot_params = mem.read_obj(ZERO_PAGE).unwrap();
        assert_eq!({ params.hdr.pref_address }, 0x100_0000);
        assert_eq!({ params.hdr.init_size }, 0x1234);
        assert_eq!(params.hdr.type_of_loader, LOADER_UNDEFINED);
    }

    /// Follows the tables at [`PAGE_TABLES`] as a CPU does.
    fn translate(mem: &GuestMemory, address: u64) -> Option<u64> {
        let mut table = PAGE_TABLES.0;
        for shift in [39, 30, 21] {
            let index = address >> shift & 0x1ff;
            let entry: u64 = mem.read_obj(GuestAddress(table + index * 8)).unwrap();
            if entry & 1 == 0 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if entry & HUGE_PAGE != 0 {
                return Some(table | address & 0x1f_ffff);
            }
        }
        None
    }

    /// If this fails, the guest's first instruction faults.
    #[test]
    fn page_tables_are_the_identity() {
        let mem = memory();
        let mut kernel = samples::kernel();
        for (end, gibibytes) in [(0x200_0000, 1), (GIB, 1), (GIB + 1, 2), (3 * GIB, 3)] {
            kernel.end = GuestAddress(end);
            write_page_tables(&mem, &kernel).unwrap();
            for address in [0, ZERO_PAGE.0, COMMAND_LINE.0, 0x123_4567, end - 1] {
                assert_eq!(translate(&mem, address), Some(address));
            }
            assert_eq!(translate(&mem, gibibytes * GIB), None);
            assert_eq!(translate(&mem, 1 << 39), None);
        }
    }

    /// If this fails, memory in many pieces overflows the zero page's table.
    #[test]
    fn too_many_ranges() {
        let mut ranges = vec![(GuestAddress(0), 32 << 20)];
        ranges.extend((1..125).map(|i| (GuestAddress((1 << 32) + i * 0x2000), 0x1000)));
        let mem = GuestMemory::from_ranges(&ranges).unwrap();
        let kernel = samples::kernel();
        let error = write_zero_page(&mem, &kernel, None, 0, None).unwrap_err();
        let max = E820_MAX_ENTRIES_ZEROPAGE;
        assert!(
            matches!(error, BootError::TooManyRanges { count: 129, max: m } if m == max),
            "{error}"
        );
    }
}
