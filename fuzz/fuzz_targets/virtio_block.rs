//! Any driver of a disk, which keeps its size whatever is written to it.

#![no_main]

mod machine;

use std::sync::LazyLock;

use cofferdam_devices::virtio::block::{Block, Cache, Disk, DiskOptions};
use libfuzzer_sys::fuzz_target;
use machine::Op;
use vmm_sys_util::tempfile::TempFile;

const SIZE: u64 = 64 << 10;

static IMAGE: LazyLock<TempFile> = LazyLock::new(|| {
    let image = TempFile::new_in("/dev/shm".as_ref()).unwrap();
    image.as_file().set_len(SIZE).unwrap();
    image
});

fuzz_target!(|input: (bool, Vec<Op>)| {
    let (read_only, ops) = input;
    let disk = Disk::open(&DiskOptions {
        path: IMAGE.as_path().to_owned(),
        read_only,
        cache: Cache::Writeback,
    });
    machine::drive(Block::new(disk.unwrap(), "serial"), ops, |_| ());
    assert_eq!(IMAGE.as_file().metadata().unwrap().len(), SIZE);
});
