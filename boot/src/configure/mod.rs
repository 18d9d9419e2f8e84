//! What a boot protocol wants in memory and registers.

mod e820;
mod linux;
mod pvh;

use thiserror::Error;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

pub use e820::{E820Entry, E820Kind, e820};

use crate::layout::{self, HIGH_MEMORY};
use crate::{CommandLine, GuestMemory, Initrd, Kernel, Protocol, gdt};

/// How the first vCPU starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// The protocol: long mode with paging ([`Protocol::Linux64`]) or protected mode without
    /// ([`Protocol::Pvh`]).
    pub protocol: Protocol,
    /// First instruction.
    pub rip: u64,
    /// Address of the boot data: RSI for [`Protocol::Linux64`], EBX for [`Protocol::Pvh`].
    pub boot_data: u64,
    /// Initial RSP.
    pub stack: u64,
    /// CR3, if the protocol starts with paging.
    pub page_tables: Option<u64>,
    /// Base of the GDT; selectors are in [`crate::gdt`].
    pub gdt: u64,
    /// Limit of the GDT (size − 1).
    pub gdt_limit: u16,
    /// What is in the GDT, so that segment registers can be loaded from it.
    pub gdt_table: [u64; gdt::ENTRIES],
}

/// Why boot data could not be written.
#[derive(Debug, Error)]
pub enum BootError {
    /// There is no memory where the boot data goes.
    #[error("the guest has {} KiB of memory at address 0, booting needs more than 1024 KiB", .0 >> 10)]
    TooSmall(u64),
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {length} bytes, the kernel takes at most {max}")]
    CommandLine {
        /// Its length in bytes.
        length: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// Memory is in more pieces than a memory map can say.
    #[error("the memory map has {count} ranges, the kernel takes at most {max}")]
    TooManyRanges {
        /// Ranges in the memory map.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// A structure could not be written.
    #[error("the {what} cannot be written to guest memory")]
    Write {
        /// The structure.
        what: &'static str,
        /// Why not.
        #[source]
        source: GuestMemoryError,
    },
}

/// Writes what the kernel's boot protocol wants (boot data, command line, page tables, GDT) and
/// says how the first vCPU starts. `rsdp` is where [`crate::acpi::write`] put it.
///
/// # Errors
/// If guest memory is too small or in too many pieces, or the command line is too long.
pub fn configure(
    mem: &GuestMemory,
    kernel: &Kernel,
    initrd: Option<&Initrd>,
    command_line: &CommandLine,
    rsdp: Option<GuestAddress>,
) -> Result<EntryState, BootError> {
    let memory = layout::low_memory_size(mem);
    if memory <= HIGH_MEMORY.0 {
        return Err(BootError::TooSmall(memory));
    }
    let length = write_command_line(mem, kernel, command_line)?;
    let gdt_table = gdt::table(kernel.protocol);
    write_all(mem, layout::GDT, &gdt_table, "GDT")?;
    let (boot_data, page_tables) = match kernel.protocol {
        Protocol::Linux64 => {
            linux::write_zero_page(mem, kernel, initrd, length, rsdp)?;
            linux::write_page_tables(mem, kernel)?;
            (layout::ZERO_PAGE, Some(layout::PAGE_TABLES.0))
        }
        Protocol::Pvh => {
            pvh::write_start_info(mem, initrd, rsdp)?;
            (layout::PVH_START_INFO, None)
        }
    };
    Ok(EntryState {
        protocol: kernel.protocol,
        rip: kernel.entry.0,
        boot_data: boot_data.0,
        stack: layout::BOOT_STACK.0,
        page_tables,
        gdt: layout::GDT.0,
        gdt_limit: gdt::LIMIT,
        gdt_table,
    })
}

/// Writes the command line and its NUL; returns its length in bytes without the NUL.
fn write_command_line(
    mem: &GuestMemory,
    kernel: &Kernel,
    command_line: &CommandLine,
) -> Result<u32, BootError> {
    let mut text = command_line.to_string().into_bytes();
    let (length, max) = (text.len(), kernel.command_line_max);
    let too_long = BootError::CommandLine { length, max };
    if length > max {
        return Err(too_long);
    }
    text.push(0);
    write_all(mem, layout::COMMAND_LINE, &text, "command line")?;
    u32::try_from(length).map_err(|_| too_long)
}

/// Writes `items` one after the other.
fn write_all<T: ByteValued>(
    mem: &GuestMemory,
    address: GuestAddress,
    items: &[T],
    what: &'static str,
) -> Result<(), BootError> {
    let bytes: Vec<u8> = items
        .iter()
        .flat_map(ByteValued::as_slice)
        .copied()
        .collect();
    mem.write_slice(&bytes, address)
        .map_err(|source| BootError::Write { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::samples;

    fn memory(size: usize) -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), size)]).unwrap()
    }

    /// If this fails, the vCPU starts in the wrong mode or with the wrong boot data.
    #[test]
    fn entry_states() {
        let mem = memory(32 << 20);
        let mut kernel = samples::kernel();
        let line = CommandLine::new("quiet", 100).unwrap();
        let state = configure(&mem, &kernel, None, &line, None).unwrap();
        assert_eq!(state.rip, kernel.entry.0);
        assert_eq!(state.boot_data, layout::ZERO_PAGE.0);
        assert_eq!(state.page_tables, Some(layout::PAGE_TABLES.0));
        let table: [u64; gdt::ENTRIES] = mem.read_obj(layout::GDT).unwrap();
        assert_eq!(table, state.gdt_table);

        kernel.protocol = Protocol::Pvh;
        let state = configure(&mem, &kernel, None, &line, None).unwrap();
        assert_eq!(state.boot_data, layout::PVH_START_INFO.0);
        assert_eq!(state.page_tables, None);
    }

    /// If this fails, the kernel reads a command line that is cut off or runs into garbage.
    #[test]
    fn command_line_is_written_with_its_nul() {
        let mem = memory(32 << 20);
        let mut kernel = samples::kernel();
        mem.write_slice(&[0xff; 8], layout::COMMAND_LINE).unwrap();
        let line = CommandLine::new("quiet", 100).unwrap();
        configure(&mem, &kernel, None, &line, None).unwrap();
        let bytes: [u8; 6] = mem.read_obj(layout::COMMAND_LINE).unwrap();
        assert_eq!(&bytes, b"quiet\0");

        kernel.command_line_max = 4;
        let error = configure(&mem, &kernel, None, &line, None).unwrap_err();
        assert!(matches!(
            error,
            BootError::CommandLine { length: 5, max: 4 }
        ));
    }

    /// If this fails, a guest with hardly any memory is not refused in words.
    #[test]
    fn memory_must_hold_the_boot_data() {
        let kernel = samples::kernel();
        let line = CommandLine::new("", 100).unwrap();
        for size in [0x1000, 0x10_0000] {
            let error = configure(&memory(size), &kernel, None, &line, None).unwrap_err();
            assert!(matches!(error, BootError::TooSmall(_)), "{error}");
        }
        let high = GuestMemory::from_ranges(&[(GuestAddress(1 << 32), 0x1000)]).unwrap();
        assert!(configure(&high, &kernel, None, &line, None).is_err());
    }
}
