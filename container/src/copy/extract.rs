//! An archive from a container to files of the host, or from the host to a container on its kernel.
//! Whoever wrote the archive, or has the files, is the attacker: nothing is written outside of the
//! directory that it is for, not through links in it either, no set-id bit arrives unless it was asked
//! for, and no device.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, fchmod, fchown, futimens, linkat,
    mkdirat, openat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::image::layer::budget::Budget;
use crate::image::layer::tar::{Archive, Entry, Kind};

/// More files than this are no copy but an attack.
const MAX_FILES: u64 = 2_000_000;

/// What a directory takes in memory until its end, beside its path.
const KEPT: usize = 192;

/// Whose the files become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Who extracts them; set-id bits are dropped.
    Us,
    /// As the archive says, set-id bits too.
    Archive,
}

fn bad(entry: &Entry, why: &str) -> io::Error {
    let path = String::from_utf8_lossy(&entry.path);
    io::Error::other(format!("the archive's {path:?} {why}"))
}

/// The steps of an archive's path: `.` and slashes mean nothing, `..` is refused.
fn steps<'a>(entry: &Entry, path: &'a [u8]) -> io::Result<Vec<&'a OsStr>> {
    let steps = path.split(|byte| *byte == b'/');
    let steps: Vec<&OsStr> = steps
        .filter(|step| !step.is_empty() && *step != b".")
        .map(OsStr::from_bytes)
        .collect();
    match steps.iter().any(|step| *step == "..") {
        true => Err(bad(entry, "leads out of it")),
        false => Ok(steps),
    }
}

/// Opens a directory below another, no link followed; those that are missing are made.
fn walk(top: &OwnedFd, steps: &[&OsStr]) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = top.try_clone()?;
    for step in steps {
        let opened = match openat(&at, *step, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                mkdirat(&at, *step, Mode::from_raw_mode(0o755))?;
                openat(&at, *step, flags, Mode::empty())
            }
            other => other,
        };
        at = opened?;
    }
    Ok(at)
}

/// Writes all of an archive to a directory, which is there. Sockets, devices and FIFOs are left out;
/// gives how many.
pub fn directory(archive: impl Read, top: &OwnedFd, owner: Owner) -> io::Result<u64> {
    let mut archive = Archive::new(archive);
    let (mut left_out, mut count) = (0, 0);
    // Last of all: one that may not be written to is still to be filled.
    let mut directories: Vec<Entry> = Vec::new();
    let mut budget = Budget::default();
    while let Some(entry) = archive.entry()? {
        count += 1;
        if count > MAX_FILES {
            return Err(io::Error::other("the archive has too many files"));
        }
        budget.earn(entry.size);
        let steps = steps(&entry, &entry.path)?;
        let Some((name, parents)) = steps.split_last() else {
            // The directory itself, which is the host's.
            continue;
        };
        let parent = walk(top, parents).map_err(|e| within(&entry, e))?;
        let done = match entry.kind {
            Kind::Directory => walk(&parent, &[*name]).map(|_| true),
            Kind::HardLink => link(top, &entry, &parent, name).map(|()| true),
            _ => one(&mut archive, &entry, &parent, name, owner),
        };
        match done.map_err(|e| within(&entry, e))? {
            true if entry.kind == Kind::Directory => {
                let kept = KEPT + entry.path.len();
                budget.keep(kept).map_err(io::Error::other)?;
                directories.push(Entry {
                    link: Vec::new(),
                    xattrs: Default::default(),
                    ..entry
                });
            }
            true => {}
            false => left_out += 1,
        }
    }
    for entry in directories.iter().rev() {
        let opened = walk(top, &steps(entry, &entry.path)?)?;
        attributes(entry, &opened, owner).map_err(|e| within(entry, e))?;
    }
    // The end of the call that sends it.
    archive.drain()?;
    Ok(left_out)
}

