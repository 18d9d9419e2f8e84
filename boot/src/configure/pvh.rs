//! PVH: the start info (Xen, `public/arch-x86/hvm/start_info.h`), with its module list and memory
//! map in the same page.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::{BootError, e820, write_all};
use crate::layout::{COMMAND_LINE, PAGE_SIZE, PVH_START_INFO};
use crate::{GuestMemory, Initrd};

/// Module list, after the start info.
const MODULES: GuestAddress = GuestAddress(PVH_START_INFO.0 + 0x40);
/// Memory map, after the one module.
const MEMORY_MAP: GuestAddress = GuestAddress(PVH_START_INFO.0 + 0x80);
const MEMORY_MAP_SIZE: u64 = PVH_START_INFO.0 + PAGE_SIZE - MEMORY_MAP.0;

/// Writes the start info and what it points to.
pub(super) fn write_start_info(
    mem: &GuestMemory,
    initrd: Option<&Initrd>,
    rsdp: Option<GuestAddress>,
) -> Result<(), BootError> {
    let map: Vec<hvm_memmap_table_entry> = e820(mem)
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.size,
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let room = MEMORY_MAP_SIZE / size_of::<hvm_memmap_table_entry>() as u64;
    let (count, max) = (map.len(), usize::try_from(room).unwrap_or_default());
    let memmap_entries = match u32::try_from(count) {
        Ok(entries) if count <= max => entries,
        _ => return Err(BootError::TooManyRanges { count, max }),
    };
    write_all(mem, MEMORY_MAP, &map, "PVH memory map")?;

    let module = initrd.map(|initrd| hvm_modlist_entry {
        paddr: initrd.base.0,
        size: initrd.size,
        ..hvm_modlist_entry::default()
    });
    write_all(mem, MODULES, module.as_slice(), "PVH module list")?;

    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { MODULES.0 } else { 0 },
        cmdline_paddr: COMMAND_LINE.0,
        rsdp_paddr: rsdp.map_or(0, |address| address.0),
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries,
        ..hvm_start_info::default()
    };
    write_all(mem, PVH_START_INFO, &[start_info], "PVH start info")
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    /// If this fails, a PVH kernel misses its command line, initrd, ACPI tables or memory.
    #[test]
    fn start_info_says_where_everything_is() {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
        let initrd = Initrd {
            base: GuestAddress(0x1f0_0000),
            size: 0x1234,
            mapped: 0,
            copied: 0x1234,
        };
        write_start_info(&mem, Some(&initrd), Some(GuestAddress(0xe_0000))).unwrap();
        let info: hvm_start_info = mem.read_obj(PVH_START_INFO).unwrap();
        assert_eq!(info.magic, XEN_HVM_START_MAGIC_VALUE);
        assert_eq!(info.cmdline_paddr, COMMAND_LINE.0);
        assert_eq!(info.rsdp_paddr, 0xe_0000);
        assert_eq!(info.nr_modules, 1);
        let module: hvm_modlist_entry = mem.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x1f0_0000, 0x1234));
        assert_eq!(info.memmap_entries, 5);
        let last: hvm_memmap_table_entry = mem
            .read_obj(GuestAddress(info.memmap_paddr + 4 * 24))
            .unwrap();
        assert_eq!((last.addr, last.size, last.type_), (0x10_0000, 31 << 20, 1));
    }

    /// If this fails, a guest without an initrd finds one at address 0.
    #[test]
    fn no_initrd() {
        let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap();
        write_start_info(&mem, None, None).unwrap();
        let info: hvm_start_info = mem.read_obj(PVH_START_INFO).unwrap();
        assert_eq!(
            (info.nr_modules, info.modlist_paddr, info.rsdp_paddr),
            (0, 0, 0)
        );
    }
}
