//! The writable layer of a container, or a volume: an ext4 in a sparse file, copied from one that is made
//! once.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::files::{FileError, file, private_directory};
use crate::options::Bytes;

/// Below it there is no room for a file system and its journal.
const MIN_SIZE: Bytes = Bytes(16 << 20);
const MKFS: &str = "mkfs.ext4";
const DEBUGFS: &str = "debugfs";

/// What a file system is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// What one container writes, and takes with it.
    Layer,
    /// What outlives containers, and may grow.
    Volume,
}

impl Purpose {
    /// How large one is where nothing is said. It is a bound: the file has only what was written.
    pub const fn default_size(self) -> Bytes {
        match self {
            Self::Layer => Bytes(16 << 30),
            Self::Volume => Bytes(64 << 30),
        }
    }

    /// Part of a template's name: another one where another mkfs is to make it.
    const fn name(self) -> &'static str {
        match self {
            Self::Layer => "ext4-2",
            Self::Volume => "volume-1",
        }
    }

    /// mkfs's options. What is copied for each is to be little: groups that are in use alone. That inode
    /// tables are not written is safe in a file of zeros; the agent keeps the kernel from doing it later.
    fn mkfs(self, size: Bytes) -> String {
        match self {
            // One spare superblock, and no checksums. A small journal is enough for one container.
            Self::Layer => "-J size=8 -O ^resize_inode,^metadata_csum,uninit_bg,sparse_super2 \
                            -E lazy_itable_init=1,lazy_journal_init=1,num_backup_sb=1"
                .into(),
            // The kernel cannot grow one that has sparse_super2. After damage nobody writes any more.
            Self::Volume => {
                let journal = (size.0 >> 24).clamp(4, 64);
                format!(
                    "-J size={journal} -e remount-ro -O ^resize_inode,metadata_csum \
                     -E lazy_itable_init=1,lazy_journal_init=1"
                )
            }
        }
    }
}

/// Why there is no writable layer.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A size that no file system has.
    #[error("a file system of {0} is too small; give size={MIN_SIZE} or more")]
    Size(Bytes),
    /// The program is not there, or failed to start.
    #[error("cannot run {0} (Debian: the package e2fsprogs)")]
    Program(&'static str, #[source] io::Error),
    /// It failed.
    #[error("{program} {path}: {said}")]
    Failed {
        /// Which.
        program: &'static str,
        /// The file.
        path: PathBuf,
        /// Its last words.
        said: String,
    },
    /// A file or directory of ours.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Makes the file `to`, an empty ext4 of that size, or of the usual one. Templates are kept below `data`.
pub fn make(
    data: &Path,
    purpose: Purpose,
    size: Option<Bytes>,
    to: &Path,
) -> Result<(), DiskError> {
    let template = template(data, purpose, size.unwrap_or(purpose.default_size()))?;
    let copy = || {
        let from = File::open(&template)?;
        copy_sparsely(&from, &private(to)?)
    };
    Ok(copy().map_err(file("cannot make", to))?)
}

/// A new file that nobody else may read.
fn private(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// An empty ext4 of that size, made once.
fn template(data: &Path, purpose: Purpose, size: Bytes) -> Result<PathBuf, DiskError> {
    if size < MIN_SIZE {
        return Err(DiskError::Size(size));
    }
    let dir = data.join("templates");
    let name = format!("{}-{}", purpose.name(), size.0);
    let path = dir.join(&name);
    if path.exists() {
        return Ok(path);
    }
    private_directory(&dir)?;
    let new = dir.join(format!(".{name}-{}", std::process::id()));
    let made = mkfs(&new, purpose, size)
        .and_then(|()| Ok(fs::rename(&new, &path).map_err(file("cannot rename", &new))?));
    if made.is_err() {
        let _ = fs::remove_file(&new);
    }
    made.map(|()| path)
}

fn mkfs(path: &Path, purpose: Purpose, size: Bytes) -> Result<(), DiskError> {
    let make = || File::create(path)?.set_len(size.0);
    make().map_err(file("cannot make", path))?;
    let options = purpose.mkfs(size);
    let mut arguments: Vec<_> = ["-q", "-F", "-b", "4096", "-m", "0"].to_vec();
    arguments.extend(options.split_whitespace());
    run(MKFS, &arguments, path)?;
    // A new volume is empty, or databases refuse it.
    match purpose {
        Purpose::Volume => run(DEBUGFS, &["-w", "-R", "rmdir lost+found"], path),
        Purpose::Layer => Ok(()),
    }
}

fn run(program: &'static str, arguments: &[&str], path: &Path) -> Result<(), DiskError> {
    let mut command = Command::new(program);
    command.args(arguments).arg(path);
    // Users rarely have it in theirs.
    let paths = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{paths}:/usr/sbin:/sbin"));
    let output = command
        .output()
        .map_err(|error| DiskError::Program(program, error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(DiskError::Failed {
        program,
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

        for purpose in [Purpose::Layer, Purpose::Volume] {
            let disk = dir.join(purpose.name());
            make(&dir, purpose, Some(Bytes(1 << 30)), &disk).unwrap();
            let metadata = fs::metadata(&disk).unwrap();
            assert_eq!((metadata.len(), metadata.mode() & 0o777), (1 << 30, 0o600));
            let used = metadata.blocks() * 512;
            assert!(used < 4 << 20, "{purpose:?}: {used}");
            let small = dir.join("small");
            assert!(make(&dir, purpose, Some(Bytes(1 << 20)), &small).is_err());
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
