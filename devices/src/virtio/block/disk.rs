//! The host's side of a disk: a raw image file or a block device.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, major, minor, seek};
use rustix::io::Errno;

use super::lock::{self, LockError};

/// Bytes of a sector, whatever the disk's own (virtio 1.2, section 5.2.4).
pub const SECTOR_SIZE: u64 = 512;

/// Sectors that a discard should start at a multiple of where the host names no useful number.
const DISCARD_SECTORS: u32 = 8;

/// BLKDISCARD, `_IO(0x12, 119)` in the kernel's `linux/fs.h`; libc does not have it.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// What is left to write when the disk accepts no holes and no zeroed ranges.
static ZEROES: [u8; 16 << 10] = [0; 16 << 10];

/// What a flush of the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// What was written reaches the disk, as on a drive with a write cache.
    #[default]
    Writeback,
    /// Nothing: for disks that are thrown away, since a crash of the host loses data.
    Unsafe,
}

/// Which disk to open, and how.
#[derive(Clone, Debug, Default)]
pub struct DiskOptions {
    /// An image file or a block device.
    pub path: PathBuf,
    /// The guest may not write. Several VMs can share such a disk.
    pub read_only: bool,
    /// What a flush does.
    pub cache: Cache,
}

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is nothing of that name.
    #[error("the disk {path} does not exist")]
    Missing {
        /// The disk.
        path: PathBuf,
    },
    /// The monitor's user may not open it.
    #[error(
        "no permission to {} the disk {path}; change its mode or owner{}",
        if *.read_only { "read" } else { "write to" },
        if *.read_only { "" } else { ", or attach it read-only" },
    )]
    Permission {
        /// The disk.
        path: PathBuf,
        /// Whether it was to be opened only for reading.
        read_only: bool,
    },
    /// It is neither a regular file nor a block device.
    #[error("the disk {path} is {kind}, not an image file or a block device")]
    Kind {
        /// The disk.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// It has no whole sector.
    #[error("the disk {path} has {size} bytes; it needs one sector of 512 at least")]
    Empty {
        /// The disk.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Somebody else uses it.
    #[error("the disk {path} is in use by {holder}")]
    InUse {
        /// The disk.
        path: PathBuf,
        /// Who has it.
        holder: lock::Holder,
    },
    /// It cannot be locked against use by others.
    #[error("cannot lock the disk {path}")]
    Lock {
        /// The disk.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It cannot be opened, or not be asked for its size, for another reason.
    #[error("cannot open the disk {path}")]
    Open {
        /// The disk.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// How a disk's size differs from what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// Not at all.
    None,
    /// It has more sectors: so many.
    Grown(u64),
    /// It has fewer sectors: so many.
    Shrunk(u64),
}

/// An open disk, locked against use by others until it is dropped.
#[derive(Debug)]
pub struct Disk {
    file: File,
    path: PathBuf,
    /// The size that the guest was told. It only grows.
    sectors: AtomicU64,
    is_read_only: bool,
    is_block_device: bool,
    cache: Cache,
    /// Sectors that a discard should start at a multiple of; `None` if discards do not work.
    discard_alignment: Option<u32>,
    /// Whether the host can zero a range by itself; found out when it is first asked to.
    has_zero_range: AtomicBool,
}

impl Disk {
    /// Opens and locks a disk: alone if the guest may write, together with other readers if not.
    ///
    /// A size that is no multiple of 512 bytes is rounded down, with a warning: the guest cannot
    /// see the rest.
    pub fn open(options: &DiskOptions) -> Result<Self, DiskError> {
        let DiskOptions {
            path,
            read_only,
            cache,
        } = options.clone();
        let file = open(&path, read_only)?;
        let failed = |source| DiskError::Open {
            path: path.clone(),
            source,
        };
        let metadata = file.metadata().map_err(failed)?;
        if let Some(kind) = unfit(metadata.file_type()) {
            return Err(DiskError::Kind { path, kind });
        }
        // The end of a block device is its size too, though not in its metadata.
        let size = seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
        if size < SECTOR_SIZE {
            return Err(DiskError::Empty { path, size });
        }
        match lock::lock(&file, &metadata, read_only) {
            Ok(()) => {}
            Err(LockError::Held(holder)) => return Err(DiskError::InUse { path, holder }),
            Err(LockError::Io(source)) => return Err(DiskError::Lock { path, source }),
        }
        let left_out = size % SECTOR_SIZE;
        if left_out > 0 {
            log::warn!(
                "the size of disk {} is no multiple of 512: the guest cannot see the last {left_out} bytes",
                path.display()
            );
        }
        Ok(Self {
            sectors: AtomicU64::new(size / SECTOR_SIZE),
            is_read_only: read_only,
            is_block_device: metadata.file_type().is_block_device(),
            cache,
            discard_alignment: discard_alignment(&file, &metadata, size).filter(|_| !read_only),
            has_zero_range: AtomicBool::new(true),
            file,
            path,
        })
    }

    /// Where it is on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    /// Looks whether the disk has grown, and takes over its new size if so. One that shrank keeps
    /// its size: what is behind its end fails.
    pub(super) fn grow(&self) -> io::Result<Growth> {
        let (before, now) = (
            self.sectors(),
            seek(&self.file, SeekFrom::End(0))? / SECTOR_SIZE,
        );
        Ok(match now.cmp(&before) {
            std::cmp::Ordering::Less => Growth::Shrunk(now),
            std::cmp::Ordering::Equal => Growth::None,
            std::cmp::Ordering::Greater => {
                self.sectors.store(now, Ordering::Relaxed);
                Growth::Grown(now)
            }
        })
    }

    /// Whether the guest may only read.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// What a flush does.
    pub fn cache(&self) -> Cache {
        self.cache
    }

    /// Sectors that a discard should start at a multiple of; `None` if the host cannot discard.
    pub fn discard_alignment(&self) -> Option<u32> {
        self.discard_alignment
    }

    /// Whether its content is in the host's memory anyway, so that nobody ever waits for it.
    pub(super) fn is_in_memory(&self) -> bool {
        const TMPFS: u64 = 0x0102_1994;
        const RAMFS: u64 = 0x8584_58f6;
        const HUGETLBFS: u64 = 0x9584_58f6;
        rustix::fs::fstatfs(&self.file)
            .is_ok_and(|fs| [TMPFS, RAMFS, HUGETLBFS].contains(&fs.f_type.cast_unsigned()))
    }

    /// Whether a flush does anything: a disk that was only read has nothing to bring.
    pub(super) fn is_flushed(&self) -> bool {
        self.cache == Cache::Writeback && !self.is_read_only
    }

    /// Brings what was written to stable storage, unless the cache is [`Cache::Unsafe`].
    pub fn flush(&self) -> io::Result<()> {
        if self.is_flushed() {
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Gives `len` bytes at byte `offset` back to the host; what they read as afterwards is open.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.is_block_device {
            return self.punch(offset, len);
        }
        let range = [offset, len];
        // SAFETY: BLKDISCARD reads two u64 through the pointer, which lives longer than the call,
        // and touches no other memory of this process.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Makes `len` bytes at byte `offset` read as zeros; with `may_unmap` the host may take the
    /// room back.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        if may_unmap && self.punch(offset, len).is_ok() {
            return Ok(());
        }
        if self.has_zero_range.load(Ordering::Relaxed) {
            let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, offset, len) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.has_zero_range.store(false, Ordering::Relaxed);
                }
                // A block device whose own blocks the range does not match.
                Err(Errno::INVAL) => {}
                result => return Ok(result?),
            }
        }
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let count = left.min(ZEROES.len() as u64);
            let zeroes = usize::try_from(count).map_or(&ZEROES[..], |n| &ZEROES[..n]);
            self.file.write_all_at(zeroes, at)?;
            (at, left) = (at + count, left - count);
        }
        Ok(())
    }

    /// A disk of `sectors` whose content is whatever comes out of `file`.
    #[cfg(test)]
    pub(super) fn over(file: File, sectors: u64) -> Self {
        Self {
            file,
            path: "test".into(),
            sectors: AtomicU64::new(sectors),
            is_read_only: false,
            is_block_device: false,
            cache: Cache::Writeback,
            discard_alignment: None,
            has_zero_range: AtomicBool::new(true),
        }
    }

    /// As on a host that cannot zero a range.
    #[cfg(test)]
    pub(super) fn forget_zero_range(&self) {
        self.has_zero_range.store(false, Ordering::Relaxed);
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, offset, len)?)
    }
}

