use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};
use proptest::prelude::*;
use vm_memory::{ByteValued, Bytes};

use super::samples::{self, CODE_SIZE, ELF_CODE_OFFSET, START};
use super::*;
use crate::{Initrd, layout};

const MEMORY: usize = 32 << 20;

fn memory() -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

fn load(mem: &GuestMemory, bytes: &[u8], pages: PageMode) -> Result<Kernel, KernelError> {
    let protocol = None;
    Kernel::load(mem, &samples::file(bytes), LoadOptions { pages, protocol })
}

/// Loads bytes that should be refused.
fn refuse(bytes: &[u8]) -> KernelError {
    load(&memory(), bytes, PageMode::Map).unwrap_err()
}

fn refuse_elf(change: impl FnOnce(&mut Elf64_Ehdr, &mut [Elf64_Phdr; 3])) -> KernelError {
    let (mut header, mut headers) = samples::elf_headers();
    change(&mut header, &mut headers);
    refuse(&samples::elf_with(header, &headers))
}

fn refuse_bzimage(change: impl FnOnce(&mut setup_header)) -> KernelError {
    let mut header = samples::setup_header();
    change(&mut header);
    refuse(&samples::bzimage_with(header))
}

/// What is in memory from `start` to `end`.
fn bytes(mem: &GuestMemory, start: u64, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; (end - start) as usize];
    mem.read_slice(&mut bytes, GuestAddress(start)).unwrap();
    bytes
}

/// Checks that nothing is written where no kernel may be.
fn assert_untouched(mem: &GuestMemory, start: u64, end: u64) {
    assert!(bytes(mem, start, end).iter().all(|byte| *byte == 0));
}

/// If this fails, a vmlinux starts with wrong bytes, a wrong entry point or a dirty BSS.
#[test]
fn elf_is_loaded() {
    for pages in [PageMode::Map, PageMode::Copy] {
        let mem = memory();
        let kernel = load(&mem, &samples::elf(), pages).unwrap();
        assert_eq!(kernel.entry.0, START + 0x40);
        assert_eq!(kernel.protocol, Protocol::Linux64);
        assert_eq!(kernel.end.0, START + 0x18_0000);
        assert_eq!(
            kernel.mapped,
            if pages == PageMode::Map { 0x2_0000 } else { 0 }
        );
        assert_eq!(kernel.mapped + kernel.copied, CODE_SIZE as u64);
        let end = START + CODE_SIZE as u64;
        let code = &samples::elf()[ELF_CODE_OFFSET..][..CODE_SIZE];
        assert!(bytes(&mem, START, end) == code);
        assert_untouched(&mem, 0, START);
        assert_untouched(&mem, end, MEMORY as u64);
    }
}

/// If this fails, PVH starts a kernel at its 64-bit entry, or not at all.
#[test]
fn pvh_entry_comes_from_the_notes() {
    let options = LoadOptions {
        protocol: Some(Protocol::Pvh),
        ..LoadOptions::default()
    };
    let mem = memory();
    let kernel = Kernel::load(&mem, &samples::file(&samples::elf()), options).unwrap();
    assert_eq!(kernel.protocol, Protocol::Pvh);
    assert_eq!(kernel.entry.0, START + samples::PVH_ENTRY);

    let (header, mut headers) = samples::elf_headers();
    headers[2].p_type = 0;
    let without = samples::file(&samples::elf_with(header, &headers));
    let error = Kernel::load(&mem, &without, options).unwrap_err();
    assert!(matches!(error, KernelError::NoPvh { .. }), "{error}");
    let error = Kernel::load(&mem, &samples::file(&samples::bzimage()), options).unwrap_err();
    assert!(matches!(error, KernelError::NoPvh { .. }), "{error}");
}

/// If this fails, a bzImage starts with wrong bytes, a wrong entry point or too little memory.
#[test]
fn bzimage_is_loaded() {
    for pages in [PageMode::Map, PageMode::Copy] {
        let mem = memory();
        let kernel = load(&mem, &samples::bzimage(), pages).unwrap();
        assert_eq!(kernel.entry.0, START + 0x200);
        assert_eq!(kernel.end.0, START + 0x80_0000);
        assert_eq!(kernel.command_line_max, 2047);
        assert_eq!(kernel.initrd_max.0, 0x7fff_ffff);
        assert_eq!({ kernel.setup_header.unwrap().init_size }, 0x80_0000);
        let end = START + CODE_SIZE as u64;
        let code = &samples::bzimage()[samples::BZIMAGE_CODE_OFFSET..][..CODE_SIZE];
        assert!(bytes(&mem, START, end) == code);
        assert_untouched(&mem, 0, START);
        assert_untouched(&mem, end, MEMORY as u64);
    }
}

