//! An image's files in a directory, for containers that are only processes.
//!
//! The layers are first put together in memory and in one temporary file, as for VMs; then a tree that
//! has only what it should is written to an empty directory. No path of a layer is ever looked up on
//! the host, so no link in one leads anywhere.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, chmodat, chownat, fsetxattr,
    linkat, lsetxattr, mkdirat, mknodat, openat, symlinkat, utimensat,
};
use rustix::fs::{Gid, Uid};

use super::erofs::{BLOCK, Data};
use super::layer::tree::{Attributes, Content, Id, ROOT, Tree};

/// Writes a tree, whose content is in `content`, to an existing, empty directory. Who is not root
/// becomes the owner of all of it, and devices are left out.
pub(super) fn write(tree: &Tree, content: &File, directory: &Path) -> io::Result<()> {
    if fs::read_dir(directory)?.next().is_some() {
        return Err(io::ErrorKind::DirectoryNotEmpty.into());
    }
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(directory, flags, Mode::empty())?;
    let mut target = Target {
        tree,
        content: content.try_clone()?,
        root: root.try_clone()?,
        privileged: rustix::process::geteuid().is_root(),
        written: HashMap::new(),
    };
    target.directory(root)
}

struct Target<'a> {
    tree: &'a Tree,
    content: File,
    root: OwnedFd,
    privileged: bool,
    /// Where files with several names are already: the directory's path from the root, and the name.
    written: HashMap<Id, (Rc<[u8]>, Vec<u8>)>,
}

/// A directory being written.
struct Level {
    id: Id,
    file: OwnedFd,
    /// From the root, with a slash behind it.
    path: Rc<[u8]>,
    left: Vec<(Vec<u8>, Id)>,
}

