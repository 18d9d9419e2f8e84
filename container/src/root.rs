//! A root file system that is not ours: whoever filled it is the attacker, and may still run. What is
//! found in it by a path lies in it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

/// More than this of a text is none that we read.
const MAX_TEXT: u64 = 16 << 20;

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
}
