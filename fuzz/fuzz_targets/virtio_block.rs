//! Any driver of a disk, whose file never becomes longer than the host made it.

#![no_main]

mod machine;

use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::sync::{Arc, LazyLock, Mutex};

use arbitrary::Arbitrary;
use cofferdam_devices::virtio::block::{
    Block, BlockOptions, Cache, Disk, DiskLimits, DiskOptions, EngineKind,
};
use cofferdam_devices::virtio::rate_limit::{Rate, RateLimits};
use libfuzzer_sys::fuzz_target;
use machine::{Buffer, Length, Op, Request, Sharing};
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
enum DiskRequest {
    Any {
        queue: u8,
        kind: u8,
        sector: u8,
        data: Vec<u8>,
        len: Length,
    },
    /// Discards, or writes of zeroes: sectors, how many, and flags.
    Segments {
        queue: u8,
        is_discard: bool,
        segments: Vec<(u8, u8, u8)>,
    },
}

impl Request for DiskRequest {
    fn chain(self) -> (u8, Vec<Buffer>) {
        let (queue, kind, sector, data) = match self {
            Self::Any {
                queue,
                kind,
                sector,
                data,
                len,
            } => {
                // The highest bit is for what the disk does not know.
                let kind = kind & 0x8f;
                // The device writes what is read, and its id (8).
                let data = match kind {
                    0 | 8 => Buffer::writable(len, data),
                    _ => Buffer::readable_of(len, data),
                };
                (queue, kind, sector, data)
            }
            Self::Segments {
                queue,
                is_discard,
                segments,
            } => {
                let segment = |(sector, count, flags): (u8, u8, u8)| {
                    let count = u64::from(count) | u64::from(flags & 3) << 32;
                    [u64::from(sector), count].map(u64::to_le_bytes).concat()
                };
                let kind = if is_discard { 11 } else { 13 };
                let data = segments.into_iter().flat_map(segment).collect();
                (queue, kind, 0, Buffer::readable(data))
            }
        };
        let mut header = vec![0; 16];
        header[0] = kind;
        header[8] = sector;
        let status = Buffer::writable(Length::Small(1), Vec::new());
        (queue, vec![Buffer::readable(header), data, status])
    }
}

/// What the host does to the file.
#[derive(Arbitrary, Debug)]
enum HostEvent {
    /// Cuts it short, or makes it longer.
    SetLen { sectors: u8 },
    /// Tells the device to look.
    Resize,
}

fuzz_target!(|input: (Kind, Vec<Op<DiskRequest, HostEvent>>)| {
    let (kind, ops) = input;
    let mut longest = SIZE;
    IMAGE.set_len(longest).unwrap();
    let device = Arc::new(Mutex::new(kind.device()));
    machine::drive_with(Sharing::Private, device.clone(), ops, |event| match event {
        HostEvent::SetLen { sectors } => {
            let len = u64::from(sectors) << 9;
            IMAGE.set_len(len).unwrap();
            longest = longest.max(len);
        }
        HostEvent::Resize => device.lock().unwrap().resize(),
    });
    assert!(IMAGE.metadata().unwrap().len() <= longest);
});