/// If this fails, a user who gives the wrong file is not told what it is.
#[test]
fn other_files_are_named() {
    assert!(matches!(
        refuse(b"x"),
        KernelError::UnknownFormat { hint: "" }
    ));
    for (bytes, wanted) in [
        (&b"\x1f\x8b\x08\0"[..], "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"070701", "cpio"),
        (b"#!/bin/sh\n", "bzImage"),
    ] {
        let message = refuse(bytes).to_string();
        assert!(message.contains(wanted), "{message}");
    }
    let mut image = vec![0; 0x1000];
    image[56..60].copy_from_slice(b"ARM\x64");
    assert!(refuse(&image).to_string().contains("ARM64"));
    image[56..60].copy_from_slice(b"RSC\x05");
    assert!(refuse(&image).to_string().contains("RISC-V"));
}

/// If this fails, a kernel of another machine or class crashes instead of being refused.
#[test]
fn other_machines_are_named() {
    let message = refuse_elf(|header, _| header.e_machine = 183).to_string();
    assert!(message.contains("ARM64"), "{message}");
    let error = refuse_elf(|header, _| {
        header.e_ident[5] = 2;
        header.e_machine = 22_u16.swap_bytes();
    });
    assert!(error.to_string().contains("S/390"), "{error}");
    let error = refuse_elf(|header, _| header.e_machine = 3);
    assert!(matches!(error, KernelError::Not64Bit { .. }), "{error}");
    let error = refuse_elf(|header, _| header.e_ident[4] = 1);
    assert!(matches!(error, KernelError::Not64Bit { .. }), "{error}");
    let error = refuse_elf(|header, _| header.e_type = 1);
    assert!(matches!(error, KernelError::ElfType(1)), "{error}");
    let error = refuse_bzimage(|header| header.xloadflags = 0);
    assert!(matches!(error, KernelError::Not64Bit { .. }), "{error}");
    let error = refuse_bzimage(|header| header.version = 0x020b);
    assert_eq!(
        error.to_string(),
        "the bzImage has boot protocol 2.11, the 64-bit entry needs 2.12 or newer"
    );
}

/// If this fails, a kernel that was not copied whole starts and crashes.
#[test]
fn truncated_files_are_refused() {
    let truncated = |bytes: &[u8]| {
        let error = refuse(bytes);
        assert!(
            matches!(error, KernelError::Image(ImageError::Truncated { .. })),
            "{error}"
        );
    };
    let elf = samples::elf();
    for length in [4, 63, 64, 100, 0x1000, ELF_CODE_OFFSET + CODE_SIZE - 1] {
        truncated(&elf[..length]);
    }
    let bzimage = samples::bzimage();
    for length in [
        0x206,
        0x210,
        0x1000,
        samples::BZIMAGE_CODE_OFFSET + CODE_SIZE - 1,
    ] {
        truncated(&bzimage[..length]);
    }
}

/// If this fails, a kernel overwrites the boot data or lies where no memory is.
#[test]
fn kernels_must_fit() {
    let error = refuse_elf(|_, headers| headers[0].p_paddr = 0xf_f000);
    assert!(matches!(error, KernelError::LowMemory { .. }), "{error}");
    let error = refuse_bzimage(|header| header.pref_address = 0x1000);
    assert!(matches!(error, KernelError::LowMemory { .. }), "{error}");
    for address in [0xbfff_f000_u64, 0xffff_f000, 0x1_0000_0000, u64::MAX - 5] {
        let error = refuse_elf(|_, headers| headers[1].p_paddr = address);
        let wanted = if address < layout::MMIO_HOLE_START {
            matches!(error, KernelError::TooLarge { .. })
        } else {
            matches!(error, KernelError::OutsideMemory { .. })
        };
        assert!(wanted, "{error}");
    }
    let error = refuse_elf(|_, headers| headers[1].p_memsz = 0xf0_0001);
    assert_eq!(
        error.to_string(),
        "the kernel needs guest memory up to 33 MiB, the guest has 32 MiB there"
    );
    let error = refuse_bzimage(|header| header.init_size = 0x100_0001);
    assert!(matches!(error, KernelError::TooLarge { .. }), "{error}");
    let error = refuse_bzimage(|header| header.pref_address = u64::MAX);
    assert!(
        matches!(error, KernelError::OutsideMemory { .. }),
        "{error}"
    );
}

/// If this fails, a crooked image is loaded in part, or over and over.
#[test]
fn crooked_headers_are_refused() {
    let error = refuse_elf(|_, headers| headers[0].p_memsz = 1);
    assert!(matches!(error, KernelError::SegmentSize { .. }), "{error}");
    let error = refuse_elf(|_, headers| headers[1].p_paddr = START + 0x100);
    assert!(
        matches!(error, KernelError::SegmentOverlap { .. }),
        "{error}"
    );
    let error = refuse_elf(|header, _| header.e_phnum = 65);
    assert!(
        matches!(error, KernelError::ProgramHeaders { .. }),
        "{error}"
    );
    let error = refuse_elf(|header, _| header.e_phentsize = 32);
    assert!(
        matches!(error, KernelError::ProgramHeaders { .. }),
        "{error}"
    );
    let error = refuse_elf(|header, _| header.e_phoff = u64::MAX - 10);
    assert!(matches!(error, KernelError::Image(_)), "{error}");
    let error = refuse_elf(|header, _| header.e_phnum = 0);
    assert!(
        matches!(error, KernelError::ProgramHeaders { .. }),
        "{error}"
    );
    let error = refuse_elf(|_, headers| (headers[0].p_type, headers[1].p_type) = (0, 0));
    assert!(matches!(error, KernelError::NoSegment), "{error}");
    for entry in [
        0,
        START - 1,
        START + CODE_SIZE as u64,
        START + 0x10_0000,
        u64::MAX,
    ] {
        let error = refuse_elf(|header, _| header.e_entry = entry);
        assert!(matches!(error, KernelError::Entry(_)), "{error}");
    }
    let error = refuse_bzimage(|header| header.syssize = 0x20);
    assert!(matches!(error, KernelError::Entry(_)), "{error}");
}

/// Loads hostile bytes and checks what must hold whatever they are.
fn survive(bytes: &[u8], protocol: Option<Protocol>, pages: PageMode) {
    let mem = memory();
    let file = samples::file(bytes);
    let Ok(kernel) = Kernel::load(&mem, &file, LoadOptions { pages, protocol }) else {
        assert_untouched(&mem, 0, layout::HIGH_MEMORY.0);
        return;
    };
    assert!(kernel.entry >= layout::HIGH_MEMORY && kernel.entry < kernel.end);
    assert!(kernel.end.0 <= MEMORY as u64);
    assert!(kernel.mapped + kernel.copied <= bytes.len() as u64 * 64);
    assert_untouched(&mem, 0, layout::HIGH_MEMORY.0);
    assert_untouched(&mem, kernel.end.0, MEMORY as u64);
    if let Ok(initrd) = Initrd::load(&mem, &file, &kernel, pages) {
        assert!(initrd.base >= kernel.end);
        assert!(initrd.base.0 + initrd.size <= MEMORY as u64);
    }
}

fn protocols() -> impl Strategy<Value = Option<Protocol>> {
    prop::sample::select(vec![None, Some(Protocol::Linux64), Some(Protocol::Pvh)])
}

fn page_modes() -> impl Strategy<Value = PageMode> {
    prop::sample::select(vec![PageMode::Map, PageMode::Copy])
}

/// Bytes to change in a file and what to change them to, some of them with large effect.
fn changes(length: usize) -> impl Strategy<Value = Vec<(usize, u8)>> {
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80)];
    prop::collection::vec((0..length, byte), 1..16)
}

