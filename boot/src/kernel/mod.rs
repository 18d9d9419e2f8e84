//! Kernel images: which format a file is, and what they have in common.

mod bzimage;
mod elf;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;

use std::fs::File;

use linux_loader::bootparam::setup_header;
use thiserror::Error;
use vm_memory::GuestAddress;

use crate::image::{Image, ImageError};
use crate::layout::{self, HIGH_MEMORY, MMIO_HOLE_END, MMIO_HOLE_START};
use crate::{GuestMemory, PageMode};

/// Longest command line of an x86 Linux in bytes, without the NUL: its `COMMAND_LINE_SIZE` is 2048.
const COMMAND_LINE_MAX: usize = 2047;

/// How a kernel wants to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The 64-bit entry of the Linux boot protocol: long mode, `boot_params` in RSI.
    Linux64,
    /// Xen's PVH: 32-bit protected mode without paging, `hvm_start_info` in EBX.
    Pvh,
}

/// How to load a kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Map or copy.
    pub pages: PageMode,
    /// The protocol to use; none for the format's own, which is the 64-bit entry.
    pub protocol: Option<Protocol>,
}

/// A kernel in guest memory.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Where the first vCPU starts.
    pub entry: GuestAddress,
    /// How it starts there.
    pub protocol: Protocol,
    /// First byte after the kernel, its BSS or the memory it unpacks itself into included.
    pub end: GuestAddress,
    /// Bytes that are mapped from the file.
    pub mapped: u64,
    /// Bytes that were copied from the file.
    pub copied: u64,
    /// Longest command line it takes in bytes, without the NUL.
    pub command_line_max: usize,
    /// Last address an initrd may occupy.
    pub initrd_max: GuestAddress,
    /// The setup header of a `bzImage`, which the kernel wants back in its zero page.
    pub(crate) setup_header: Option<setup_header>,
}

/// Why a kernel could not be loaded.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file is no image, is cut off, or cannot be brought into guest memory.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Neither of the formats known.
    #[error("the file is no kernel in a known format (x86-64 ELF vmlinux, bzImage){hint}")]
    UnknownFormat {
        /// What it looks like instead, and what to do; empty if unknown.
        hint: &'static str,
    },
    /// A kernel, but of another architecture.
    #[error("the kernel is for {machine}, the guest is an x86-64 machine")]
    OtherMachine {
        /// The architecture.
        machine: String,
    },
    /// A 32-bit kernel.
    #[error("the kernel is a 32-bit {format}, only 64-bit kernels can be booted")]
    Not64Bit {
        /// The format.
        format: &'static str,
    },
    /// An ELF file of another kind.
    #[error("the ELF file is not an executable but of type {0}")]
    ElfType(u16),
    /// Program headers that no kernel has.
    #[error("the ELF file has {count} program headers of {size} bytes (1 to {max} of 56 expected)")]
    ProgramHeaders {
        /// Their number.
        count: u16,
        /// Their size in bytes.
        size: u16,
        /// Largest number accepted.
        max: u16,
    },
    /// An ELF file with nothing to load.
    #[error("the ELF file has no segment to load")]
    NoSegment,
    /// A segment that has more bytes in the file than in memory.
    #[error("the ELF segment at {start:#x} has {file} bytes in the file but {memory} in memory")]
    SegmentSize {
        /// Guest physical address.
        start: u64,
        /// Bytes in the file.
        file: u64,
        /// Bytes in memory.
        memory: u64,
    },
    /// Two segments that overlap.
    #[error("the ELF segments at {first:#x} and {second:#x} overlap")]
    SegmentOverlap {
        /// Guest physical address of the one.
        first: u64,
        /// Guest physical address of the other.
        second: u64,
    },
    /// It would lie where the monitor's own tables are.
    #[error("the kernel would lie at {start:#x}, below 1 MiB, where the boot data is")]
    LowMemory {
        /// Guest physical address.
        start: u64,
    },
    /// It does not fit.
    #[error(
        "the kernel needs guest memory up to {} MiB, the guest has {} MiB there",
        .end.div_ceil(1 << 20), .memory >> 20
    )]
    TooLarge {
        /// First byte after it.
        end: u64,
        /// Size of the memory below the MMIO hole in bytes.
        memory: u64,
    },
    /// It would lie where no machine has memory for it.
    #[error("the kernel would lie at {start:#x} to {end:#x}, outside the memory below 3 GiB")]
    OutsideMemory {
        /// First byte.
        start: u64,
        /// First byte after it.
        end: u64,
    },
    /// Its entry point is not in it.
    #[error("the kernel's entry point {0:#x} is outside of what is loaded from its file")]
    Entry(u64),
    /// PVH was asked for, the kernel has no such entry.
    #[error("the kernel has no PVH entry point ({reason})")]
    NoPvh {
        /// Why.
        reason: &'static str,
    },
    /// A `bzImage` older than the 64-bit entry.
    #[error(
        "the bzImage has boot protocol {}.{:02}, the 64-bit entry needs 2.12 or newer",
        .0 >> 8, .0 & 0xff
    )]
    BootProtocol(u16),
}

