//! Any driver of a disk, which keeps its size whatever is written to it.

#![no_main]

mod machine;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::LazyLock;

use cofferdam_devices::virtio::block::{Block, Cache, Disk, DiskOptions};
use libfuzzer_sys::fuzz_target;
use machine::Op;
use vmm_sys_util::tempfile::TempFile;

const SIZE: u64 = 64 << 10;

/// A file without a name, so that nothing is left however the fuzzer ends.
static IMAGE: LazyLock<File> = LazyLock::new(|| {
    let image = TempFile::new_in("/dev/shm".as_ref()).unwrap().into_file();
    image.set_len(SIZE).unwrap();
    image
});

fuzz_target!(|input: (bool, Vec<Op>)| {
    let (read_only, ops) = input;
    let disk = Disk::open(&DiskOptions {
        path: format!("/proc/self/fd/{}", IMAGE.as_raw_fd()).into(),
        read_only,
        cache: Cache::Writeback,
    });
    machine::drive(Block::new(disk.unwrap(), "serial"), ops, |_| ());
    assert_eq!(IMAGE.metadata().unwrap().len(), SIZE);
});
