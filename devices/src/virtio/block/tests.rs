//! The whole device under the mock driver.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use vmm_sys_util::tempdir::TempDir;

use super::uring::Ring;
use super::*;
use crate::virtio::mock::{EVENT_IDX, MockDriver, hostile_suite};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const ALL: u64 = u64::MAX;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// A directory with `disk.img`, of `size` bytes, each sector filled with its number.
pub(super) fn image(size: usize) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().join("disk.img");
    let data = (0..size).map(|i| u8::try_from(i / 512 % 256).unwrap());
    fs::write(&path, data.collect::<Vec<_>>()).unwrap();
    (dir, path)
}

pub(super) fn options(path: &Path) -> DiskOptions {
    DiskOptions {
        path: path.into(),
        ..DiskOptions::default()
    }
}

fn with_engine(options: &DiskOptions, engine: EngineKind) -> Block {
    let block = BlockOptions {
        serial: "serial".into(),
        engine,
        ..BlockOptions::default()
    };
    Block::new(Disk::open(options).unwrap(), &block).unwrap()
}

fn block(path: &Path) -> Block {
    with_engine(&options(path), EngineKind::Sync)
}

/// A device of each engine, one after the other, for only one can have the disk; and one where
/// everything goes through the ring that can.
fn engines(path: &Path) -> impl Iterator<Item = Block> {
    [Some(EngineKind::Sync), Some(EngineKind::IoUring), None]
        .into_iter()
        .map(|kind| {
            let block = with_engine(&options(path), kind.unwrap_or_default());
            if kind.is_none() {
                let ring = Ring::without_tries(block.disk.clone()).unwrap();
                let throttle = Throttle::new(DiskLimits::default()).unwrap();
                *lock(&block.queues[0]) = BlockQueue::new(Box::new(ring), throttle);
            }
            block
        })
}

fn read_only(path: &Path) -> Block {
    let options = DiskOptions {
        read_only: true,
        ..options(path)
    };
    with_engine(&options, EngineKind::Sync)
}

pub(super) fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

/// A request without data to read; returns its status.
pub(super) fn status(driver: &mut MockDriver<Block>, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let reply = driver.request(0, &[&header(kind, sector), data], &[1]);
    assert_eq!(reply.len, 1);
    reply.data[0]
}

/// If it fails, the guest reads or writes the wrong bytes of its disk.
#[test]
fn what_is_written_is_read_again_and_is_in_the_file() {
    let (_dir, path) = image(64 * 512);
    for (is_indirect, block) in [false, true, true].into_iter().zip(engines(&path)) {
        let mut driver = MockDriver::started(block, ALL);
        driver.is_indirect = is_indirect;
        let data: Vec<u8> = (0..1536).map(|i| u8::try_from(i % 251).unwrap()).collect();
        assert_eq!(status(&mut driver, 1, 3, &data), OK);
        assert_eq!(fs::read(&path).unwrap()[3 * 512..6 * 512], data);
        let reply = driver.request(0, &[&header(0, 2)], &[700, 1348, 1]);
        assert_eq!(reply.len, 2049);
        assert_eq!(reply.data[..512], [2; 512]);
        assert_eq!(reply.data[512..2048], data);
        assert_eq!(reply.data[2048], OK);
    }
}

/// If it fails, the device relies on how a driver frames a request, which it may not.
#[test]
fn framing_is_free() {
    let (_dir, path) = image(8 * 512);
    for block in engines(&path) {
        let mut driver = MockDriver::started(block, ALL);
        let whole = [header(1, 1), vec![9; 512]].concat();
        let (a, b) = whole.split_at(7);
        assert_eq!(driver.request(0, &[a, b], &[1]).data, [OK]);
        let reply = driver.request(0, &[&header(0, 1)], &[513]);
        assert_eq!(reply.data, [vec![9; 512], vec![OK]].concat());
    }
}

