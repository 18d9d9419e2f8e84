//! Any file as a kernel, and the same file as its initrd: no panic, no hang, nothing written below
//! 1 MiB or behind the kernel.
//!
//! Run it with `cargo +nightly fuzz run load_kernel -- -max_len=8192`.

#![no_main]

use std::fs::File;
use std::io::Write;

use cofferdam_boot::{
    CommandLine, GuestMemory, Initrd, Kernel, LoadOptions, PageMode, Protocol, configure, layout,
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::seek_hole::SeekHole;
use vmm_sys_util::tempfile::TempFile;

const MEMORY: u64 = 32 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&[choice, blocks], contents)) = data.split_first_chunk() else {
        return;
    };
    let pages = [PageMode::Map, PageMode::Copy][usize::from(choice & 1)];
    let protocol =
        [None, Some(Protocol::Linux64), Some(Protocol::Pvh), None][usize::from(choice >> 1 & 3)];
    let mut contents = contents.to_vec();
    stamp(&mut contents, choice >> 3 & 3);
    let file = sparse_file(&contents, contents.len() as u64 + (u64::from(blocks) << 12));
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
    if let Ok(line) = CommandLine::new("quiet -- x", kernel.command_line_max) {
        configure(&mem, &kernel, initrd.as_ref(), &line, None).unwrap();
    }
});

/// Writes magic numbers where they belong, so that the fuzzer need not find them.
fn stamp(contents: &mut [u8], format: u8) {
    let stamps: &[(usize, &[u8])] = match format {
        1 => &[
            (0, b"\x7fELF\x02\x01\x01"),
            (16, &[2, 0, 62, 0]),
            (54, &[56, 0]),
        ],
        2 => &[(0x1fe, &[0x55, 0xaa]), (0x202, b"HdrS")],
        _ => &[],
    };
    for (at, bytes) in stamps {
        if let Some(place) = contents.get_mut(*at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
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