impl AsFd for Disk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(path: &Path, read_only: bool) -> Result<File, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    // A FIFO or a terminal must be found to be one, not be waited for or become ours.
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options.open(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::NotFound => DiskError::Missing { path },
            ErrorKind::PermissionDenied => DiskError::Permission { path, read_only },
            ErrorKind::IsADirectory => DiskError::Kind {
                path,
                kind: "a directory",
            },
            _ => DiskError::Open { path, source },
        }
    })
}

/// What a file is that cannot be a disk.
fn unfit(kind: FileType) -> Option<&'static str> {
    if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_char_device() {
        Some("a character device")
    } else {
        Some("a pipe or a socket")
    }
}

/// Whether discards work, by asking; and in sectors, what they should be aligned to.
fn discard_alignment(file: &File, metadata: &Metadata, size: u64) -> Option<u32> {
    if metadata.file_type().is_block_device() {
        let device = metadata.rdev();
        let device = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        if queue_limit(&device, "discard_max_bytes")? == 0 {
            return None;
        }
        let granularity = queue_limit(&device, "discard_granularity")? / SECTOR_SIZE;
        return Some(u32::try_from(granularity).map_or(DISCARD_SECTORS, |sectors| sectors.max(1)));
    }
    // A hole behind the end of the file changes nothing, and fails where holes cannot be made.
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let block = metadata.blksize().max(SECTOR_SIZE);
    fallocate(file, flags, size.next_multiple_of(block), block).ok()?;
    Some(u32::try_from(block / SECTOR_SIZE).unwrap_or(DISCARD_SECTORS))
}

/// A limit of a block device; those of a partition are its disk's.
fn queue_limit(device: &str, name: &str) -> Option<u64> {
    let read = |queue| fs::read_to_string(format!("{device}/{queue}/{name}"));
    let text = read("queue").or_else(|_| read("../queue")).ok()?;
    text.trim().parse().ok()
}
