//! Files as an archive. Whoever has them may change them meanwhile: no path is walked twice, and no link
//! is followed.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{Dir, Mode, OFlags, openat, readlinkat};
use tar::{Builder, Header};

/// What is packed.
#[derive(Debug)]
pub struct From<'a> {
    /// It, opened with `O_PATH`: a link itself, unless what it leads to is meant.
    pub file: File,
    /// What it is called in the archive; `.`: what is in the directory, without a name for it.
    pub name: &'a Path,
    /// With its owners; else all is root's.
    pub owners: bool,
    /// Without what is mounted below it.
    pub one_file_system: bool,
}

/// Opens what is to be packed, where links lead.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Writes an archive. Sockets, devices and FIFOs are left out; gives how many.
pub fn pack(from: From<'_>, out: impl Write) -> io::Result<u64> {
    let mut builder = Builder::new(out);
    let mut left_out = 0;
    let mut pending: Vec<(Rc<File>, OsString, PathBuf)> = Vec::new();
    let device = from.file.metadata()?.dev();
    let mut next = Some((from.file, from.name.to_owned()));
    while let Some((file, name)) = next {
        let about = file.metadata()?;
        if !entry(&mut builder, &file, &name, &about, from.owners)? {
            left_out += 1;
        }
        // An overlay's files have the devices of its layers, its directories its own.
        if about.is_dir() && (!from.one_file_system || about.dev() == device) {
            let (directory, names) = list(&file)?;
            let directory = Rc::new(directory);
            // The last is the next.
            let below = names.into_iter().rev().map(|own| {
                let name = name.join(&own);
                (Rc::clone(&directory), own, name)
            });
            pending.extend(below);
        }
        next = match pending.pop() {
            Some((directory, own, name)) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&*directory, own, flags, Mode::empty())?;
                Some((file.into(), name))
            }
            None => None,
        };
    }
    builder.into_inner()?.flush()?;
    Ok(left_out)
}

/// A directory, to be read, and the names in it, in order.
fn list(directory: &File) -> io::Result<(File, Vec<OsString>)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(directory, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&opened)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok((opened.into(), names))
}

/// One file; whether there is a place for it in an archive.
fn entry(
    builder: &mut Builder<impl Write>,
    file: &File,
    name: &Path,
    about: &Metadata,
    owners: bool,
) -> io::Result<bool> {
    let kind = about.file_type();
    let special =
        kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device();
    if special {
        return Ok(false);
    }
    let mut header = Header::new_gnu();
    header.set_metadata(about);
    let (uid, gid) = match owners {
        true => (about.uid(), about.gid()),
        false => (0, 0),
    };
    header.set_uid(uid.into());
    header.set_gid(gid.into());
    if kind.is_symlink() {
        header.set_size(0);
        let link = OsString::from_vec(readlinkat(file, "", Vec::new())?.into_bytes());
        builder.append_link(&mut header, name, link)?;
    } else if about.is_dir() {
        header.set_size(0);
        builder.append_data(&mut header, name, io::empty())?;
    } else {
        header.set_size(about.len());
        // The same file, now to be read.
        let content = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let mut content = content.take(about.len());
        builder.append_data(&mut header, name, &mut content)?;
        // What follows would be shifted.
        if content.limit() != 0 {
            let text = format!("{} became shorter while it was read", name.display());
            return Err(io::Error::other(text));
        }
    }
    Ok(true)
}