impl Target<'_> {
    fn directory(&mut self, root: OwnedFd) -> io::Result<()> {
        let mut levels = vec![self.level(ROOT, root, Rc::default())];
        while let Some(level) = levels.last_mut() {
            let Some((name, id)) = level.left.pop() else {
                // Last, because what is written into a directory changes its time.
                let done = levels.pop();
                if let Some(level) = done {
                    self.attributes(level.id, &level.file)?;
                }
                continue;
            };
            let path = Rc::clone(&level.path);
            let name = OsStr::from_bytes(&name);
            let file = level.file.as_fd();
            if self.tree.children(id).is_none() {
                self.file(id, file, name, path)?;
                continue;
            }
            mkdirat(file, name, Mode::RWXU)?;
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = openat(file, name, flags, Mode::empty())?;
            let path = [&path[..], name.as_bytes(), b"/"].concat();
            let level = self.level(id, below, path.into());
            levels.push(level);
        }
        Ok(())
    }

    fn level(&self, id: Id, file: OwnedFd, path: Rc<[u8]>) -> Level {
        let children = self.tree.children(id).into_iter().flatten();
        let mut left: Vec<(Vec<u8>, Id)> =
            children.map(|(name, id)| (name.to_vec(), *id)).collect();
        left.reverse();
        Level {
            id,
            file,
            path,
            left,
        }
    }

    fn file(&mut self, id: Id, parent: BorrowedFd, name: &OsStr, path: Rc<[u8]>) -> io::Result<()> {
        let inode = self.tree.inode(id);
        if let Some((path, other)) = self.written.get(&id) {
            let other = [&path[..], other].concat();
            let other = OsStr::from_bytes(&other);
            return Ok(linkat(&self.root, other, parent, name, AtFlags::empty())?);
        }
        let node = |kind, device| -> io::Result<bool> {
            match mknodat(parent, name, kind, Mode::RUSR, device) {
                Err(rustix::io::Errno::PERM) if !self.privileged => Ok(false),
                other => Ok(other.map(|()| true)?),
            }
        };
        let made = match &inode.content {
            Content::File(data) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let mut file = File::from(openat(parent, name, flags, mode)?);
                copy(data, &mut self.content, &mut file)?;
                self.attributes(id, &file)?;
                true
            }
            Content::Symlink(target) => {
                symlinkat(OsStr::from_bytes(target), parent, name)?;
                self.link_attributes(&inode.attributes, parent, name)?;
                true
            }
            Content::Character(major, minor) => {
                let device = rustix::fs::makedev(*major, *minor);
                node(FileType::CharacterDevice, device)?
            }
            Content::Block(major, minor) => {
                node(FileType::BlockDevice, rustix::fs::makedev(*major, *minor))?
            }
            Content::Fifo => node(FileType::Fifo, 0)?,
            // What is merged has none, and directories are not made here.
            Content::Whiteout | Content::Directory { .. } => false,
        };
        if made && !matches!(inode.content, Content::File(_) | Content::Symlink(_)) {
            self.link_attributes(&inode.attributes, parent, name)?;
            let mode = Mode::from_raw_mode(u32::from(inode.attributes.mode));
            chmodat(parent, name, mode, AtFlags::empty())?;
        }
        if made && inode.names > 1 {
            self.written.insert(id, (path, name.as_bytes().to_vec()));
        }
        Ok(())
    }

    /// Of an open file or directory.
    fn attributes(&self, id: Id, file: impl AsFd) -> io::Result<()> {
        let attributes = &self.tree.inode(id).attributes;
        if self.privileged {
            let (user, group) = owner(attributes);
            rustix::fs::fchown(&file, user, group)?;
        }
        for (name, value) in &attributes.xattrs {
            let name = OsStr::from_bytes(name);
            self.tolerate(fsetxattr(&file, name, value, XattrFlags::empty()))?;
        }
        // After the owner, a change of which clears set-id bits.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(u32::from(attributes.mode)))?;
        Ok(rustix::fs::futimens(&file, &times(attributes))?)
    }

    /// Of what is not opened: links and special files.
    fn link_attributes(
        &self,
        attributes: &Attributes,
        parent: BorrowedFd,
        name: &OsStr,
    ) -> io::Result<()> {
        if self.privileged {
            let (user, group) = owner(attributes);
            chownat(parent, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if !attributes.xattrs.is_empty() {
            use std::os::fd::AsRawFd;
            let path = Path::new("/proc/self/fd")
                .join(parent.as_raw_fd().to_string())
                .join(name);
            for (key, value) in &attributes.xattrs {
                let key = OsStr::from_bytes(key);
                self.tolerate(lsetxattr(&path, key, value, XattrFlags::empty()))?;
            }
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(utimensat(parent, name, &times(attributes), flags)?)
    }

    /// Attributes that the file system or the user's rights do not allow are left out.
    fn tolerate(&self, outcome: rustix::io::Result<()>) -> io::Result<()> {
        use rustix::io::Errno;
        match outcome {
            Err(Errno::OPNOTSUPP | Errno::INVAL) => Ok(()),
            Err(Errno::PERM | Errno::ACCESS) if !self.privileged => Ok(()),
            other => Ok(other?),
        }
    }
}

fn copy(data: &Data, content: &mut File, out: &mut File) -> io::Result<()> {
    match data {
        Data::Inline(bytes) => out.write_all(bytes),
        Data::Blocks { start, size } => {
            content.seek(SeekFrom::Start(u64::from(*start) * BLOCK as u64))?;
            let mut part = vec![0; 64 * BLOCK];
            let mut left = *size;
            while left > 0 {
                let length = usize::try_from(left).map_or(part.len(), |left| left.min(part.len()));
                content.read_exact(&mut part[..length])?;
                out.write_all(&part[..length])?;
                left -= length as u64;
            }
            Ok(())
        }
    }
}

fn owner(attributes: &Attributes) -> (Option<Uid>, Option<Gid>) {
    // All ones mean "leave it" to chown(2).
    let known = |id: u32| (id != u32::MAX).then_some(id);
    (
        known(attributes.uid).map(Uid::from_raw),
        known(attributes.gid).map(Gid::from_raw),
    )
}

fn times(attributes: &Attributes) -> Timestamps {
    let time = Timespec {
        tv_sec: attributes.mtime,
        tv_nsec: i64::from(attributes.mtime_nsec),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
