//! The host's side of a pmem device: the file whose pages the guest sees.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};

use super::ALIGNMENT;
use crate::virtio::block::Holder;
use crate::virtio::block::lock::{self, LockError};

/// Why a file cannot be a pmem device.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// It cannot be opened, or not be asked for its size.
    #[error("cannot open the pmem file {path} for {}", if *.read_only { "reading" } else { "writing" })]
    Open {
        /// The file.
        path: PathBuf,
        /// Whether it was to be opened only for reading.
        read_only: bool,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It is neither a regular file nor a block device.
    #[error("the pmem file {path} is no image file or block device")]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// There is nothing in it.
    #[error("the pmem file {path} is empty")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It is to be written, and what the guest writes behind its end would be lost.
    #[error(
        "the pmem file {path} has {size} bytes; one that the guest may write needs a multiple of 2 MiB"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Somebody else uses it.
    #[error("the pmem file {path} is in use by {holder}")]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// It cannot be locked against use by others.
    #[error("cannot lock the pmem file {path}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// An open file, locked against use by others until it is dropped.
#[derive(Debug)]
pub struct PmemFile {
    file: File,
    path: PathBuf,
    size: u64,
    is_read_only: bool,
}

impl PmemFile {
    /// Opens and locks a file: alone if the guest may write, together with other readers if not.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, PmemError> {
        let path = path.to_owned();
        let failed = |source| PmemError::Open {
            path: path.clone(),
            read_only,
            source,
        };
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        // A FIFO or a terminal must be found to be one, not be waited for or become ours.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(PmemError::Kind { path });
        }
        // The end of a block device is its size too, though not in its metadata.
        let size = seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
        if size == 0 {
            return Err(PmemError::Empty { path });
        }
        if !read_only && !size.is_multiple_of(ALIGNMENT) {
            return Err(PmemError::Size { path, size });
        }
        match lock::lock(&file, &metadata, read_only) {
            Ok(()) => {}
            Err(LockError::Held(holder)) => return Err(PmemError::InUse { path, holder }),
            Err(LockError::Io(source)) => return Err(PmemError::Lock { path, source }),
        }
        Ok(Self {
            file,
            path,
            size,
            is_read_only: read_only,
        })
    }

    /// Where it is on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the guest may only read.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// As if the host's file had failed.
    #[cfg(test)]
    pub(super) fn replace_file(&mut self, file: File) {
        self.file = file;
    }

    /// Its size now, if it became smaller since: pages that the guest was promised are gone.
    pub fn shrunk_to(&self) -> Option<u64> {
        let size = seek(&self.file, SeekFrom::End(0)).ok()?;
        (size < self.size).then_some(size)
    }

    /// Brings what the guest wrote to stable storage.
    pub fn flush(&self) -> io::Result<()> {
        if self.is_read_only {
            return Ok(());
        }
        // Also for what was written through a mapping: the page cache knows of it by its page
        // tables, and KVM's writes are in those.
        self.file.sync_data()
    }
}

impl AsFd for PmemFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