impl Kernel {
    /// Loads the kernel in `file` into `mem`, which must read as zero.
    ///
    /// Only headers and notes are read on the way; the file's position does not matter and does
    /// not change.
    ///
    /// # Errors
    /// If the file is no kernel, not one for this machine, or does not fit. Guest memory above
    /// 1 MiB may then hold parts of it.
    pub fn load(mem: &GuestMemory, file: &File, options: LoadOptions) -> Result<Self, KernelError> {
        let image = Image::new(file)?;
        match Format::of(&image)? {
            Format::Elf => elf::load(mem, &image, options),
            Format::BzImage => bzimage::load(mem, &image, options),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Elf,
    BzImage,
}

impl Format {
    /// Recognises a format by its magic numbers.
    fn of(image: &Image<'_>) -> Result<Self, KernelError> {
        let mut head = [0; 0x206];
        let length = usize::try_from(image.len()).map_or(head.len(), |len| len.min(head.len()));
        image.read(0, &mut head[..length], "first sector")?;
        if head.starts_with(b"\x7fELF") {
            return Ok(Self::Elf);
        }
        if head[0x1fe..0x200] == [0x55, 0xaa] && head[0x202..] == *b"HdrS" {
            return Ok(Self::BzImage);
        }
        let machine = match &head[56..60] {
            b"ARM\x64" => "ARM64 (an Image file)",
            b"RSC\x05" => "RISC-V (an Image file)",
            _ => {
                let hint = foreign_hint(&head);
                return Err(KernelError::UnknownFormat { hint });
            }
        };
        Err(KernelError::OtherMachine {
            machine: machine.into(),
        })
    }
}

/// What to tell the user about a file that is not a kernel but often taken for one.
fn foreign_hint(head: &[u8]) -> &'static str {
    match head {
        [0x1f, 0x8b, ..] => "; it is compressed with gzip, unpack it first",
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "; it is compressed with xz, unpack it first",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "; it is compressed with zstd, unpack it first",
        [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..] => "; it is a cpio archive, an initrd?",
        _ => "",
    }
}

/// Checks that `start..end` is memory a kernel may occupy.
fn check_range(mem: &GuestMemory, start: u64, end: u64) -> Result<(), KernelError> {
    let memory = layout::low_memory_size(mem);
    if start < HIGH_MEMORY.0 {
        return Err(KernelError::LowMemory { start });
    }
    if end > MMIO_HOLE_END || start >= MMIO_HOLE_START {
        return Err(KernelError::OutsideMemory { start, end });
    }
    if end > memory {
        return Err(KernelError::TooLarge { end, memory });
    }
    Ok(())
}
