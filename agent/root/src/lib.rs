//! A root file system that is not ours: whoever filled it is the attacker, and may still run. What is
//! found or made in it by a path lies in it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, open, openat, openat2, readlinkat,
};
use rustix::io::Errno;

/// More than this of a text is none that we read.
const MAX_TEXT: u64 = 16 << 20;
/// More links than the kernel follows on one path lead nowhere.
const MAX_LINKS: usize = 40;

const DIRECTORY: Mode = Mode::from_raw_mode(0o755);
const FILE: Mode = Mode::from_raw_mode(0o644);

/// The root directory.
#[derive(Debug)]
pub struct RootDir(OwnedFd);

impl RootDir {
    /// The one at a path of ours.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(open(path, flags, Mode::empty())?))
    }

    /// That of a process.
    pub fn of(pid: u32) -> io::Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/root")))
    }

    /// Opens what is at a path. Links lead where they lead for who has it as his root, and so does `..`;
    /// those that the kernel makes up in /proc lead nowhere.
    pub fn find(&self, path: impl AsRef<Path>, flags: OFlags) -> io::Result<OwnedFd> {
        let path = Path::new("/").join(path);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        Ok(openat2(&self.0, path, flags, Mode::empty(), resolve)?)
    }

    /// The text of a file; nothing if that cannot be had.
    pub fn text(&self, path: &str) -> String {
        let read = || -> io::Result<String> {
            // Nobody is waited for: it may be a FIFO, or worse.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            let file = self.find(path, flags)?;
            let mut text = String::new();
            if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile {
                File::from(file).take(MAX_TEXT).read_to_string(&mut text)?;
            }
            Ok(text)
        };
        read().unwrap_or_default()
    }

    /// The path without links and `..` of the place that a path leads to. The place, and directories above
    /// it, need not be there: so a link to nothing leads to where its target would be.
    pub fn resolve(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let mut ahead = steps(path.as_ref());
        let (mut place, mut links) = (PathBuf::from("/"), 0);
        while let Some(step) = ahead.pop() {
            if step == ".." {
                place.pop();
                continue;
            }
            let next = place.join(step);
            let Some(target) = self.link(&next)? else {
                place = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            if target.is_absolute() {
                place = PathBuf::from("/");
            }
            ahead.extend(steps(&target));
        }
        Ok(place)
    }

    /// What a link says; nothing if it is none.
    fn link(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let found = match self.find(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Symlink {
            return Ok(None);
        }
        let target = readlinkat(&found, "", Vec::new())?;
        Ok(Some(OsString::from_vec(target.into_bytes()).into()))
    }

    /// Makes a directory where a path leads, and those above it, if they are not there. Gives the path
    /// without links.
    pub fn make_directory(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let make = |parent: &OwnedFd, name: &OsStr| mkdirat(parent, name, DIRECTORY);
        self.make(path.as_ref(), make)
    }

    /// Makes an empty file where a path leads, and the directories above it, if they are not there. Gives
    /// the path without links.
    pub fn make_file(&self, path: impl AsRef<Path>) -> io::Result<PathBuf> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let make = |parent: &OwnedFd, name: &OsStr| openat(parent, name, flags, FILE).map(drop);
        self.make(path.as_ref(), make)
    }

    fn make(
        &self,
        path: &Path,
        last: impl Fn(&OwnedFd, &OsStr) -> Result<(), Errno>,
    ) -> io::Result<PathBuf> {
        let place = self.resolve(path)?;
        let mut parent = self.find("/", OFlags::PATH)?;
        let mut so_far = PathBuf::from("/");
        for name in steps(&place).iter().rev() {
            so_far.push(name);
            parent = match self.find(&so_far, OFlags::PATH) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let made = match so_far == place {
                        true => last(&parent, name),
                        false => mkdirat(&parent, name, DIRECTORY),
                    };
                    // Somebody else may do the same.
                    made.or_else(|error| match error {
                        Errno::EXIST => Ok(()),
                        _ => Err(error),
                    })?;
                    self.find(&so_far, OFlags::PATH)?
                }
                found => found?,
            };
        }
        Ok(place)
    }
}

