//! The ring over a pipe, which gives what it reads when the test says so.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::super::request::{Request, Serial, Step, Target};
use super::*;
use crate::GuestMemory;
use crate::virtio::Chain;
use crate::virtio::mock::{NEXT, WRITE, memory};

/// Where the test's requests have their data, one page each.
const DATA: u64 = 0x10_0000;

struct Rig {
    mem: GuestMemory,
    ring: Ring,
    target: Target,
    pipe: PipeWriter,
}

impl Rig {
    fn new() -> Self {
        let (reader, pipe): (PipeReader, _) = std::io::pipe().unwrap();
        let disk = Arc::new(Disk::over(File::from(OwnedFd::from(reader)), 1 << 20));
        Self {
            mem: memory(),
            ring: Ring::without_tries(disk.clone()).unwrap(),
            target: Target {
                disk,
                serial: Serial::default(),
                is_write_through: false,
            },
            pipe,
        }
    }

    /// Starts a read of `len` bytes into page `page`, with the status behind them.
    fn read(&mut self, page: u64, len: u32) {
        let at = DATA + 0x1000 * page;
        let table = [
            Descriptor::new(at + 0xf00, 16, NEXT, 1),
            Descriptor::new(at, len + 1, WRITE, 0),
        ];
        self.mem
            .write_obj([0u64; 2], GuestAddress(at + 0xf00))
            .unwrap();
        self.mem
            .write_slice(&[0xee; 0x801], GuestAddress(at))
            .unwrap();
        for (i, descriptor) in (0..).zip(table) {
            self.mem
                .write_obj(descriptor, GuestAddress(0x1000 + 16 * i))
                .unwrap();
        }
        let table: Vec<_> = (0..2)
            .map(|i| {
                let at = GuestAddress(0x1000 + 16 * i);
                let words: [u64; 2] = self.mem.read_obj(at).unwrap();
                words.map(AtomicU64::new)
            })
            .collect();
        let mut chain = Chain::new(&self.mem);
        chain.walk(&self.mem, &table, 0, 8).unwrap();
        let Step::Job(job) = self.target.begin(Request::read(chain).unwrap()) else {
            panic!("no job");
        };
        assert!(self.ring.start(job).is_none(), "a pipe does not wait");
    }

    /// The next job's result, waiting for it.
    fn wait(&mut self) -> io::Result<()> {
        let start = Instant::now();
        while start.elapsed().as_secs() < 10 {
            if let Some((_, result)) = self.ring.finish() {
                return result;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("nothing is done");
    }

    fn page(&self, page: u64) -> Vec<u8> {
        let mut data = vec![0; 0x801];
        let at = GuestAddress(DATA + 0x1000 * page);
        self.mem.read_slice(&mut data, at).unwrap();
        data
    }
}

/// If it fails, requests wait for each other, or one that comes in pieces is answered too early, or
/// more is written than was asked for.
#[test]
fn requests_are_in_flight_together_and_come_whole() {
    let mut rig = Rig::new();
    rig.read(0, 1024);
    assert!(rig.ring.finish().is_none());
    rig.pipe.write_all(&[1; 512]).unwrap();
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(1));
        assert!(rig.ring.finish().is_none(), "half a request is done");
    }
    rig.pipe.write_all(&[2; 512]).unwrap();
    rig.wait().unwrap();
    let page = rig.page(0);
    assert_eq!(
        (&page[..512], &page[512..1024]),
        (&[1; 512][..], &[2; 512][..])
    );
    assert_eq!(page[1024], 0xee, "written behind the data");

    (0..DEPTH as u64).for_each(|page| rig.read(page, 512));
    assert!(rig.ring.finish().is_none());
    for _ in 0..DEPTH {
        rig.pipe.write_all(&[3; 512]).unwrap();
        rig.wait().unwrap();
    }
    assert!(
        (0..DEPTH as u64)
            .all(|page| rig.page(page)[..513] == [[3; 512].as_slice(), &[0xee]].concat())
    );
}

/// If it fails, the disk's end is taken for data.
#[test]
fn the_end_of_the_disk_is_an_error() {
    let mut rig = Rig::new();
    rig.read(0, 1024);
    rig.pipe.write_all(&[1; 512]).unwrap();
    rig.pipe = std::io::pipe().unwrap().1;
    assert_eq!(rig.wait().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

/// If it fails, a driver's reset hangs, or the kernel writes to guest memory after it.
#[test]
fn what_is_cancelled_touches_no_memory() {
    let mut rig = Rig::new();
    for round in 0..3 {
        for page in 0..DEPTH as u64 {
            rig.read(page, 512);
        }
        assert!(!rig.ring.has_room());
        // Also what the kernel has not even been told of.
        if round > 0 {
            assert!(rig.ring.finish().is_none());
        }
        rig.ring.cancel();
        assert!(rig.ring.has_room() && rig.ring.finish().is_none());
        rig.pipe.write_all(&[7; 512]).unwrap();
        thread::sleep(Duration::from_millis(20));
        for page in 0..DEPTH as u64 {
            assert_eq!(rig.page(page)[..512], [0xee; 512]);
        }
        // The ring is as good as new.
        rig.read(0, 512);
        rig.wait().unwrap();
        assert_eq!(rig.page(0)[..512], [7; 512]);
    }
    rig.read(0, 512);
    let Rig {
        mem,
        ring,
        mut pipe,
        ..
    } = rig;
    drop(ring);
    // Nobody reads any more; what matters is that nobody writes to memory.
    let _ = pipe.write_all(&[9; 512]);
    let mut byte = [0];
    mem.read_slice(&mut byte, GuestAddress(DATA)).unwrap();
    assert_eq!(byte, [0xee]);
}
