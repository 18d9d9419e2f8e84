//! The root file system of a bundle.
//!
//! One that nobody may write to is shared so with the guest. What the guest would make in it, its mount
//! points, is made on the host before; links in it lead nowhere else. One that is an image of its own is
//! the guest's to mount.

use std::fs::metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{UnmountFlags, mount_bind_recursive, unmount};

use crate::mountinfo;
use crate::options::Rights;
use crate::root::RootDir;
use crate::vm::{Image, ImageKind};

/// A place in a root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub path: PathBuf,
    /// A file is mounted there.
    pub is_file: bool,
}

/// Makes the places of `mounts` and the directory `cwd`, where they are not there. What lies below a
/// mount is none of the root's.
pub(super) fn make(root: &Path, mounts: &[Place], cwd: &Path) -> io::Result<()> {
    let root = RootDir::open(root)?;
    let cwd = Place {
        path: cwd.to_owned(),
        is_file: false,
    };
    for place in mounts.iter().chain([&cwd]) {
        let covers = |mount: &Place| {
            let (above, below) = (mount.path.as_path(), place.path.as_path());
            above != Path::new("/") && above != below && below.starts_with(above)
        };
        if !mounts.iter().any(covers) {
            match place.is_file {
                true => root.make_file(&place.path)?,
                false => root.make_directory(&place.path)?,
            };
        }
    }
    Ok(())
}

/// The image that is mounted as the root, if the guest's kernel can mount it as well: only one that nobody
/// writes to may be mounted by two kernels.
pub(super) fn image(root: &Path) -> io::Result<Option<Image>> {
    let mounts = mountinfo::all()?;
    let Some(mount) = mounts.iter().rfind(|mount| mount.place == root) else {
        return Ok(None);
    };
    let kind = match mount.kind.as_str() {
        "erofs" => ImageKind::Erofs,
        "ext4" => ImageKind::Ext4,
        _ => return Ok(None),
    };
    let is_whole = mount.is_read_only && mount.root == Path::new("/");
    // Names of devices are what somebody called them; files are there by their absolute paths.
    let is_source = |about: std::fs::Metadata| match about.file_type().is_block_device() {
        true => metadata(root).is_ok_and(|root| root.dev() == about.rdev()),
        false => about.is_file() && mount.source.is_absolute(),
    };
    let is_there = is_whole && metadata(&mount.source).is_ok_and(is_source);
    let path = mount.source.clone();
    Ok(is_there.then_some(Image { path, kind }))
}

/// What a container may leave in its root: what it likes, so that packages with set-ID programs can be
/// installed, but not if other users of the host reach it. That is a matter of the directories above: the
/// root's own mode is the container's.
pub(super) fn rights(root: &Path, is_read_only: bool) -> Rights {
    let user = rustix::process::geteuid().as_raw();
    let is_closed = |dir: &Path| {
        metadata(dir).is_ok_and(|about| {
            let is_ours = about.uid() == user || about.uid() == 0;
            let others_enter = about.mode() & 0o001 != 0;
            let group_enters = about.mode() & 0o010 != 0 && about.gid() != 0;
            is_ours && !others_enter && !group_enters
        })
    };
    let is_its_own = !is_read_only && root.ancestors().skip(1).any(is_closed);
    Rights {
        suid: is_its_own,
        dev: is_its_own,
    }
}

/// Mounts the root on itself, as runc does on the host for a container without a mount namespace of its
/// own: who configures such a one finds a mount there, and may take it away. Gives its ID.
pub(super) fn bind(root: &Path) -> io::Result<Option<u64>> {
    mount_bind_recursive(root, root)?;
    mount_id(root)
}

/// Undoes [`bind`], if that mount is there still.
pub(super) fn unbind(root: &Path, mount: u64) {
    if mount_id(root).is_ok_and(|found| found == Some(mount)) {
        let _ = unmount(root, UnmountFlags::DETACH);
    }
}

/// The ID of the mount that a path leads to, where the kernel (5.8) tells.
fn mount_id(path: &Path) -> io::Result<Option<u64>> {
    let about = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
    let is_told = StatxFlags::from_bits_retain(about.stx_mask).contains(StatxFlags::MNT_ID);
    Ok(is_told.then_some(about.stx_mnt_id))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// If it fails, packages cannot be installed in a container whose root is a directory, or it leaves
    /// programs on the host that make root of any user.
    #[test]
    fn roots_that_others_reach_have_no_rights() {
        let dir = std::env::temp_dir().join(format!("cofferdam-rights-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let root = dir.join("bundle/root");
        fs::create_dir_all(&root).unwrap();
        let chmod = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        chmod(&dir, 0o755);
        for (above, own, has) in [
            (0o755, 0o700, false),
            (0o701, 0o755, false),
            (0o700, 0o755, true),
        ] {
            chmod(&dir.join("bundle"), above);
            chmod(&root, own);
            let expected = Rights {
                suid: has,
                dev: has,
            };
            assert_eq!(rights(&root, false), expected, "{above:o}");
            assert_eq!(rights(&root, true), Rights::default());
        }
        fs::remove_dir_all(dir).unwrap();
    }

    /// If it fails, an image's links make us write to the host's files, or a container whose root is
    /// read-only lacks its mount points.
    #[test]
    fn places_are_made_in_the_root() {
        let dir = std::env::temp_dir().join(format!("cofferdam-rootfs-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let (root, outside) = (dir.join("root"), dir.join("outside"));
        fs::create_dir_all(root.join("there")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        symlink(&outside, root.join("out")).unwrap();
        symlink("/there", root.join("in")).unwrap();
        symlink("/missing", root.join("dangling")).unwrap();
        let place = |path: &str, is_file| Place {
            path: path.into(),
            is_file,
        };
        let good = [
            place("/proc", false),
            place("/proc/sys/x", false),
            place("/a/b/c", false),
            place("/a/d", true),
            place("/in/e", true),
            place("relative", false),
        ];
        for cwd in ["/", "/work", "/proc/y"] {
            make(&root, &good, Path::new(cwd)).unwrap();
        }
        assert!(root.join("work").is_dir());
        assert!(root.join("a/b/c").is_dir() && root.join("a/d").is_file());
        assert!(root.join("there/e").is_file() && root.join("relative").is_dir());
        assert!(!root.join("proc/sys").exists());
        let cwd = Path::new("/");
        make(&root, &[place("/dangling/x", false)], cwd).unwrap();
        assert!(root.join("missing/x").is_dir());
        let _ = make(&root, &[place("/out/x", true), place("/../y", true)], cwd);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!dir.join("y").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