/// The names on a path and the `..` between them, the last one first.
fn steps(path: &Path) -> Vec<OsString> {
    let named = |step: &Component<'_>| matches!(step, Component::Normal(_) | Component::ParentDir);
    let steps = path.components().rev().filter(named);
    steps.map(|step| step.as_os_str().to_owned()).collect()
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// If it fails, an image reads the host's files, or has us wait for ever.
    #[test]
    fn nothing_leads_out() {
        let top = std::env::temp_dir().join(format!("cofferdam-root-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        fs::create_dir_all(top.join("root/etc")).unwrap();
        fs::write(top.join("outside"), "theirs").unwrap();
        fs::write(top.join("root/etc/real"), "own").unwrap();
        let link = |to: &str, name: &str| symlink(to, top.join("root/etc").join(name)).unwrap();
        let outside = top.join("outside");
        link("/etc/real", "absolute");
        link(outside.to_str().unwrap(), "there");
        link("../../../outside", "up");
        link("/proc/self/exe", "magic");
        let kind = FileType::Fifo;
        let fifo = top.join("root/etc/fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, Mode::RUSR, 0).unwrap();
        let root = RootDir::open(&top.join("root")).unwrap();
        assert_eq!(root.text("/etc/absolute"), "own");
        assert_eq!(root.text("/../etc/real"), "own");
        for name in ["there", "up", "magic", "fifo", "none", ""] {
            assert_eq!(root.text(&format!("/etc/{name}")), "", "{name}");
        }
        fs::remove_dir_all(top).unwrap();
    }

    /// If it fails, what is mounted on an image's link lands elsewhere than runc would mount it, a container
    /// cannot start, or an image makes us write to the host's files.
    #[test]
    fn places_are_made_where_links_lead() {
        let top = std::env::temp_dir().join(format!("cofferdam-places-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        let (inside, outside) = (top.join("root"), top.join("outside"));
        for dir in ["run", "var", "etc", "a", "real"] {
            fs::create_dir_all(inside.join(dir)).unwrap();
        }
        fs::create_dir(&outside).unwrap();
        for (name, target) in [
            ("var/run", "../run"),
            ("rel", "../real"),
            ("a/b", "../real"),
            ("etc/resolv.conf", "/run/nowhere/resolv"),
            ("etc/localtime", "../../../zone/file"),
            ("chain", "a/b/../none/x"),
            ("loop", "loop"),
            ("out", outside.to_str().unwrap()),
        ] {
            symlink(target, inside.join(name)).unwrap();
        }
        let root = RootDir::open(&inside).unwrap();
        for (path, place) in [
            ("/var/run/sub", "/run/sub"),
            ("/rel/x", "/real/x"),
            ("a/b/y", "/real/y"),
            ("/chain/z", "/none/x/z"),
            ("/../../up", "/up"),
            ("/run/deep/er", "/run/deep/er"),
        ] {
            assert_eq!(root.make_directory(path).unwrap(), Path::new(place));
            assert!(inside.join(&place[1..]).is_dir(), "{path}");
        }
        for (path, place) in [
            ("/etc/resolv.conf", "/run/nowhere/resolv"),
            ("/etc/localtime", "/zone/file"),
            ("/var/run/socket", "/run/socket"),
        ] {
            assert_eq!(root.make_file(path).unwrap(), Path::new(place));
            assert!(inside.join(&place[1..]).is_file(), "{path}");
            // What is there stays.
            assert_eq!(root.make_file(path).unwrap(), Path::new(place));
        }
        assert_eq!(root.make_directory("/").unwrap(), Path::new("/"));
        assert!(root.make_directory("/loop/x").is_err());
        assert!(root.make_directory("/run/socket/x").is_err());
        // The link's own path, in the root.
        root.make_file("/out/file").unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        fs::remove_dir_all(top).unwrap();
    }
}
