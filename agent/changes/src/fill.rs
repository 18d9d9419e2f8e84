//! A new volume gets what the image has at its place, or what another volume has.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, PipeReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};
use std::thread;

use cofferdam_root::RootDir;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::write_tree;

/// Copies the directory at `place` of the file system at `root` to `volume`, if that is an empty
/// directory: files, owner and mode. Nothing at that place is nothing to copy. `unpack` gets it as an
/// archive, the volume, and what of it is kept: others may have the volume, too, and write to it
/// meanwhile.
pub fn fill(
    volume: &Path,
    root: &Path,
    place: &str,
    unpack: impl Fn(PipeReader, &Path, Kept) -> io::Result<()>,
) -> io::Result<()> {
    if !is_empty(volume)? {
        return Ok(());
    }
    let Some((source, _open)) = find(root, place)? else {
        return Ok(());
    };
    let refused = |error: &io::Error| {
        use ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
        matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
    };
    // Not every file system takes all attributes, and the host's user has no other owners to give: then
    // all of it is that user's, as what the container writes there will be.
    for kept in [Kept::Everything, Kept::Owners] {
        match copy(&source, volume, kept, &unpack) {
            Err(error) if refused(&error) => clear(volume)?,
            other => return other,
        }
    }
    copy(&source, volume, Kept::Files, &unpack)
}

/// What is kept of files beside content, times and modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Owners and attributes.
    Everything,
    /// Owners.
    Owners,
    /// Neither, nor devices.
    Files,
}

fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(directory.is_dir() && fs::read_dir(directory)?.next().is_none())
}

