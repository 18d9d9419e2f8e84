//! Kernel formats and boot protocols: guest memory in, entry state out. Knows no KVM.
//!
//! The order of calls is the order of boot:
//!
//! 1. [`Kernel::load`] puts a kernel into guest memory (ELF `vmlinux` or `bzImage`),
//! 2. [`Initrd::load`] an initrd above it,
//! 3. [`CommandLine`] is what the user asked for and what the monitor appends,
//! 4. [`acpi::write`] (or [`mptable::write`] for a guest without ACPI) describes the machine,
//! 5. [`configure`] writes what the boot protocol wants and says how the first vCPU starts.
//!
//! Guest memory must read as zero before step 1, as freshly mapped memory does: nothing here
//! clears the BSS of a kernel, because touching it would make the host allocate it.

// Test data is small; casts there would drown in conversions.
#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod acpi;
mod cmdline;
mod configure;
pub mod gdt;
mod image;
mod initrd;
mod kernel;
pub mod layout;
pub mod mptable;

pub use cmdline::{CommandLine, CommandLineError};
pub use configure::{BootError, E820Entry, E820Kind, EntryState, configure, e820};
pub use image::{ImageError, PageMode};
pub use initrd::{Initrd, InitrdError};
pub use kernel::{Kernel, KernelError, LoadOptions, Protocol};

/// Guest memory as this crate takes it: mapped, without a dirty bitmap.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
