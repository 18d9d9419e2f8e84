//! `bzImage`, by its 64-bit hand-over (Linux boot protocol, '64-bit boot protocol').

use linux_loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, boot_params, setup_header};
use vm_memory::{ByteValued, GuestAddress};

use super::{Kernel, KernelError, LoadOptions, Protocol, check_range};
use crate::GuestMemory;
use crate::image::Image;
use crate::layout::{COMMAND_LINE_SIZE, MMIO_HOLE_START};

/// Where the setup header lies, in the file as in `boot_params`.
const HEADER_START: usize = 0x1f1;
/// The boot protocol that brought the 64-bit entry.
const PROTOCOL_64BIT: u16 = 0x020c;
/// The 64-bit entry, in bytes from where the kernel is loaded.
const ENTRY_64BIT: u64 = 0x200;
const SECTOR: u64 = 512;

pub(super) fn load(
    mem: &GuestMemory,
    image: &Image<'_>,
    options: LoadOptions,
) -> Result<Kernel, KernelError> {
    if options.protocol == Some(Protocol::Pvh) {
        let reason = "a bzImage never has; use the vmlinux";
        return Err(KernelError::NoPvh { reason });
    }
    let header = read_header(image)?;
    check_header(&header)?;

    let sectors = match header.setup_sects {
        0 => 4, // as the protocol has it, for very old kernels
        sectors => u64::from(sectors),
    };
    let offset = (sectors + 1) * SECTOR;
    let size = u64::from(header.syssize) * 16;
    image.check(offset, size, "kernel code")?;

    // A kernel that may be loaded elsewhere still unpacks itself to its preferred address (or
    // above), so loading it elsewhere would gain nothing.
    let start = header.pref_address;
    let end = start.saturating_add(size.max(u64::from(header.init_size)));
    check_range(mem, start, end)?;
    let entry = start + ENTRY_64BIT;
    if size <= ENTRY_64BIT {
        return Err(KernelError::Entry(entry));
    }

    let start = GuestAddress(start);
    let placed = image.place(mem, start, offset, size, options.pages, "kernel code")?;
    let room = COMMAND_LINE_SIZE - 1;
    let command_line_max = u64::from(header.cmdline_size).min(room);
    Ok(Kernel {
        entry: GuestAddress(entry),
        protocol: Protocol::Linux64,
        end: GuestAddress(end),
        mapped: placed.mapped,
        copied: placed.copied,
        command_line_max: usize::try_from(command_line_max).unwrap_or_default(),
        initrd_max: GuestAddress(u64::from(header.initrd_addr_max).min(MMIO_HOLE_START - 1)),
        setup_header: Some(header),
    })
}

/// Reads as much of the setup header as the kernel has; what it has not is zero.
fn read_header(image: &Image<'_>) -> Result<setup_header, KernelError> {
    const WHAT: &str = "setup header";
    // The byte at 0x201 is the operand of a jump over the header: where the header ends.
    let mut jump = [0];
    image.read(0x201, &mut jump, WHAT)?;
    let end = (0x202 + usize::from(jump[0])).min(HEADER_START + size_of::<setup_header>());
    let mut params = boot_params::default();
    let bytes = &mut params.as_mut_slice()[HEADER_START..end];
    image.read(HEADER_START as u64, bytes, WHAT)?;
    Ok(params.hdr)
}

fn check_header(header: &setup_header) -> Result<(), KernelError> {
    let version = header.version;
    if version < PROTOCOL_64BIT {
        return Err(KernelError::BootProtocol(version));
    }
    let high = header.loadflags & LOADED_HIGH != 0;
    if !high || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::Not64Bit { format: "bzImage" });
    }
    Ok(())
}
