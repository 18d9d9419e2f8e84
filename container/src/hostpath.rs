//! Paths of the host that a user names, where files come from a container or go to one.
//!
//! An earlier copy may have left a symbolic link on such a path, and a container chose where it leads. So
//! a path is walked step by step, each below the directory before it, and no link is followed but the
//! host's own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, mkdirat, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::files;

/// Systems have links of their own in these, such as `/lib` and `/var/run`.
const SYSTEM: [&str; 3] = ["/", "/usr", "/var"];

/// Why a path cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostPathError {
    /// A link, which may be a container's.
    #[error(
        "{path} is a symbolic link to {target}, and it is not followed, because a container may have \
         made it with an earlier copy; name the place itself"
    )]
    Link {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// Something else is there.
    #[error("{0} is no regular file, and nothing else is replaced")]
    Special(PathBuf),
    /// The file system says no.
    #[error("{path}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A place on the host: an entry of a directory, or a directory itself.
#[derive(Debug)]
pub struct HostPath {
    dir: OwnedFd,
    /// None: it is the directory.
    name: Option<OsString>,
    path: PathBuf,
}

impl HostPath {
    /// Finds the place that a path names. What is there is not looked at, and a slash behind it changes
    /// nothing.
    pub fn find(path: &Path) -> Result<Self, HostPathError> {
        if path.as_os_str().is_empty() {
            return Err(failed(path, Errno::NOENT));
        }
        let mut steps: Vec<Component<'_>> = path.components().collect();
        let name = match steps.last() {
            Some(Component::Normal(name)) => Some((*name).to_owned()),
            _ => None,
        };
        if name.is_some() {
            steps.pop();
        }
        let start = match path.is_absolute() {
            true => "/",
            false => ".",
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(start, flags, Mode::empty());
        let mut at = Self {
            dir: dir.map_err(|errno| failed(Path::new(start), errno))?,
            name: None,
            path: PathBuf::new(),
        };
        for step in steps {
            at = at.step(step.as_os_str())?;
        }
        at.path.extend(&name);
        at.name = name;
        Ok(at)
    }

    /// The place of that name in the directory that is here.
    pub fn below(&self, name: &OsStr) -> Result<Self, HostPathError> {
        Ok(Self {
            dir: self.directory()?,
            name: Some(name.to_owned()),
            path: self.path.join(name),
        })
    }

    /// What is here, if anything; a link is a link.
    pub fn kind(&self) -> Result<Option<FileType>, HostPathError> {
        let Some(name) = &self.name else {
            return Ok(Some(FileType::Directory));
        };
        match statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(about) => Ok(Some(FileType::from_raw_mode(about.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(&self.path, errno)),
        }
    }

    /// Opens what is here, only to know what it is; a link is opened itself.
    pub fn open(&self) -> Result<File, HostPathError> {
        let name = self.name.as_deref().unwrap_or(OsStr::new("."));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, name, flags, Mode::empty());
        Ok(file.map_err(|errno| failed(&self.path, errno))?.into())
    }

    /// Opens the directory that is here.
    pub fn directory(&self) -> Result<OwnedFd, HostPathError> {
        let name = self.name.as_deref().unwrap_or(OsStr::new("."));
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.dir, name, flags, Mode::empty()).map_err(|errno| self.refused(errno))
    }

    /// Opens the directory that is here, or makes it.
    pub fn make_directory(&self) -> Result<OwnedFd, HostPathError> {
        if let (Some(name), None) = (&self.name, self.kind()?) {
            let mode = Mode::from_raw_mode(0o777);
            mkdirat(&self.dir, name, mode).map_err(|errno| failed(&self.path, errno))?;
        }
        self.directory()
    }

    /// The directory that has it, and its name there.
    pub fn entry(&self) -> Result<(&OwnedFd, &OsStr), HostPathError> {
        match &self.name {
            Some(name) => Ok((&self.dir, name)),
            None => Err(failed(&self.path, Errno::ISDIR)),
        }
    }

    /// Writes a file here, which takes the place of one that is here when it is whole.
    pub fn write<E: From<HostPathError>>(
        &self,
        write: impl FnOnce(&mut File) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.kind()? {
            None | Some(FileType::RegularFile) => {}
            Some(_) => return Err(HostPathError::Special(self.path.clone()).into()),
        }
        let (dir, name) = self.entry()?;
        let io = |source| HostPathError::Io {
            path: self.path.clone(),
            source,
        };
        let mut new = files::New::make(dir.as_fd(), Path::new(name), 0o666).map_err(io)?;
        write(&mut new.file)?;
        Ok(new.place().map_err(io)?)
    }

    /// Goes one step on the way.
    fn step(&self, name: &OsStr) -> Result<Self, HostPathError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = self.path.join(name);
        let open = |flags| openat(&self.dir, name, flags, Mode::empty());
        let opened = match open(flags | OFlags::NOFOLLOW) {
            Err(Errno::NOTDIR | Errno::LOOP) if self.is_systems_link(name) => open(flags),
            other => other,
        };
        match opened {
            Ok(dir) => Ok(Self {
                dir,
                name: None,
                path,
            }),
            Err(errno) => Err(refused(&self.dir, name, &path, errno)),
        }
    }

    /// Whether there is a link that no copy of ours made: in a directory where systems have them, or, as
    /// only root can make files of others, another user's.
    fn is_systems_link(&self, name: &OsStr) -> bool {
        let Ok(about) = statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
            return false;
        };
        let user = rustix::process::geteuid();
        is_link(&about)
            && (SYSTEM.iter().any(|dir| self.path == Path::new(dir))
                || (!user.is_root() && about.st_uid != user.as_raw()))
    }

    fn refused(&self, errno: Errno) -> HostPathError {
        match &self.name {
            Some(name) => refused(&self.dir, name, &self.path, errno),
            None => failed(&self.path, errno),
        }
    }
}

