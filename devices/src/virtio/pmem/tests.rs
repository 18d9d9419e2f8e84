//! The whole device under the mock driver.

use std::fs::{self, File};
use std::path::PathBuf;

use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::virtio::block::Holder;
use crate::virtio::mock::{MockDriver, hostile_suite};

const START: u64 = 5 << 30;

/// A directory with a file of `size` bytes in it.
fn image(size: u64) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().join("image");
    File::create(&path).unwrap().set_len(size).unwrap();
    (dir, path)
}

fn pmem(path: &std::path::Path, read_only: bool) -> Pmem {
    let file = PmemFile::open(path, read_only).unwrap();
    Pmem::new(file, START, 2 * ALIGNMENT)
}

/// If it fails, the guest looks for its memory where it is not.
#[test]
fn the_configuration_says_where_the_memory_is() {
    let (_dir, path) = image(2 * ALIGNMENT);
    let mut driver = MockDriver::started(pmem(&path, false), 0);
    let mut wanted = START.to_le_bytes().to_vec();
    wanted.extend((2 * ALIGNMENT).to_le_bytes());
    assert_eq!(driver.config(0, 8), wanted[..8]);
    assert_eq!(driver.config(8, 8), wanted[8..]);
    assert_eq!(driver.config(12, 4), wanted[12..]);
    assert_eq!(driver.config(14, 4), [0; 4]);
    assert_eq!(driver.config(4000, 4), [0; 4]);
}

/// If it fails, a guest waits for ever for its flush, or is told of one that there was not.
#[test]
fn a_flush_is_answered() {
    let (_dir, path) = image(2 * ALIGNMENT);
    for read_only in [false, true] {
        let mut driver = MockDriver::started(pmem(&path, read_only), u64::MAX);
        let reply = driver.request(0, &[&FLUSH.to_le_bytes()], &[4]);
        assert_eq!((reply.len, reply.data), (4, OK.to_le_bytes().to_vec()));
        assert_eq!(driver.interrupts(), 1);
        // However it is cut into buffers.
        let reply = driver.request(0, &[&[0], &[0, 0, 0, 7]], &[1, 8]);
        assert_eq!((reply.len, &reply.data[..4]), (4, &OK.to_le_bytes()[..]));
    }
}

/// If it fails, a guest takes for stable what the host could not store. A pipe cannot be flushed.
#[test]
fn a_flush_that_fails_is_an_error() {
    let (_dir, path) = image(2 * ALIGNMENT);
    let mut file = PmemFile::open(&path, false).unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    file.replace_file(std::os::fd::OwnedFd::from(reader).into());
    let device = Pmem::new(file, START, 2 * ALIGNMENT);
    let mut driver = MockDriver::started(device, 0);
    let reply = driver.request(0, &[&FLUSH.to_le_bytes()], &[4]);
    assert_eq!(reply.data, EIO.to_le_bytes());
}

/// If it fails, a request that is none is taken for a flush, or holds up those that are.
#[test]
fn other_requests_fail() {
    let (_dir, path) = image(2 * ALIGNMENT);
    let mut driver = MockDriver::started(pmem(&path, false), 0);
    let reply = driver.request(0, &[&7u32.to_le_bytes()], &[4]);
    assert_eq!(reply.data, EIO.to_le_bytes());
    let bad: [(&[&[u8]], &[u32]); 3] = [(&[&[0; 3]], &[4]), (&[&[0; 4]], &[3]), (&[], &[4])];
    for (readable, writable) in bad {
        driver.start(0);
        driver.submit(0, readable, writable);
        driver.kick(0);
        driver.run();
        assert!(driver.needs_reset(), "{readable:?} {writable:?}");
    }
}

/// If it fails, two guests write to one file, or cannot share one that neither writes.
#[test]
fn a_file_has_one_writer() {
    let (_dir, path) = image(ALIGNMENT);
    let writer = PmemFile::open(&path, false).unwrap();
    for read_only in [false, true] {
        let error = PmemFile::open(&path, read_only).unwrap_err();
        assert!(
            matches!(
                error,
                PmemError::InUse {
                    holder: Holder::Ourselves,
                    ..
                }
            ),
            "{error}"
        );
    }
    drop(writer);
    let _one = PmemFile::open(&path, true).unwrap();
    let _two = PmemFile::open(&path, true).unwrap();
    PmemFile::open(&path, false).unwrap_err();
}

/// If it fails, the guest may write where no file keeps it, or a file that is none is mapped.
#[test]
fn what_cannot_be_mapped_is_refused() {
    let (dir, path) = image(ALIGNMENT + 4096);
    let refused = |path: &std::path::Path, read_only| {
        PmemFile::open(path, read_only).unwrap_err().to_string()
    };
    assert!(refused(&path, false).contains("multiple of 2 MiB"));
    assert_eq!(
        PmemFile::open(&path, true).unwrap().size(),
        ALIGNMENT + 4096
    );
    fs::write(&path, "").unwrap();
    assert!(refused(&path, true).contains("empty"));
    assert!(refused(dir.as_path(), true).contains("no image file"));
    assert!(refused("/dev/null".as_ref(), true).contains("no image file"));
    assert!(refused(&dir.as_path().join("none"), true).contains("cannot open"));
}

/// If it fails, a file that was cut short is not named when the guest meets its end.
#[test]
fn a_file_that_shrank_is_noticed() {
    let (_dir, path) = image(ALIGNMENT);
    let file = PmemFile::open(&path, true).unwrap();
    assert_eq!(file.shrunk_to(), None);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    assert_eq!(file.shrunk_to(), Some(4096));
}

/// If it fails, a hostile guest reaches the host through the queue of flushes.
#[test]
fn a_hostile_driver_gets_nowhere() {
    let (_dir, path) = image(2 * ALIGNMENT);
    hostile_suite(|| pmem(&path, true), &[0]);
}
