//! Any driver of a disk, which keeps its size whatever is written to it.

#![no_main]

mod machine;

use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use cofferdam_devices::virtio::block::{
    Block, BlockOptions, Cache, Disk, DiskLimits, DiskOptions, EngineKind,
};
use cofferdam_devices::virtio::rate_limit::{Rate, RateLimits};
use libfuzzer_sys::fuzz_target;
use machine::{Buffer, Length, Op, Request};
use vmm_sys_util::tempfile::TempFile;

const SIZE: u64 = 64 << 10;

/// A file without a name, so that nothing is left however the fuzzer ends.
static IMAGE: LazyLock<File> = LazyLock::new(|| {
    let image = TempFile::new_in("/dev/shm".as_ref()).unwrap().into_file();
    image.set_len(SIZE).unwrap();
    image
});

/// What kind of disk it is.
#[derive(Arbitrary, Debug)]
struct Kind {
    read_only: bool,
    is_unsafe: bool,
    is_asynchronous: bool,
    queues: u8,
    is_limited: bool,
}

impl Kind {
    fn device(&self) -> Block {
        let disk = || {
            Disk::open(&DiskOptions {
                path: format!("/proc/self/fd/{}", IMAGE.as_raw_fd()).into(),
                read_only: self.read_only,
                cache: [Cache::Writeback, Cache::Unsafe][usize::from(self.is_unsafe)],
            })
            .unwrap()
        };
        // One request at a time, and the next after a millisecond.
        let rate = Rate {
            per_second: const { NonZeroU64::new(1000).unwrap() },
            burst: NonZeroU64::MIN,
        };
        let limits = RateLimits {
            ops: self.is_limited.then_some(rate),
            ..RateLimits::default()
        };
        let options = |engine| BlockOptions {
            serial: "serial".to_owned(),
            engine,
            queues: 1 + usize::from(self.queues % 4),
            has_workers: self.queues & 4 != 0,
            limits: DiskLimits {
                read: limits,
                ..DiskLimits::default()
            },
        };
        // Not every host has it.
        let asynchronous = self.is_asynchronous.then_some(EngineKind::IoUring);
        asynchronous
            .and_then(|engine| Block::new(disk(), &options(engine)).ok())
            .unwrap_or_else(|| Block::new(disk(), &options(EngineKind::Sync)).unwrap())
    }
}

/// A request: header, data and status.
#[derive(Arbitrary, Debug)]
struct DiskRequest {
    queue: u8,
    kind: u8,
    sector: u8,
    data: Vec<u8>,
    len: Length,
}

impl Request for DiskRequest {
    fn chain(self) -> (u8, Vec<Buffer>) {
        let mut header = vec![0; 16];
        // The highest bit is for what the disk does not know.
        header[0] = self.kind & 0x8f;
        header[8] = self.sector;
        // The device writes what is read, and its id (8); it reads what is written, and segments.
        let data = match self.kind & 0xf {
            0 | 8 => Buffer::writable(self.len, self.data),
            _ => Buffer::readable_of(self.len, self.data),
        };
        let status = Buffer::writable(Length::Small(1), Vec::new());
        (self.queue, vec![Buffer::readable(header), data, status])
    }
}

fuzz_target!(|input: (Kind, Vec<Op<DiskRequest>>)| {
    let (kind, ops) = input;
    machine::drive(kind.device(), ops, |_| ());
    assert_eq!(IMAGE.metadata().unwrap().len(), SIZE);
});