/// The directory at `place`, as a path that is good while the descriptor is open. Links lead nowhere else.
fn find(root: &Path, place: &str) -> io::Result<Option<(PathBuf, OwnedFd)>> {
    match RootDir::open(root)?.find(place, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(found) => {
            let path = format!("/proc/self/fd/{}", found.as_raw_fd());
            Ok(Some((path.into(), found)))
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Unpacks an archive where nobody is deceived by links but who made them: in their own guest.
pub fn unpack(archive: PipeReader, volume: &Path, kept: Kept) -> io::Result<()> {
    let mut archive = Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(kept != Kept::Files);
    archive.set_unpack_xattrs(kept == Kept::Everything);
    // Directories come last, those below first: their modes may forbid what goes into them.
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = match entry.header().entry_type() {
            EntryType::Directory => {
                directories.push(entry);
                continue;
            }
            EntryType::Fifo => FileType::Fifo,
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => {
                entry.unpack_in(volume)?;
                continue;
            }
        };
        node(&entry, kind, volume, kept)?;
    }
    directories.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    for mut directory in directories {
        directory.unpack_in(volume)?;
    }
    Ok(())
}

/// Makes a FIFO or a device.
fn node(entry: &Entry<'_, impl Read>, kind: FileType, volume: &Path, kept: Kept) -> io::Result<()> {
    let path = entry.path()?;
    let is_below = path
        .components()
        .all(|step| matches!(step, Component::Normal(_)));
    if !is_below || (kept == Kept::Files && kind != FileType::Fifo) {
        return Ok(());
    }
    let (header, target) = (entry.header(), volume.join(&path));
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let number = |part: Option<u32>| part.unwrap_or_default();
    let device = match kind {
        FileType::Fifo => 0,
        _ => makedev(
            number(header.device_major()?),
            number(header.device_minor()?),
        ),
    };
    mknodat(CWD, &target, kind, Mode::RUSR | Mode::WUSR, device).map_err(|error| match error {
        // Not what `fill` tries again with less.
        Errno::PERM | Errno::ACCESS => io::Error::other(format!(
            "no device can be made there, and {} is one",
            path.display()
        )),
        other => other.into(),
    })?;
    if kept != Kept::Files {
        let id = |id: u64| u32::try_from(id).map_err(|_| ErrorKind::InvalidData);
        chown(&target, Some(id(header.uid()?)?), Some(id(header.gid()?)?))?;
    }
    fs::set_permissions(&target, Permissions::from_mode(header.mode()? & 0o7777))
}

fn copy(
    source: &Path,
    volume: &Path,
    kept: Kept,
    unpack: impl Fn(PipeReader, &Path, Kept) -> io::Result<()>,
) -> io::Result<()> {
    let about = fs::metadata(source)?;
    if kept != Kept::Files {
        chown(volume, Some(about.uid()), Some(about.gid()))?;
    }
    fs::set_permissions(volume, Permissions::from_mode(about.mode() & 0o7777))?;
    // As an archive, which has links, devices and times, and has its tests.
    let (reader, writer) = io::pipe()?;
    thread::scope(|scope| {
        // The link in /proc would be taken for a file.
        let written = scope.spawn(|| write_tree(&source.join("."), writer));
        let unpacked = unpack(reader, volume, kept);
        match written.join() {
            // Whoever reads no more says why.
            Ok(written) => unpacked.and(written),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn clear(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match fs::symlink_metadata(&path)?.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{XattrFlags, getxattr, setxattr};

    use super::*;

    /// If it fails, a database finds its volume empty or not its own, or what a volume had is
    /// overwritten.
    #[test]
    fn an_empty_volume_gets_what_the_image_has() {
        let top = std::env::temp_dir().join(format!("cofferdam-fill-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        let (root, volume) = (top.join("root"), top.join("volume"));
        fs::create_dir_all(root.join("data/sub")).unwrap();
        fs::create_dir_all(&volume).unwrap();
        fs::write(root.join("data/sub/file"), "one").unwrap();
        fs::set_permissions(root.join("data"), Permissions::from_mode(0o710)).unwrap();
        fs::set_permissions(root.join("data/sub/file"), Permissions::from_mode(0o640)).unwrap();
        fs::hard_link(root.join("data/sub/file"), root.join("data/link")).unwrap();
        symlink("sub/file", root.join("data/symlink")).unwrap();
        symlink("/data", root.join("there")).unwrap();

        // An attribute, where the file system has it; a FIFO; and what an overlay calls a deleted file.
        let data = root.join("data");
        let attribute = setxattr(data.join("sub/file"), "user.a", b"b", XattrFlags::empty());
        let make = |name, kind| mknodat(CWD, data.join(name), kind, Mode::RUSR, 0);
        make("fifo", FileType::Fifo).unwrap();
        let is_root = make("gone", FileType::CharacterDevice).is_ok();

        let fill = |place: &str| super::fill(&volume, &root, place, unpack).unwrap();
        fill("/not/there");
        fill("/data/sub/file");
        assert!(is_empty(&volume).unwrap());
        // By a link that is absolute in the image.
        fill("/there");
        let mode = |path: &str| fs::metadata(volume.join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("."), mode("sub/file")), (0o710, 0o640));
        assert_eq!(fs::read_to_string(volume.join("symlink")).unwrap(), "one");
        assert_eq!(fs::metadata(volume.join("link")).unwrap().nlink(), 2);

        let mut value = [0; 1];
        let copied = getxattr(volume.join("link"), "user.a", &mut value);
        assert!(attribute.is_err() || copied.is_ok() && value == *b"b");
        let kind = |name| fs::symlink_metadata(volume.join(name)).map(|it| it.mode() >> 12);
        assert_eq!(kind("fifo").unwrap(), 0o1);
        assert_eq!(kind("gone").ok(), is_root.then_some(0o2));
        assert!(!volume.join(".wh.gone").exists());
        // All of a file system.
        let copy = top.join("copy");
        fs::create_dir(&copy).unwrap();
        super::fill(&copy, &volume, "/", unpack).unwrap();
        assert_eq!(fs::read_to_string(copy.join("sub/file")).unwrap(), "one");

        fs::write(root.join("data/sub/file"), "two").unwrap();
        fill("/data");
        assert_eq!(fs::read_to_string(volume.join("link")).unwrap(), "one");
        clear(&volume).unwrap();
        assert!(is_empty(&volume).unwrap());
        fs::remove_dir_all(top).unwrap();
    }
}
