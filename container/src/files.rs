//! Files and directories of ours: made so that nobody else has a say in them, and what goes wrong with
//! them.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::mountinfo;

/// Rights that are others'.
const OTHERS: u32 = 0o077;

/// Something that was tried with a file or a directory, and failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct FileError {
    /// What was tried: "cannot read".
    pub action: &'static str,
    /// With what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Says what was tried, and with what, of an error of the file system's.
pub fn file<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Makes a directory, and what is missing above it, for nobody but us. If it is there already, it is
/// closed to others: set-user-ID programs that a guest made may lie in it.
pub fn private_directory(path: &Path) -> Result<(), FileError> {
    let make = || {
        let mut directory = fs::DirBuilder::new();
        directory.recursive(true).mode(0o700).create(path)?;
        close(&File::open(path)?)
    };
    make().map_err(file("cannot make the directory", path))
}

/// Opens a file to be locked, or makes it. Nobody else may open it: he could lock it, too.
pub(crate) fn lock_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).append(true).create(true).mode(0o600);
    let lock = options.custom_flags(libc::O_NOFOLLOW).open(path)?;
    close(&lock)?;
    Ok(lock)
}

/// Takes others' rights to what is ours.
fn close(file: &File) -> io::Result<()> {
    let about = file.metadata()?;
    let is_ours = about.uid() == rustix::process::geteuid().as_raw();
    match is_ours && about.mode() & OTHERS != 0 {
        true => file.set_permissions(Permissions::from_mode(about.mode() & 0o7777 & !OTHERS)),
        false => Ok(()),
    }
}

/// Removes a directory of ours with all that is in it. If somebody mounted something in it, it stays: those
/// files are not ours.
pub(crate) fn remove_tree(path: &Path) -> Result<(), FileError> {
    let remove = || {
        let place = path.canonicalize()?;
        let mounts = mountinfo::all()?;
        if let Some(mount) = mounts.iter().find(|mount| mount.place.starts_with(&place)) {
            let why = format!("unmount {} first", mount.place.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        fs::remove_dir_all(path)
    };
    remove().map_err(file("cannot remove", path))
}

/// A file that takes the place of another when it is whole. If it never is, it goes.
#[derive(Debug)]
pub(crate) struct New<'a> {
    /// It, to be written.
    pub file: File,
    at: BorrowedFd<'a>,
    path: &'a Path,
    own: Option<PathBuf>,
}

impl<'a> New<'a> {
    /// Makes it beside `path`, which is below the directory `at` unless it is absolute. A link that
    /// lies there leads nowhere.
    pub(crate) fn make(at: BorrowedFd<'a>, path: &'a Path, mode: u32) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut name = OsString::from(".");
        name.push(path.file_name().ok_or(Errno::ISDIR)?);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}-{count}~", std::process::id()));
        let own = path.with_file_name(name);
        // Of a killed process that had our number.
        let _ = unlinkat(at, &own, AtFlags::empty());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(at, &own, flags, Mode::from_raw_mode(mode))?;
        Ok(Self {
            file: file.into(),
            at,
            path,
            own: Some(own),
        })
    }

    /// Puts it in its place. A link there is replaced, not followed.
    pub(crate) fn place(mut self) -> io::Result<()> {
        if let Some(own) = &self.own {
            renameat(self.at, own, self.at, self.path)?;
            self.own = None;
        }
        Ok(())
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            let _ = unlinkat(self.at, own, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cofferdam-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    /// If it fails, other users reach what guests leave in volumes, or keep root's commands waiting.
    #[test]
    fn what_is_ours_is_closed_to_others() {
        let top = directory("private");
        let (new, old) = (top.join("a/b"), top.join("old"));
        fs::create_dir(&old).unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o755)).unwrap();
        for dir in [&new, &old] {
            private_directory(dir).unwrap();
            assert_eq!(mode(dir), 0o700);
        }
        assert_eq!(mode(&top.join("a")), 0o700);
        let (new, old) = (top.join("lock"), top.join("old-lock"));
        fs::write(&old, "").unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o644)).unwrap();
        for path in [&new, &old] {
            lock_file(path).unwrap();
            assert_eq!(mode(path), 0o600);
        }
        symlink(&new, top.join("link")).unwrap();
        lock_file(&top.join("link")).unwrap_err();
        fs::remove_dir_all(top).unwrap();
    }

    /// If it fails, a link has us write to another file, or half a file looks like one.
    #[test]
    fn new_files_take_the_place_of_links() {
        let top = directory("new");
        let (path, outside) = (top.join("file"), top.join("outside"));
        fs::write(&outside, "theirs").unwrap();
        symlink(&outside, &path).unwrap();
        let mut half = New::make(CWD, &path, 0o644).unwrap();
        half.file.write_all(b"half").unwrap();
        drop(half);
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        let mut whole = New::make(CWD, &path, 0o644).unwrap();
        whole.file.write_all(b"whole").unwrap();
        whole.place().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read(&outside).unwrap(), b"theirs");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(fs::read_dir(&top).unwrap().count(), 2);
        fs::remove_dir_all(top).unwrap();
    }
}
