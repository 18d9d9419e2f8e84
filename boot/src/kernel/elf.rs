//! ELF `vmlinux`, by its 64-bit entry or by the PVH entry its notes name.

use linux_loader::elf::{Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr};
use vm_memory::{ByteValued, GuestAddress};

use super::{COMMAND_LINE_MAX, Kernel, KernelError, LoadOptions, Protocol, check_range};
use crate::GuestMemory;
use crate::image::{Image, Placed};
use crate::layout::MMIO_HOLE_START;

/// Program headers accepted; Linux has 5.
const PROGRAM_HEADERS_MAX: u16 = 64;
/// Bytes of notes read; Linux has about 500.
const NOTES_MAX: u64 = 64 << 10;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: where PVH starts.
const NOTE_PHYS32_ENTRY: u32 = 18;

const EI_CLASS: usize = 4;
const EI_DATA: usize = 5;
const CLASS_32: u8 = 1;
const DATA_LITTLE_ENDIAN: u8 = 1;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;

pub(super) fn load(
    mem: &GuestMemory,
    image: &Image<'_>,
    options: LoadOptions,
) -> Result<Kernel, KernelError> {
    let header: Elf64_Ehdr = image.read_obj(0, "ELF header")?;
    check_header(&header)?;
    let headers = program_headers(image, &header)?;
    let segments: Vec<Elf64_Phdr> = headers
        .iter()
        .filter(|segment| segment.p_type == SEGMENT_LOAD && segment.p_memsz > 0)
        .copied()
        .collect();
    let end = check_segments(mem, image, &segments)?;

    let protocol = options.protocol.unwrap_or(Protocol::Linux64);
    let entry = match protocol {
        Protocol::Linux64 => header.e_entry,
        Protocol::Pvh => pvh_entry(image, &headers)?,
    };
    let in_file = |segment: &Elf64_Phdr| {
        (segment.p_paddr..segment.p_paddr + segment.p_filesz).contains(&entry)
    };
    if !segments.iter().any(in_file) {
        return Err(KernelError::Entry(entry));
    }

    let mut placed = Placed::default();
    for segment in &segments {
        placed += image.place(
            mem,
            GuestAddress(segment.p_paddr),
            segment.p_offset,
            segment.p_filesz,
            options.pages,
            "ELF segment",
        )?;
    }
    Ok(Kernel {
        entry: GuestAddress(entry),
        protocol,
        end: GuestAddress(end),
        mapped: placed.mapped,
        copied: placed.copied,
        command_line_max: COMMAND_LINE_MAX,
        initrd_max: GuestAddress(MMIO_HOLE_START - 1),
        setup_header: None,
    })
}

/// Checks that the file is an executable for an x86-64 machine.
fn check_header(header: &Elf64_Ehdr) -> Result<(), KernelError> {
    // Machine and type lie at the same place in both classes, in the file's byte order.
    let little = header.e_ident[EI_DATA] == DATA_LITTLE_ENDIAN;
    let native = |value: u16| if little { value } else { value.swap_bytes() };
    match native(header.e_machine) {
        MACHINE_X86_64 if little => {}
        MACHINE_386 => return Err(KernelError::Not64Bit { format: "i386 ELF" }),
        machine => {
            let machine = machine_name(machine);
            return Err(KernelError::OtherMachine { machine });
        }
    }
    if header.e_ident[EI_CLASS] == CLASS_32 {
        return Err(KernelError::Not64Bit { format: "x32 ELF" });
    }
    match header.e_type {
        TYPE_EXECUTABLE | TYPE_SHARED => Ok(()),
        other => Err(KernelError::ElfType(other)),
    }
}

fn machine_name(machine: u16) -> String {
    let name = match machine {
        8 => "MIPS",
        20 => "PowerPC",
        21 => "64-bit PowerPC",
        22 => "S/390",
        40 => "32-bit ARM",
        183 => "ARM64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => return format!("another machine (ELF number {machine})"),
    };
    format!("{name} (an ELF file)")
}

