//! Locks against double use of a disk: two guests that write to one file system destroy it.
//!
//! They are open-file-description locks over the whole file. Unlike `flock` they meet those of
//! other monitors that lock their images (QEMU, Cloud Hypervisor), do not meet udev's on block
//! devices, and work over NFS; unlike POSIX locks they last until the disk is closed. The kernel
//! releases them whatever becomes of the process.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// Who holds a lock, as far as can be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This process itself: one VM cannot have one disk twice.
    Ourselves,
    /// The process of this id.
    Process(u32),
    /// A process that this one may not look at.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ourselves => f.write_str("another device of this VM"),
            Self::Process(pid) => write!(f, "another process (pid {pid})"),
            Self::Unknown => f.write_str("another process"),
        }
    }
}

/// Why a lock cannot be had.
#[derive(Debug)]
pub(in crate::virtio) enum LockError {
    /// Somebody has it.
    Held(Holder),
    /// The file system cannot lock, say.
    Io(io::Error),
}

/// Locks all of `file`: shared if it is only read, else exclusively. Never waits.
pub(in crate::virtio) fn lock(
    file: &File,
    metadata: &Metadata,
    is_shared: bool,
) -> Result<(), LockError> {
    let kind = if is_shared {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    let whole = libc::flock {
        // Small constants of the ABI, which has 16 bits for them.
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        // Zero: to the end, wherever that will be.
        l_len: 0,
        // Must be 0 for locks of an open file description.
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK only reads the structure, which lives longer than the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const whole) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => {
            Err(LockError::Held(holder(metadata).unwrap_or(Holder::Unknown)))
        }
        _ => Err(LockError::Io(error)),
    }
}

/// Looks for a process that has the file open with a lock on it. The kernel does not tell the
/// owner of such a lock, but `/proc/PID/fdinfo` shows it to those who may look.
fn holder(wanted: &Metadata) -> Option<Holder> {
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let path = process.path();
        for fd in fs::read_dir(path.join("fdinfo"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let info = fs::read_to_string(fd.path()).unwrap_or_default();
            if !info.lines().any(|line| line.starts_with("lock:")) {
                continue;
            }
            // The link leads to the open file itself, whatever its name has become.
            let Ok(found) = fs::metadata(path.join("fd").join(fd.file_name())) else {
                continue;
            };
            if (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()) {
                let is_ours = pid == std::process::id();
                return Some(if is_ours {
                    Holder::Ourselves
                } else {
                    Holder::Process(pid)
                });
            }
        }
    }
    None
}
