//! Files of the host as an archive for a container.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, Header};

/// What is packed.
#[derive(Clone, Copy, Debug)]
pub struct From<'a> {
    /// Where it is on the host.
    pub path: &'a Path,
    /// What it is called in the archive; `.`: what is in the directory, without a name for it.
    pub name: &'a Path,
    /// If it is a symbolic link, what that leads to.
    pub follow: bool,
    /// With its owners; else all is root's.
    pub owners: bool,
}

/// Writes an archive. Sockets, devices and FIFOs are left out; gives how many.
pub fn pack(from: From<'_>, out: impl Write) -> io::Result<u64> {
    let mut builder = Builder::new(out);
    let top = match from.follow {
        true => fs::canonicalize(from.path)?,
        false => from.path.to_owned(),
    };
    let mut left_out = 0;
    let mut pending = vec![(top, from.name.to_owned())];
    while let Some((path, name)) = pending.pop() {
        let about = fs::symlink_metadata(&path)?;
        if !entry(&mut builder, &path, &name, &about, from.owners)? {
            left_out += 1;
        }
        if about.is_dir() {
            let mut below: Vec<(PathBuf, PathBuf)> = Vec::new();
            for file in fs::read_dir(&path)? {
                let file = file?;
                below.push((file.path(), name.join(file.file_name())));
            }
            below.sort();
            pending.extend(below.into_iter().rev());
        }
    }
    builder.into_inner()?.flush()?;
    Ok(left_out)
}

/// One file; whether there is a place for it in an archive.
fn entry(
    builder: &mut Builder<impl Write>,
    path: &Path,
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
        builder.append_link(&mut header, name, fs::read_link(path)?)?;
    } else if about.is_dir() {
        header.set_size(0);
        builder.append_data(&mut header, name, io::empty())?;
    } else {
        header.set_size(about.len());
        let mut content = File::open(path)?.take(about.len());
        builder.append_data(&mut header, name, &mut content)?;
        // What follows would be shifted.
        if content.limit() != 0 {
            let text = format!("{} became shorter while it was read", path.display());
            return Err(io::Error::other(text));
        }
    }
    Ok(true)
}
