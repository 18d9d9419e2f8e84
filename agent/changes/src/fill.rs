//! A new volume gets what the image has at its place.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, PipeReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;

use cofferdam_root::RootDir;
use rustix::fs::OFlags;
use tar::Archive;

use crate::write_layer;

/// Copies the directory at `place` of the file system at `root` to `volume`, if that is an empty
/// directory: files, owner and mode. Nothing at that place is nothing to copy. `unpack` gets it as an
/// archive, the volume, and whether files have the owners that the archive says: others may have the
/// volume, too, and write to it meanwhile.
pub fn fill(
    volume: &Path,
    root: &Path,
    place: &str,
    unpack: impl Fn(PipeReader, &Path, bool) -> io::Result<()>,
) -> io::Result<()> {
    if !is_empty(volume)? {
        return Ok(());
    }
    let Some((source, _open)) = find(root, place)? else {
        return Ok(());
    };
    match copy(&source, volume, true, &unpack) {
        // The host's user has no other owners to give: then all of it is that user's, as what the
        // container writes there will be.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::PermissionDenied | ErrorKind::InvalidInput
            ) =>
        {
            clear(volume).and_then(|()| copy(&source, volume, false, &unpack))
        }
        other => other,
    }
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
pub fn unpack(archive: PipeReader, volume: &Path, owners: bool) -> io::Result<()> {
    let mut archive = Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(owners);
    archive.unpack(volume)
}

fn copy(
    source: &Path,
    volume: &Path,
    owners: bool,
    unpack: impl Fn(PipeReader, &Path, bool) -> io::Result<()>,
) -> io::Result<()> {
    let about = fs::metadata(source)?;
    if owners {
        chown(volume, Some(about.uid()), Some(about.gid()))?;
    }
    fs::set_permissions(volume, Permissions::from_mode(about.mode() & 0o7777))?;
    // As a layer, which has links, devices and times, and has its tests.
    let (reader, writer) = io::pipe()?;
    thread::scope(|scope| {
        // The link in /proc would be taken for a file.
        let written = scope.spawn(|| write_layer(&source.join("."), &[], writer));
        let unpacked = unpack(reader, volume, owners);
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

        fs::write(root.join("data/sub/file"), "two").unwrap();
        fill("/data");
        assert_eq!(fs::read_to_string(volume.join("link")).unwrap(), "one");
        clear(&volume).unwrap();
        assert!(is_empty(&volume).unwrap());
        fs::remove_dir_all(top).unwrap();
    }
}