/// If it fails, a guest reads or writes outside its disk, or gets half a sector.
#[test]
fn what_is_not_on_the_disk_is_an_io_error() {
    let (_dir, path) = image(8 * 512);
    for block in engines(&path) {
        let mut driver = MockDriver::started(block, ALL);
        for sector in [8, 7, u64::MAX, u64::MAX / 512, 1 << 55] {
            assert_eq!(
                status(&mut driver, 1, sector, &[1; 1024]),
                IOERR,
                "{sector}"
            );
            let reply = driver.request(0, &[&header(0, sector)], &[1024, 1]);
            assert_eq!((reply.len, reply.data[1024]), (0, IOERR));
        }
        assert_eq!(status(&mut driver, 1, 0, &[1; 511]), IOERR);
        assert_eq!(status(&mut driver, 0, 8, &[]), OK);
        assert_eq!(fs::read(&path).unwrap()[..512], [0; 512]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 8 * 512);
        assert!(!driver.needs_reset());
    }
}

/// If it fails, a disk that shrank under the monitor is told to the guest as data.
#[test]
fn a_failure_of_the_host_is_an_io_error() {
    let (_dir, path) = image(8 * 512);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for block in engines(&path) {
        let mut driver = MockDriver::started(block, ALL);
        file.set_len(512).unwrap();
        let reply = driver.request(0, &[&header(0, 0)], &[1024, 1]);
        assert_eq!((reply.len, reply.data[1024]), (512, IOERR));
        file.set_len(8 * 512).unwrap();
    }
}