proptest! {
    /// If this fails, some file that is no kernel makes the monitor panic.
    #[test]
    fn random_files(
        mut bytes in prop::collection::vec(any::<u8>(), 1..0x1000),
        magic in 0..3,
        protocol in protocols(),
        pages in page_modes(),
    ) {
        if magic == 1 && bytes.len() > 20 {
            bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
            bytes[18..20].copy_from_slice(&[62, 0]);
        } else if magic == 2 && bytes.len() > 0x206 {
            bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
            bytes[0x202..0x206].copy_from_slice(b"HdrS");
        }
        survive(&bytes, protocol, pages);
    }

    /// If this fails, some broken vmlinux makes the monitor panic, hang or write where it must not.
    #[test]
    fn mutated_elf(
        // The headers and the notes, with the rest left alone.
        headers in changes(64 + 3 * 56),
        notes in changes(0x40),
        protocol in protocols(),
        pages in page_modes(),
    ) {
        let mut bytes = samples::elf();
        for (at, byte) in headers {
            bytes[at] = byte;
        }
        for (at, byte) in notes {
            bytes[0x800 + at] = byte;
        }
        survive(&bytes, protocol, pages);
    }

    /// If this fails, some crooked segment is not refused.
    #[test]
    fn random_segments(
        fields in prop::array::uniform3((
            prop::sample::select(vec![0_u32, 1, 1, 1, 4]),
            0_u64..0x2_4000, 0xf_0000_u64..0x210_0000, 0_u64..0x2_4000, 0_u64..0x100_0000,
        )),
        protocol in protocols(),
        pages in page_modes(),
    ) {
        let (mut header, _) = samples::elf_headers();
        let headers = fields.map(|(p_type, p_offset, p_paddr, p_filesz, p_memsz)| Elf64_Phdr {
            p_type, p_offset, p_paddr, p_filesz, p_memsz, ..Elf64_Phdr::default()
        });
        header.e_entry = headers[0].p_paddr;
        survive(&samples::elf_with(header, &headers), protocol, pages);
    }

    /// If this fails, some broken bzImage makes the monitor panic or write where it must not.
    #[test]
    fn mutated_bzimage(header in changes(123), pages in page_modes()) {
        let mut setup = samples::setup_header();
        for (at, byte) in header {
            setup.as_mut_slice()[at] = byte;
        }
        survive(&samples::bzimage_with(setup), None, pages);
    }
}