fn program_headers(image: &Image<'_>, header: &Elf64_Ehdr) -> Result<Vec<Elf64_Phdr>, KernelError> {
    let (count, size) = (header.e_phnum, header.e_phentsize);
    let max = PROGRAM_HEADERS_MAX;
    if count == 0 || count > max || usize::from(size) != size_of::<Elf64_Phdr>() {
        return Err(KernelError::ProgramHeaders { count, size, max });
    }
    (0..u64::from(count))
        .map(|index| {
            let offset = header.e_phoff.saturating_add(index * u64::from(size));
            Ok(image.read_obj(offset, "ELF program header")?)
        })
        .collect()
}

/// Checks every segment against the file, guest memory and the others; returns where the last ends.
fn check_segments(
    mem: &GuestMemory,
    image: &Image<'_>,
    segments: &[Elf64_Phdr],
) -> Result<u64, KernelError> {
    let mut kernel_end = None;
    for (index, segment) in segments.iter().enumerate() {
        let (start, memory) = (segment.p_paddr, segment.p_memsz);
        let end = start.saturating_add(memory);
        if segment.p_filesz > memory {
            let file = segment.p_filesz;
            return Err(KernelError::SegmentSize {
                start,
                file,
                memory,
            });
        }
        image.check(segment.p_offset, segment.p_filesz, "ELF segment")?;
        check_range(mem, start, end)?;
        // Without this check a small file could have the same bytes copied over and over. The
        // sums cannot overflow: earlier segments were found to lie in guest memory.
        let overlap = segments[..index]
            .iter()
            .find(|other| other.p_paddr < end && start < other.p_paddr + other.p_memsz);
        if let Some(other) = overlap {
            let (first, second) = (other.p_paddr, start);
            return Err(KernelError::SegmentOverlap { first, second });
        }
        kernel_end = kernel_end.max(Some(end));
    }
    kernel_end.ok_or(KernelError::NoSegment)
}

/// The entry point in the note `XEN_ELFNOTE_PHYS32_ENTRY`.
fn pvh_entry(image: &Image<'_>, headers: &[Elf64_Phdr]) -> Result<u64, KernelError> {
    for header in headers
        .iter()
        .filter(|header| header.p_type == SEGMENT_NOTE)
    {
        let length = header.p_filesz.min(NOTES_MAX);
        let mut notes = vec![0; usize::try_from(length).unwrap_or(0)];
        image.read(header.p_offset, &mut notes, "ELF notes")?;
        let align = if header.p_align == 8 { 8 } else { 4 };
        if let Some(entry) = find_phys32_entry(&notes, align) {
            return Ok(entry);
        }
    }
    let reason = "its ELF notes name none; CONFIG_PVH is off?";
    Err(KernelError::NoPvh { reason })
}

/// Looks for the note in `notes`, whose names and descriptors are padded to `align` bytes.
fn find_phys32_entry(notes: &[u8], align: usize) -> Option<u64> {
    let mut header = Elf64_Nhdr::default();
    let mut at = 0;
    // Every turn moves on by at least the size of a note header, so this ends.
    while let Some(bytes) = notes.get(at..at + size_of::<Elf64_Nhdr>()) {
        header.as_mut_slice().copy_from_slice(bytes);
        let name = at + bytes.len();
        let name_end = name + header.n_namesz as usize;
        let descriptor = name_end.next_multiple_of(align);
        let descriptor_end = descriptor + header.n_descsz as usize;
        if header.n_type == NOTE_PHYS32_ENTRY && notes.get(name..name_end)? == b"Xen\0" {
            return little_endian(notes.get(descriptor..descriptor_end)?);
        }
        at = descriptor_end.next_multiple_of(align);
    }
    None
}

/// A number of 4 or 8 bytes: kernels have written the note's descriptor both ways.
fn little_endian(bytes: &[u8]) -> Option<u64> {
    let mut value = [0; 8];
    match bytes.len() {
        length @ (4 | 8) => value[..length].copy_from_slice(bytes),
        _ => return None,
    }
    Some(u64::from_le_bytes(value))
}
