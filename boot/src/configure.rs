//! What a boot protocol wants in memory and registers.
use crate::{CommandLine, GuestMemory, Initrd, Kernel, Protocol};
use vm_memory::GuestAddress;

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
    pub gdt_table: [u64; 6],
}

/// Why boot data could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BootError {}

/// What a range of the memory map is. Values are those of E820 and of PVH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Memory to use.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables: to be used once they are read.
    Acpi = 3,
}

/// A range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: E820Kind,
}

/// The memory map of `mem`: sorted, without overlaps, covering all RAM and nothing else.
#[must_use]
pub fn e820(_mem: &GuestMemory) -> Vec<E820Entry> {
    unimplemented!()
}

/// Writes what the kernel's boot protocol wants (boot data, command line, page tables, GDT) and
/// says how the first vCPU starts. `rsdp` is where [`crate::acpi::write`] put it.
///
/// # Errors
/// If guest memory is too small or has too many regions.
pub fn configure(
    _mem: &GuestMemory,
    _kernel: &Kernel,
    _initrd: Option<&Initrd>,
    _command_line: &CommandLine,
    _rsdp: Option<GuestAddress>,
) -> Result<EntryState, BootError> {
    unimplemented!()
}
