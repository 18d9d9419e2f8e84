//! Any driver of a pmem device, whose file keeps its size, and where it is read-only its contents.

#![no_main]

mod machine;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use cofferdam_devices::bus::BusDevice;
use cofferdam_devices::virtio::pmem::{ALIGNMENT, Pmem, PmemFile, ReadOnly};
use libfuzzer_sys::fuzz_target;
use machine::{Buffer, Length, Op, Request};
use vmm_sys_util::tempfile::TempFile;

/// Where the guest sees it.
const START: u64 = 5 << 30;

/// A file without a name, so that nothing is left however the fuzzer ends.
static IMAGE: LazyLock<File> = LazyLock::new(|| {
    let image = TempFile::new_in("/dev/shm".as_ref()).unwrap().into_file();
    image.set_len(ALIGNMENT).unwrap();
    image
});

/// A flush, or something like it.
#[derive(Arbitrary, Debug)]
struct Flush {
    kind: u8,
    len: Length,
}

impl Request for Flush {
    fn chain(self) -> (u8, Vec<Buffer>) {
        let kind = u32::from(self.kind).to_le_bytes().to_vec();
        let answer = Buffer::writable(self.len, Vec::new());
        (0, vec![Buffer::readable(kind), answer])
    }
}

fuzz_target!(|input: (bool, Vec<Op<Flush>>)| {
    let (read_only, ops) = input;
    let path = format!("/proc/self/fd/{}", IMAGE.as_raw_fd());
    let file = PmemFile::open(Path::new(&path), read_only).unwrap();
    let mut guard = ReadOnly::new(&file);
    machine::drive(Pmem::new(file, START, ALIGNMENT), ops, |data: Vec<u8>| {
        // Where KVM sends what the guest writes to read-only memory.
        guard.write(data.len() as u64, &data);
    });
    assert_eq!(IMAGE.metadata().unwrap().len(), ALIGNMENT);
});
