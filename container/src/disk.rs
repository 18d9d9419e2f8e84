//! The writable layer of a container: an ext4 in a sparse file, copied from one that is made once.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::files::{FileError, file, private_directory};
use crate::options::Bytes;

/// How large a writable layer is where nothing is said. It is a bound: the file has only what the
/// container wrote.
pub const DEFAULT_SIZE: Bytes = Bytes(16 << 30);
/// Below it there is no room for a file system and its journal.
const MIN_SIZE: Bytes = Bytes(16 << 20);
const MKFS: &str = "mkfs.ext4";

/// Why there is no writable layer.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A size that no file system has.
    #[error("a writable layer of {0} is too small; give size={MIN_SIZE} or more")]
    Size(Bytes),
    /// The program is not there, or failed to start.
    #[error("cannot run {MKFS} (Debian: the package e2fsprogs)")]
    Mkfs(#[source] io::Error),
    /// It failed.
    #[error("{MKFS} {path}: {said}")]
    Failed {
        /// The file.
        path: PathBuf,
        /// Its last words.
        said: String,
    },
    /// A file or directory of ours.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Makes the file `to`, an empty ext4 of that size. Templates are kept below `data`.
pub fn make(data: &Path, size: Bytes, to: &Path) -> Result<(), DiskError> {
    let template = template(data, size)?;
    let copy = || {
        let from = File::open(&template)?;
        copy_sparsely(&from, &File::create_new(to)?)
    };
    Ok(copy().map_err(file("cannot make", to))?)
}

/// An empty ext4 of that size, made once.
fn template(data: &Path, size: Bytes) -> Result<PathBuf, DiskError> {
    if size < MIN_SIZE {
        return Err(DiskError::Size(size));
    }
    let dir = data.join("templates");
    // Another number where another mkfs is to make it.
    let name = format!("ext4-2-{}", size.0);
    let path = dir.join(&name);
    if path.exists() {
        return Ok(path);
    }
    private_directory(&dir)?;
    let new = dir.join(format!(".{name}-{}", std::process::id()));
    let made = mkfs(&new, size)
        .and_then(|()| Ok(fs::rename(&new, &path).map_err(file("cannot rename", &new))?));
    if made.is_err() {
        let _ = fs::remove_file(&new);
    }
    made.map(|()| path)
}

fn mkfs(path: &Path, size: Bytes) -> Result<(), DiskError> {
    let make = || File::create(path)?.set_len(size.0);
    make().map_err(file("cannot make", path))?;
    // What is copied for each container is to be little: groups that are in use alone (`uninit_bg`), and
    // one spare superblock. A small journal is enough for one container. That inode tables are not
    // written is safe in a file of zeros; the agent keeps the kernel from doing it later.
    let arguments = "-q -F -b 4096 -m 0 -J size=8 \
                     -O ^resize_inode,^metadata_csum,uninit_bg,sparse_super2 \
                     -E lazy_itable_init=1,lazy_journal_init=1,num_backup_sb=1";
    let mut command = Command::new(MKFS);
    command.args(arguments.split_whitespace()).arg(path);
    // Users rarely have it in theirs.
    let paths = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{paths}:/usr/sbin:/sbin"));
    let output = command.output().map_err(DiskError::Mkfs)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(DiskError::Failed {
        path: path.to_owned(),
        said: said.lines().last().unwrap_or("it says nothing").to_owned(),
    })
}

/// Copies what a file has, and leaves its holes out; shares it where the file system can.
fn copy_sparsely(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    if ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    let length = seek(&from, SeekFrom::End(0))?;
    ftruncate(&to, length)?;
    let mut at = 0;
    loop {
        let start = match seek(&from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No more data.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(&from, SeekFrom::Hole(start))?;
        let (mut source, mut target) = (start, start);
        while source < end {
            let left = usize::try_from(end - source).unwrap_or(usize::MAX);
            if copy_file_range(&from, Some(&mut source), &to, Some(&mut target), left)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    /// If it fails, each container takes gigabytes of the host's disk, or its file system is
    /// damaged from the start.
    #[test]
    fn copies_are_sparse_and_equal() {
        let dir = std::env::temp_dir().join(format!("cofferdam-disk-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (from, to) = (dir.join("from"), dir.join("to"));
        let file = File::create(&from).unwrap();
        file.write_all_at(b"first", 4096).unwrap();
        file.write_all_at(b"second", 64 << 20).unwrap();
        file.set_len(1 << 30).unwrap();
        copy_sparsely(File::open(&from).unwrap(), File::create(&to).unwrap()).unwrap();
        let copy = File::open(&to).unwrap();
        let metadata = copy.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 < 1 << 20);
        let mut text = [0; 6];
        copy.read_exact_at(&mut text, 64 << 20).unwrap();
        assert_eq!(&text, b"second");

        let disk = dir.join("disk");
        make(&dir, Bytes(1 << 30), &disk).unwrap();
        let metadata = fs::metadata(&disk).unwrap();
        assert_eq!(metadata.len(), 1 << 30);
        assert!(
            metadata.blocks() * 512 < 4 << 20,
            "{}",
            metadata.blocks() * 512
        );
        assert!(make(&dir, Bytes(1 << 20), &dir.join("small")).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