/// If it fails, a guest writes to a disk that others share.
#[test]
fn a_read_only_disk_is_not_written() {
    let (_dir, path) = image(8 * 512);
    let before = fs::read(&path).unwrap();
    let mut driver = MockDriver::started(read_only(&path), ALL);
    let offered = driver.device.lock().unwrap().features();
    assert_ne!(offered & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(
        offered & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES),
        0
    );
    assert_eq!(status(&mut driver, 1, 0, &[7; 512]), IOERR);
    for kind in [11, 13] {
        assert_eq!(status(&mut driver, kind, 0, &segment(0, 1, 0)), UNSUPP);
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// If it fails, a guest's disk does not shrink, or shrinks where it should not.
#[test]
fn a_discard_gives_room_back() {
    let (_dir, path) = image(4 << 20);
    let mut driver = MockDriver::started(block(&path), ALL);
    if driver.offered() & 1 << VIRTIO_BLK_F_DISCARD == 0 {
        return eprintln!("skipped: no holes in {}", path.display());
    }
    let before = fs::metadata(&path).unwrap().blocks();
    let both = [segment(0, 2048, 0), segment(4096, 2048, 0)].concat();
    assert_eq!(status(&mut driver, 11, 0, &both), OK);
    assert!(fs::metadata(&path).unwrap().blocks() <= before - 4096);
    let data = fs::read(&path).unwrap();
    assert_eq!(data[2048 * 512], 0, "sector 2048 holds 2048 % 256");
    assert_eq!(data[2049 * 512], 1);
    assert_eq!(data.len(), 4 << 20);
}

/// If it fails, a file system in the guest trusts zeros that are not there.
#[test]
fn zeroes_are_written_with_and_without_unmap() {
    let (_dir, path) = image(64 * 512);
    for block in engines(&path) {
        let mut driver = MockDriver::started(block, ALL);
        assert_eq!(status(&mut driver, 13, 0, &segment(1, 9, 0)), OK);
        assert_eq!(status(&mut driver, 13, 0, &segment(33, 9, 1)), OK);
        let device = driver.device.clone();
        // The way of last resort: no holes, no ranges.
        device.lock().unwrap().disk.forget_zero_range();
        assert_eq!(status(&mut driver, 13, 0, &segment(50, 3, 0)), OK);
        let data = fs::read(&path).unwrap();
        for (sector, data) in data.chunks(512).enumerate() {
            let is_zero = (1..10).contains(&sector)
                || (33..42).contains(&sector)
                || (50..53).contains(&sector);
            let wanted = if is_zero {
                0
            } else {
                u8::try_from(sector).unwrap()
            };
            assert_eq!(data, [wanted; 512], "sector {sector}");
        }
    }
}

/// If it fails, a malformed list of segments does something.
#[test]
fn segments_are_checked() {
    let (_dir, path) = image(64 * 512);
    let mut driver = MockDriver::started(block(&path), ALL);
    let before = fs::read(&path).unwrap();
    for (kind, data, wanted) in [
        (13, vec![], IOERR),
        (13, vec![0; 15], IOERR),
        (13, segment(0, 65, 0), IOERR),
        (13, segment(u64::MAX, 1, 0), IOERR),
        (13, segment(0, u32::MAX, 0), IOERR),
        (13, segment(1, 1, 2), UNSUPP),
        (13, [segment(1, 1, 0), segment(2, 1, 0)].concat(), IOERR),
        (13, segment(1, 0, 1), OK),
        (11, segment(64, 1, 0), IOERR),
        (11, segment(1, 1, 1), UNSUPP),
        (11, segment(1, 0, 0), OK),
        (11, segment(1, 0, 0).repeat(33), IOERR),
    ] {
        if kind == 11
            && driver
                .device
                .lock()
                .unwrap()
                .disk
                .discard_alignment()
                .is_none()
        {
            continue;
        }
        assert_eq!(
            status(&mut driver, kind, 0, &data),
            wanted,
            "{kind} {data:?}"
        );
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// If it fails, the guest's disk has no name, a driver for other hardware is misled, or a flush
/// is refused.
#[test]
fn flush_identity_and_unknown_requests() {
    let (_dir, path) = image(512);
    for block in engines(&path) {
        let mut driver = MockDriver::started(block, ALL);
        assert_eq!(status(&mut driver, 4, 0, &[]), OK);
        assert_eq!(status(&mut driver, 99, 0, &[]), UNSUPP);
        let reply = driver.request(0, &[&header(8, 0)], &[20, 1]);
        assert_eq!(reply.len, 21);
        assert_eq!(&reply.data[..8], b"serial\0\0");
        let reply = driver.request(0, &[&header(8, 0)], &[3, 1]);
        assert_eq!(reply.data, [b's', b'e', b'r', OK]);
        driver.device.lock().unwrap().flush().unwrap();
    }
}

/// If it fails, a driver without FLUSH loses what it was told is on the disk.
#[test]
fn without_flush_a_write_goes_through() {
    let (_dir, path) = image(8 * 512);
    for (features, cache, wanted) in [
        (EVENT_IDX | FLUSH, Cache::Writeback, false),
        (EVENT_IDX, Cache::Writeback, true),
        (EVENT_IDX, Cache::Unsafe, false),
    ] {
        let options = DiskOptions {
            cache,
            ..options(&path)
        };
        for engine in [EngineKind::Sync, EngineKind::IoUring] {
            let device = with_engine(&options, engine);
            let mut driver = MockDriver::started(device, features);
            let queue = driver.device.lock().unwrap().queues[0].clone();
            assert_eq!(queue.lock().unwrap().is_write_through(), Some(wanted));
            assert_eq!(status(&mut driver, 1, 0, &[1; 512]), OK);
            assert_eq!(status(&mut driver, 13, 0, &segment(1, 1, 0)), OK);
            assert_eq!(status(&mut driver, 4, 0, &[]), OK);
        }
    }
}

/// If it fails, the driver learns wrong sizes or limits, or reads past the configuration.
#[test]
fn the_configuration_says_what_is_enforced() {
    let (_dir, path) = image(8 * 512 + 100);
    let mut driver = MockDriver::started(block(&path), ALL);
    assert_eq!(driver.config(0, 8), 8u64.to_le_bytes());
    assert_eq!(driver.config(8, 8), [0, 0, 16, 0, 254, 1, 0, 0]);
    assert_eq!(driver.config(20, 4), 512u32.to_le_bytes());
    assert_eq!(driver.config(52, 4), 1u32.to_le_bytes());
    assert_eq!(driver.config(58, 8), [0; 8]);
    for offset in [60, 0xeff, u64::from(u32::MAX), u64::MAX - 0x200] {
        assert_eq!(driver.config(offset, 4), [0; 4]);
    }
    driver.write_config(0, &[0xff; 8]);
    assert_eq!(driver.config(0, 8), 8u64.to_le_bytes());
}

/// If it fails, the driver waits for an answer, or is interrupted for each of many.
#[test]
fn many_requests_are_answered_with_few_interrupts() {
    let (_dir, path) = image(512 * 512);
    let kinds = [EngineKind::Sync, EngineKind::IoUring];
    for (kind, features) in kinds
        .into_iter()
        .flat_map(|kind| [(kind, 0), (kind, EVENT_IDX)])
    {
        let mut driver = MockDriver::started(with_engine(&options(&path), kind), features);
        let requests: Vec<_> = (0..80)
            .map(|sector| driver.submit(0, &[&header(0, sector)], &[512, 1]))
            .collect();
        driver.kick(0);
        driver.run();
        for (sector, request) in (0..).zip(&requests) {
            let (head, len) = driver.used(0).unwrap();
            assert_eq!((head, len), (request.head.into(), 513));
            assert_eq!(driver.reply(request, len).data[..512], [sector; 512]);
        }
        assert!((1..=2).contains(&driver.interrupts()));
    }
}

/// If it fails, the guest does not learn that its disk has grown, or a disk that shrank breaks more
/// than the requests that it cannot serve.
#[test]
fn a_disk_grows_while_it_is_used() {
    let (_dir, path) = image(8 * 512);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut driver = MockDriver::started(block(&path), ALL);
    let _ = driver.interrupts();
    assert_eq!(status(&mut driver, 1, 8, &[1; 512]), IOERR);
    file.set_len(16 * 512 + 1).unwrap();
    let device = driver.device.clone();
    let resize = || device.lock().unwrap().resize();
    let _ = driver.interrupts();
    resize();
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.config(0, 8), 16u64.to_le_bytes());
    assert_eq!(status(&mut driver, 1, 15, &[1; 512]), OK);
    assert_eq!(status(&mut driver, 1, 16, &[1; 512]), IOERR);
    let _ = driver.interrupts();

    file.set_len(4 * 512).unwrap();
    resize();
    resize();
    assert_eq!(driver.interrupts(), 0);
    assert_eq!(driver.config(0, 8), 16u64.to_le_bytes());
    let reply = driver.request(0, &[&header(0, 4)], &[512, 1]);
    assert_eq!(reply.data[512], IOERR);
    assert_eq!(driver.request(0, &[&header(0, 3)], &[512, 1]).data[512], OK);

    // While there is no driver: the next one is told.
    driver.reset();
    file.set_len(32 * 512).unwrap();
    resize();
    driver.start(ALL);
    assert_eq!(driver.config(0, 8), 32u64.to_le_bytes());
    assert_eq!(status(&mut driver, 1, 31, &[1; 512]), OK);
}

/// If it fails, data that comes from the disk itself is wrong, or its requests are forgotten.
#[test]
fn what_is_not_in_the_page_cache_is_read_all_the_same() {
    let (_dir, path) = image(4 << 20);
    let file = fs::File::open(&path).unwrap();
    for round in 0..10 {
        let mut driver =
            MockDriver::started(with_engine(&options(&path), EngineKind::IoUring), ALL);
        // Where the file is in memory anyway, this does nothing.
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let requests: Vec<_> = (0..64)
            .map(|i| driver.submit(0, &[&header(0, 128 * (i * 7 % 64) + round)], &[8 << 10, 1]))
            .collect();
        driver.kick(0);
        for _ in 0..requests.len() {
            let (head, len) = driver.wait_used(0);
            let at = requests
                .iter()
                .position(|r| u32::from(r.head) == head)
                .unwrap();
            let first = (at as u64 * 7 % 64 * 128 + round) % 256;
            let data = driver.reply(&requests[at], len).data;
            let sectors = data[..8 << 10].chunks(512).zip(first..);
            for (sector, number) in sectors {
                assert_eq!(sector, [u8::try_from(number % 256).unwrap(); 512]);
            }
        }
    }
}

/// If it fails, a hostile guest reaches the host through its disk.
#[test]
fn a_hostile_driver_gets_nowhere() {
    let (_dir, path) = image(1 << 20);
    let options = DiskOptions {
        read_only: true,
        ..options(&path)
    };
    for engine in [EngineKind::Sync, EngineKind::IoUring] {
        hostile_suite(|| with_engine(&options, engine), &[0]);
    }
}

/// If it fails, two VMs write to one file system.
#[test]
fn a_disk_in_use_is_refused_unless_all_only_read() {
    let (_dir, path) = image(512);
    let writer = Disk::open(&options(&path)).unwrap();
    for read_only in [false, true] {
        let options = DiskOptions {
            read_only,
            ..options(&path)
        };
        let error = Disk::open(&options).unwrap_err();
        assert!(
            matches!(
                error,
                DiskError::InUse {
                    holder: Holder::Ourselves,
                    ..
                }
            ),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .contains("disk.img is in use by another device of this VM")
        );
    }
    drop(writer);
    let _two = (read_only(&path), read_only(&path));
    assert!(matches!(
        Disk::open(&options(&path)),
        Err(DiskError::InUse { .. })
    ));
}

/// If it fails, what cannot be a disk is taken for one, or the user does not learn why it is not.
#[test]
fn what_is_no_disk_is_named() {
    let (dir, path) = image(512);
    let error = |path: &Path| Disk::open(&options(path)).unwrap_err().to_string();
    assert!(error(dir.as_path()).ends_with("is a directory, not an image file or a block device"));
    let missing = dir.as_path().join("none");
    assert!(error(&missing).ends_with("none does not exist"));
    assert!(error(&missing.join("x")).ends_with("x does not exist"));
    assert!(error(Path::new("/dev/null")).contains("is a character device"));
    fs::write(&missing, [0; 511]).unwrap();
    assert!(error(&missing).ends_with("has 511 bytes; it needs one sector of 512 at least"));
    let directory = DiskOptions {
        read_only: true,
        ..options(dir.as_path())
    };
    assert!(matches!(
        Disk::open(&directory),
        Err(DiskError::Kind { .. })
    ));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    // Root may all the same.
    if let Err(error) = Disk::open(&options(&path)) {
        assert!(
            error.to_string().ends_with("or attach it read-only"),
            "{error}"
        );
    }
}

/// If it fails, block devices have another size than they have, or discards and zeroes do not
/// reach them. Overwrites the device: a loop device over an empty file, say.
#[test]
#[ignore = "needs a block device to overwrite, named by COFFERDAM_TEST_BLOCK_DEVICE"]
fn a_block_device_is_a_disk() {
    let path = PathBuf::from(std::env::var("COFFERDAM_TEST_BLOCK_DEVICE").unwrap());
    let mut driver = MockDriver::started(block(&path), ALL);
    let sectors = driver.device.lock().unwrap().disk.sectors();
    assert!(sectors >= 4096);
    assert_ne!(
        driver.offered() & 1 << VIRTIO_BLK_F_DISCARD,
        0,
        "no discard"
    );
    assert_eq!(status(&mut driver, 1, sectors - 2048, &[7; 1 << 20]), OK);
    assert_eq!(status(&mut driver, 1, sectors - 1, &[7; 1024]), IOERR);
    assert_eq!(
        status(&mut driver, 11, 0, &segment(sectors - 2048, 1024, 0)),
        OK
    );
    for flags in [0, 1] {
        let at = sectors - 1000 + 100 * u64::from(flags);
        assert_eq!(status(&mut driver, 13, 0, &segment(at, 9, flags)), OK);
        let reply = driver.request(0, &[&header(0, at - 1)], &[11 * 512, 1]);
        assert_eq!(reply.data[..512], [7; 512]);
        assert_eq!(reply.data[512..10 * 512], [0; 9 * 512]);
        assert_eq!(reply.data[10 * 512..11 * 512], [7; 512]);
    }
    assert_eq!(status(&mut driver, 4, 0, &[]), OK);
    assert!(matches!(
        Disk::open(&options(&path)),
        Err(DiskError::InUse { .. })
    ));
}