/// Writes the one file that an archive has to a directory, with another name.
pub fn file(archive: impl Read, parent: &OwnedFd, name: &OsStr, owner: Owner) -> io::Result<()> {
    let mut archive = Archive::new(archive);
    let entry = match archive.entry()? {
        Some(entry) if matches!(entry.kind, Kind::File | Kind::Symlink) => entry,
        Some(entry) => return Err(bad(&entry, "is neither a file nor a link")),
        // The call's own error, if there is one.
        None => {
            return archive
                .drain()
                .and(Err(io::ErrorKind::UnexpectedEof.into()));
        }
    };
    one(&mut archive, &entry, parent, name, owner)?;
    if let Some(entry) = archive.entry()? {
        return Err(bad(&entry, "was not asked for"));
    }
    archive.drain()
}

fn within(entry: &Entry, error: io::Error) -> io::Error {
    let path = String::from_utf8_lossy(&entry.path).into_owned();
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

/// Makes a file or a symbolic link in the place of what is there, unless that is a directory. Whether
/// it is one of these at all.
fn one(
    archive: &mut Archive<impl Read>,
    entry: &Entry,
    parent: &OwnedFd,
    name: &OsStr,
    owner: Owner,
) -> io::Result<bool> {
    if !matches!(entry.kind, Kind::File | Kind::Symlink) {
        return Ok(false);
    }
    remove(parent, name)?;
    if entry.kind == Kind::Symlink {
        symlinkat(OsStr::from_bytes(&entry.link), parent, name)?;
        return Ok(true);
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?);
    if io::copy(archive, &mut file)? != entry.size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    attributes(entry, &file, owner)?;
    Ok(true)
}

fn remove(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Another name of a file that came before, below the same directory.
fn link(top: &OwnedFd, entry: &Entry, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let steps = steps(entry, &entry.link)?;
    let Some((target, parents)) = steps.split_last() else {
        return Err(bad(entry, "is a link to nothing"));
    };
    let from = walk(top, parents)?;
    remove(parent, name)?;
    Ok(linkat(&from, *target, parent, name, AtFlags::empty())?)
}

fn attributes(entry: &Entry, file: impl AsFd, owner: Owner) -> io::Result<()> {
    let allowed = match owner {
        Owner::Us => 0o777,
        Owner::Archive => {
            // All ones mean "leave it" to chown(2).
            let known = |id: u32| (id != u32::MAX).then_some(id);
            let (uid, gid) = (known(entry.uid), known(entry.gid));
            fchown(&file, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?;
            0o7777
        }
    };
    // After the owner, a change of which clears set-id bits.
    fchmod(&file, Mode::from_raw_mode(u32::from(entry.mode) & allowed))?;
    let time = Timespec {
        tv_sec: entry.mtime,
        tv_nsec: i64::from(entry.mtime_nsec),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(futimens(&file, &times)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    use tar::{Builder, EntryType, Header};

    use super::*;
    use crate::copy::{From, open, pack};
    use crate::hostpath::HostPath;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let name = format!("cofferdam-copy-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = Header::new_ustar();
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
            if matches!(kind, EntryType::Char | EntryType::Block) {
                header.set_device_major(1).unwrap();
                header.set_device_minor(3).unwrap();
            }
            header.set_size(if is_link { 0 } else { content.len() as u64 });
            // As no honest builder would let it be.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            if is_link {
                header.set_link_name_literal(content).unwrap();
            }
            header.set_cksum();
            let data = if is_link { "" } else { content };
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// If it fails, a hostile container writes where it wants on the host, or leaves programs there
    /// that run as root.
    #[test]
    fn hostile_archives_stay_within() {
        let dir = Dir::new("hostile");
        let (inside, outside) = (dir.0.join("in"), dir.0.join("out"));
        fs::create_dir_all(&outside).unwrap();
        let file = EntryType::Regular;
        let out = outside.to_str().unwrap();
        for entries in [
            &[("../out/x", file, "x")][..],
            &[("a/../../out/x", file, "x")],
            &[("a", EntryType::Symlink, out), ("a/x", file, "x")],
            &[("a", EntryType::Symlink, "../out"), ("a/b/x", file, "x")],
            &[("a", EntryType::Link, "../out/../../etc/passwd")],
            &[
                ("l", EntryType::Symlink, out),
                ("a", EntryType::Link, "l/x"),
            ],
        ] {
            let _ = fs::remove_dir_all(&inside);
            fs::create_dir_all(&inside).unwrap();
            let top = File::open(&inside).unwrap().into();
            let done = directory(&archive(entries)[..], &top, Owner::Us);
            assert!(done.is_err(), "{entries:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{entries:?}");
        }
        let _ = fs::remove_dir_all(&inside);
        fs::create_dir_all(&inside).unwrap();
        // A link is replaced, not written through; what is absolute is below; devices do not come.
        let entries = [
            ("./", EntryType::Directory, ""),
            ("a", EntryType::Symlink, "/etc/passwd"),
            ("a", file, "own"),
            ("/b/c", file, "deep"),
            ("b/d", EntryType::Link, "/b/c"),
            ("tty", EntryType::Char, ""),
        ];
        let top = File::open(&inside).unwrap().into();
        let left_out = directory(&archive(&entries)[..], &top, Owner::Us).unwrap();
        assert_eq!(left_out, 1);
        assert_eq!(fs::read_to_string(inside.join("a")).unwrap(), "own");
        assert_eq!(fs::read_to_string(inside.join("b/d")).unwrap(), "deep");
        let mode = fs::metadata(inside.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
        let half = archive(&entries);
        assert!(directory(&half[..3 * 512 + 1], &top, Owner::Us).is_err());
        // One file is asked for, one file comes.
        let target = OsStr::new("one");
        let two = archive(&[("x", file, "1"), ("y", file, "2")]);
        assert!(super::file(&two[..], &top, target, Owner::Us).is_err());
        assert!(super::file(&archive(&[])[..], &top, target, Owner::Us).is_err());
        let device = archive(&[("x", EntryType::Block, "")]);
        assert!(super::file(&device[..], &top, target, Owner::Us).is_err());
    }

    /// If it fails, files are changed on their way from host to container or back.
    #[test]
    fn what_is_packed_is_extracted() {
        let dir = Dir::new("both");
        let (from, to) = (dir.0.join("from"), dir.0.join("to"));
        fs::create_dir_all(from.join("sub/empty")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("sub/file"), "content").unwrap();
        let closed = fs::Permissions::from_mode(0o500);
        fs::set_permissions(from.join("sub"), closed).unwrap();
        std::os::unix::fs::symlink("sub/file", from.join("link")).unwrap();
        let what = |path: &Path, name: &'static str, follow| From {
            file: match follow {
                true => open(path).unwrap(),
                false => HostPath::find(path).unwrap().open().unwrap(),
            },
            name: Path::new(name),
            owners: false,
            one_file_system: false,
        };
        let mut bytes = Vec::new();
        assert_eq!(pack(what(&from, "named", false), &mut bytes).unwrap(), 0);
        let top = File::open(&to).unwrap().into();
        assert_eq!(directory(&bytes[..], &top, Owner::Us).unwrap(), 0);
        let named = to.join("named");
        assert_eq!(fs::read_to_string(named.join("link")).unwrap(), "content");
        assert!(named.join("sub/empty").is_dir());
        let mode = fs::metadata(named.join("sub")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o500);
        for (follow, is_link) in [(false, true), (true, false)] {
            let mut bytes = Vec::new();
            pack(what(&from.join("link"), "one", follow), &mut bytes).unwrap();
            super::file(&bytes[..], &top, OsStr::new("one"), Owner::Us).unwrap();
            let target = to.join("one");
            assert_eq!(fs::symlink_metadata(&target).unwrap().is_symlink(), is_link);
        }
    }
}