fn is_link(about: &Stat) -> bool {
    FileType::from_raw_mode(about.st_mode) == FileType::Symlink
}

/// Why there was no way through `name`: it is a link, or what the file system says.
fn refused(dir: &OwnedFd, name: &OsStr, path: &Path, errno: Errno) -> HostPathError {
    match readlinkat(dir, name, Vec::new()) {
        Ok(target) => HostPathError::Link {
            path: path.to_owned(),
            target: OsString::from(target.to_string_lossy().into_owned()).into(),
        },
        Err(_) => failed(path, errno),
    }
}

fn failed(path: &Path, errno: Errno) -> HostPathError {
    HostPathError::Io {
        path: path.to_owned(),
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    /// If it fails, a container that had files copied before has others copied to where it likes, or what
    /// it likes copied to it.
    #[test]
    fn links_are_not_followed() {
        let top = std::env::temp_dir().join(format!("cofferdam-path-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        let (data, outside) = (top.join("data"), top.join("outside"));
        fs::create_dir_all(data.join("sub")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("file"), "theirs").unwrap();
        symlink(&outside, data.join("link")).unwrap();
        symlink(outside.join("file"), data.join("file")).unwrap();
        let find = |path: &str| HostPath::find(&data.join(path));

        for path in ["link/file", "link/new", "sub/../link/x/y", "./link/."] {
            let found = find(path).and_then(|place| place.make_directory());
            let error = found.unwrap_err().to_string();
            assert!(error.contains("is a symbolic link to"), "{path}: {error}");
        }
        for path in ["link", "link/", "link/."] {
            let place = find(path).unwrap();
            assert_eq!(place.kind().unwrap(), Some(FileType::Symlink), "{path}");
            assert!(place.open().unwrap().metadata().unwrap().is_symlink());
            place.make_directory().unwrap_err();
            place.below(OsStr::new("file")).unwrap_err();
        }
        let write = |path: &str| -> Result<(), HostPathError> {
            find(path)?.write(|file| {
                file.write_all(b"ours").unwrap();
                Ok(())
            })
        };
        write("link").unwrap_err();
        write("file").unwrap_err();
        write("sub").unwrap_err();
        write("sub/new").unwrap();
        assert_eq!(fs::read(data.join("sub/new")).unwrap(), b"ours");
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"theirs");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);

        let sub = find("sub").unwrap();
        sub.below(OsStr::new("made"))
            .unwrap()
            .make_directory()
            .unwrap();
        assert!(data.join("sub/made").is_dir());
        assert_eq!(find("none").unwrap().kind().unwrap(), None);
        find("none/x").unwrap_err();
        HostPath::find(Path::new("")).unwrap_err();
        // The host's own links are no container's.
        let own = HostPath::find(Path::new("/var/run/x")).and_then(|place| place.kind());
        assert_eq!(own.unwrap(), None);
        fs::remove_dir_all(top).unwrap();
    }
}
