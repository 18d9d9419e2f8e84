//! Small kernels for tests.

use std::fs::File;
use std::io::Write;

use linux_loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, boot_params, setup_header};
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};
use vm_memory::{ByteValued, GuestAddress};
use vmm_sys_util::tempfile::TempFile;

use super::{Kernel, Protocol};

/// Where the samples lie in guest memory.
pub(crate) const START: u64 = 0x100_0000;
/// Bytes of code of a sample, enough to be mapped.
pub(crate) const CODE_SIZE: usize = 0x2_0123;
/// Offset of an ELF sample's code in its file.
pub(crate) const ELF_CODE_OFFSET: usize = 0x1000;
/// Offset of a `bzImage` sample's code in its file.
pub(crate) const BZIMAGE_CODE_OFFSET: usize = 0x4000;
/// PVH entry point of an ELF sample, from [`START`].
pub(crate) const PVH_ENTRY: u64 = 0x80;

/// A file with these bytes.
pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = TempFile::new().unwrap().into_file();
    file.write_all(bytes).unwrap();
    file
}

/// A loaded kernel, without its bytes.
pub(crate) fn kernel() -> Kernel {
    Kernel {
        entry: GuestAddress(START),
        protocol: Protocol::Linux64,
        end: GuestAddress(START + 0x10_0000),
        mapped: 0,
        copied: 0,
        command_line_max: 2047,
        initrd_max: GuestAddress(0xbfff_ffff),
        setup_header: None,
    }
}

fn code() -> Vec<u8> {
    (0..CODE_SIZE).map(|i| (i % 251) as u8 + 1).collect()
}

/// The headers of [`elf`]: one segment with code, one of BSS only, one of notes.
pub(crate) fn elf_headers() -> (Elf64_Ehdr, [Elf64_Phdr; 3]) {
    let mut ident = [0; 16];
    ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let header = Elf64_Ehdr {
        e_ident: ident,
        e_type: 2,
        e_machine: 62,
        e_version: 1,
        e_entry: START + 0x40,
        e_phoff: size_of::<Elf64_Ehdr>() as u64,
        e_ehsize: size_of::<Elf64_Ehdr>() as u16,
        e_phentsize: size_of::<Elf64_Phdr>() as u16,
        e_phnum: 3,
        ..Elf64_Ehdr::default()
    };
    let segment = |kind, offset: usize, address, file: usize, memory| Elf64_Phdr {
        p_type: kind,
        p_offset: offset as u64,
        p_paddr: address,
        p_filesz: file as u64,
        p_memsz: memory,
        ..Elf64_Phdr::default()
    };
    let code_size = CODE_SIZE as u64;
    let headers = [
        segment(1, ELF_CODE_OFFSET, START, CODE_SIZE, code_size + 0x500),
        segment(1, 0, START + 0x10_0000, 0, 0x8_0000),
        segment(4, 0x800, 0, notes().len(), 0),
    ];
    (header, headers)
}

/// Two notes, of which the second names the PVH entry point.
fn notes() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, descriptor) in [
        (&b"GNU\0"[..], 3, &b"12345"[..]),
        (b"Xen\0", 18, &(START + PVH_ENTRY).to_le_bytes()),
    ] {
        for number in [name.len() as u32, descriptor.len() as u32, kind] {
            bytes.extend(number.to_le_bytes());
        }
        for part in [name, descriptor] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

/// An ELF file with these headers.
pub(crate) fn elf_with(header: Elf64_Ehdr, headers: &[Elf64_Phdr]) -> Vec<u8> {
    let mut bytes = header.as_slice().to_vec();
    for header in headers {
        bytes.extend(header.as_slice());
    }
    bytes.resize(0x800, 0);
    bytes.extend(notes());
    bytes.resize(ELF_CODE_OFFSET, 0);
    bytes.extend(code());
    // What follows a segment in a file is not the segment's.
    bytes.extend([0xee; 0x2000]);
    bytes
}

/// A `vmlinux` as linkers make them.
pub(crate) fn elf() -> Vec<u8> {
    let (header, headers) = elf_headers();
    elf_with(header, &headers)
}

/// The setup header of [`bzimage`].
pub(crate) fn setup_header() -> setup_header {
    setup_header {
        setup_sects: 31,
        syssize: CODE_SIZE.div_ceil(16) as u32,
        boot_flag: 0xaa55,
        jump: 0x66eb,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x020f,
        loadflags: LOADED_HIGH,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        xloadflags: XLF_KERNEL_64,
        cmdline_size: 2047,
        pref_address: START,
        init_size: 0x80_0000,
        ..setup_header::default()
    }
}

/// A `bzImage` with this setup header.
pub(crate) fn bzimage_with(header: setup_header) -> Vec<u8> {
    let params = boot_params {
        hdr: header,
        ..boot_params::default()
    };
    let mut bytes = params.as_slice().to_vec();
    bytes.resize(BZIMAGE_CODE_OFFSET, 0);
    bytes.extend(code());
    bytes.resize(BZIMAGE_CODE_OFFSET + CODE_SIZE.next_multiple_of(16), 0);
    // A signature, say.
    bytes.extend([0xee; 0x1000]);
    bytes
}

/// A `bzImage` as a kernel build makes it.
pub(crate) fn bzimage() -> Vec<u8> {
    bzimage_with(setup_header())
}
