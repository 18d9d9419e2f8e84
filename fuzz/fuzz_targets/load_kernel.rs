//! Any file as a kernel, and the same file as its initrd: no panic, no hang, nothing written below
//! 1 MiB or behind the kernel.

#![no_main]

use std::fs::File;
use std::io::Write;

use arbitrary::Arbitrary;
use cofferdam_boot::{
    CommandLine, GuestMemory, Initrd, Kernel, LoadOptions, PageMode, Protocol, configure, layout,
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::seek_hole::SeekHole;
use vmm_sys_util::tempfile::TempFile;

const MEMORY: u64 = 32 << 20;
/// Where a good kernel is loaded.
const START: u32 = 16 << 20;

/// What kind of file it is, before anything is changed in it.
#[derive(Arbitrary, Debug)]
enum Format {
    Nothing,
    Elf {
        segments: Vec<Segment>,
        notes: Vec<Note>,
    },
    BzImage,
}

/// A program header, as it should be but for what it is given.
#[derive(Arbitrary, Debug)]
struct Segment {
    kind: u8,
    offset: u16,
    address: u8,
    file: u16,
    memory: u32,
}

#[derive(Arbitrary, Debug)]
struct Note {
    is_pvh: bool,
    descriptor: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
struct Input {
    format: Format,
    /// What is written over it, and where.
    patches: Vec<(u16, u32)>,
    /// Pages of zeros behind.
    blocks: u8,
    is_copied: bool,
    is_pvh: Option<bool>,
    command_line: String,
}

impl Input {
    fn contents(&self) -> Vec<u8> {
        let mut contents = match &self.format {
            Format::Nothing => Vec::new(),
            Format::Elf { segments, notes } => elf(segments, notes),
            Format::BzImage => bzimage(),
        };
        for &(at, value) in &self.patches {
            let at = usize::from(at) % 0x2000;
            if contents.len() < at + 4 {
                contents.resize(at + 4, 0);
            }
            contents[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        contents
    }
}

fuzz_target!(|input: Input| {
    let contents = input.contents();
    let pages = [PageMode::Map, PageMode::Copy][usize::from(input.is_copied)];
    let protocol = input
        .is_pvh
        .map(|is_pvh| [Protocol::Linux64, Protocol::Pvh][usize::from(is_pvh)]);
    let len = contents.len() as u64 + (u64::from(input.blocks) << 12);
    let file = sparse_file(&contents, len);
    let mut backing = sparse_file(&[], MEMORY);
    let mem = memory(&backing);

    let loaded = Kernel::load(&mem, &file, LoadOptions { pages, protocol });
    assert!(first_written(&mut backing, 0) >= layout::HIGH_MEMORY.0);
    let Ok(kernel) = loaded else {
        return;
    };
    assert!(kernel.entry >= layout::HIGH_MEMORY && kernel.entry < kernel.end);
    let behind = kernel.end.0.next_multiple_of(layout::PAGE_SIZE);
    assert_eq!(first_written(&mut backing, behind), MEMORY);
    let initrd = Initrd::load(&mem, &file, &kernel, pages).ok();
    if let Some(initrd) = initrd {
        assert!(initrd.base >= kernel.end);
        assert!(initrd.base.0 + initrd.size <= MEMORY);
    }
    let most = kernel.command_line_max;
    let line = CommandLine::new(&input.command_line, most);
    if let Ok(line) = line.or_else(|_| CommandLine::new("", most)) {
        configure(&mem, &kernel, initrd.as_ref(), &line, None).unwrap();
    }
});

/// A 64-bit executable with one good segment, and these.
fn elf(segments: &[Segment], notes: &[Note]) -> Vec<u8> {
    let segments = &segments[..segments.len().min(8)];
    let mut notes: Vec<u8> = notes.iter().flat_map(Note::bytes).collect();
    notes.truncate(0x800);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(u64::from(START + 0x40).to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 12]);
    let count = u8::try_from(2 + segments.len()).unwrap();
    file.extend([64, 0, 56, 0, count, 0, 0, 0, 0, 0, 0, 0]);
    let mut header = |kind: u8, offset: u32, address: u32, len: u32, memory: u32| {
        file.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        for value in [offset, 0, address, len, memory, 0] {
            file.extend(u64::from(value).to_le_bytes());
        }
    };
    header(1, 0x1000, START, 0x400, 0x1400);
    header(4, 0x800, 0, u32::try_from(notes.len()).unwrap(), 0);
    for segment in segments {
        let address = START + (u32::from(segment.address) << 12);
        let (offset, len) = (segment.offset.into(), segment.file.into());
        header(segment.kind, offset, address, len, segment.memory);
    }
    file.resize(0x800, 0);
    file.extend(notes);
    file.resize(0x1400, 0xcc);
    file
}

impl Note {
    fn bytes(&self) -> Vec<u8> {
        let (name, kind): (_, u32) = if self.is_pvh {
            (b"Xen\0", 18)
        } else {
            (b"GNU\0", 3)
        };
        let len = u32::try_from(self.descriptor.len()).unwrap();
        let mut bytes = [4, len, kind].map(u32::to_le_bytes).concat();
        bytes.extend(name);
        bytes.extend(&self.descriptor);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}

/// A kernel with a 64-bit entry and one sector of setup code.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &0x40u32.to_le_bytes());
    put(0x1fe, b"\x55\xaa\xeb\x66HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 0, 1, 0]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &u64::from(START).to_le_bytes());
    put(0x260, &0x1_0000u32.to_le_bytes());
    file.resize(0x800, 0xcc);
    file
}

/// A file of `len` bytes, longer than its contents, so that segments are in it.
fn sparse_file(contents: &[u8], len: u64) -> File {
    let mut file = TempFile::new_in("/dev/shm".as_ref()).unwrap().into_file();
    file.write_all(contents).unwrap();
    file.set_len(len).unwrap();
    file
}

/// Guest memory whose file knows which pages were written.
fn memory(backing: &File) -> GuestMemory {
    let file = FileOffset::new(backing.try_clone().unwrap(), 0);
    let size = usize::try_from(MEMORY).unwrap();
    GuestMemory::from_ranges_with_files([(GuestAddress(0), size, Some(file))]).unwrap()
}

/// The first page from `start` on that was written, or the end of memory. (Looking at the bytes
/// would take a page fault each.)
fn first_written(backing: &mut File, start: u64) -> u64 {
    backing.seek_data(start).unwrap().unwrap_or(MEMORY)
}
