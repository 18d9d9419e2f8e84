//! What a container changed, the upper directory of its overlay, as a layer of an image; and what a new
//! volume gets of the image.
//!
//! Who has mounted the upper directory runs this: for a container in a VM that is its guest, since the
//! host mounts no file system that a guest wrote.

mod fill;

use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat};
use tar::{Builder, EntryType, Header};

pub use fill::{Kept, fill, unpack};

/// What hides a file of lower layers: an empty file of the same name with this in front (OCI image
/// specification, "Whiteouts").
pub const WHITEOUT: &[u8] = b".wh.";
/// In a directory: hides what lower layers have in it.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// Writes the upper directory of an overlay as a layer: deleted files and replaced directories become
/// OCI's whiteouts. The same directory makes the same bytes.
///
/// `points` are where something was mounted: what is empty there was made for that, and is no change.
///
/// Who writes to the overlay meanwhile leads nowhere else: no path is walked twice, and no link followed.
pub fn write_layer(upper: &Path, points: &[PathBuf], out: impl Write) -> io::Result<()> {
    write(upper, points, false, out)
}

/// Writes a directory as it is: what an overlay keeps there for itself is no more than files.
fn write_tree(dir: &Path, out: impl Write) -> io::Result<()> {
    write(dir, &[], true, out)
}

fn write(upper: &Path, points: &[PathBuf], exact: bool, out: impl Write) -> io::Result<()> {
    let mut layer = Layer {
        tar: Builder::new(out),
        links: HashMap::new(),
        exact,
    };
    let mut pending: Vec<(Rc<File>, OsString, PathBuf)> = Vec::new();
    let mut next = Some((find(CWD, upper, OFlags::empty())?, PathBuf::new()));
    while let Some((file, path)) = next {
        let metadata = file.metadata()?;
        let is_point = points
            .iter()
            .any(|point| *point == Path::new("/").join(&path));
        let directory = match metadata.is_dir() {
            true => Some(list(&file)?),
            false => None,
        };
        let is_empty = match &directory {
            Some((_, names)) => names.is_empty(),
            None => metadata.is_file() && metadata.len() == 0,
        };
        if !(is_point && is_empty) {
            layer.file(&file, &path, &metadata)?;
            if let Some((directory, names)) = directory {
                let directory = Rc::new(directory);
                // The last is the next.
                pending.extend(names.into_iter().rev().map(|name| {
                    let path = path.join(&name);
                    (Rc::clone(&directory), name, path)
                }));
            }
        }
        next = match pending.pop() {
            Some((parent, name, path)) => {
                let file = find(parent.as_fd(), Path::new(&name), OFlags::NOFOLLOW)?;
                Some((file, path))
            }
            None => None,
        };
    }
    layer.tar.into_inner()?.flush()
}

/// What a name stands for, only to know what it is.
fn find(parent: BorrowedFd<'_>, name: &Path, how: OFlags) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | how;
    Ok(openat(parent, name, flags, Mode::empty())?.into())
}

/// A directory, to be read, and the names in it, in order.
fn list(directory: &File) -> io::Result<(File, Vec<OsString>)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(directory, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&opened)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort();
    Ok((opened.into(), names))
}

/// A path that leads to what is open, and no further if that is a link.
fn path_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

struct Layer<W: Write> {
    tar: Builder<W>,
    /// Files with several names: where the first is.
    links: HashMap<(u64, u64), PathBuf>,
    /// What an overlay has of its own is kept, too.
    exact: bool,
}

impl<W: Write> Layer<W> {
    fn file(&mut self, file: &File, path: &Path, metadata: &Metadata) -> io::Result<()> {
        let kind = metadata.file_type();
        if !self.exact && kind.is_char_device() && metadata.rdev() == 0 {
            let name = path.file_name().unwrap_or_default();
            let mut hidden = OsString::from_vec(WHITEOUT.to_vec());
            hidden.push(name);
            return self.empty(&path.with_file_name(hidden));
        }
        let mut xattrs = xattrs(file)?;
        // Sockets have no meaning without who listens, and tar has no type for them.
        if kind.is_socket() {
            return Ok(());
        }
        let id = (metadata.dev(), metadata.ino());
        let linked = metadata.nlink() > 1 && !kind.is_dir();
        let mut header = header(metadata);
        let mut link = None;
        let mut content = None;
        if let Some(first) = self.links.get(&id).filter(|_| linked) {
            header.set_entry_type(EntryType::Link);
            link = Some(first.clone());
        } else if kind.is_symlink() {
            let target = readlinkat(file, "", Vec::new())?;
            link = Some(OsString::from_vec(target.into_bytes()).into());
        } else if kind.is_char_device() || kind.is_block_device() {
            header.set_device_major(rustix::fs::major(metadata.rdev()))?;
            header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
        } else if kind.is_file() {
            content = Some(File::open(path_of(file))?);
            header.set_size(metadata.len());
        }
        let is_opaque = !self.exact && kind.is_dir() && xattrs.iter().any(is_opaque);
        if !self.exact {
            check(path, &xattrs)?;
            xattrs.retain(|(key, _)| !is_overlays(key));
        }
        let is_link = header.entry_type() == EntryType::Link;
        if linked && !is_link {
            self.links.insert(id, path.to_owned());
        }
        let name = match path.as_os_str().is_empty() {
            true => Path::new("./"),
            false => path,
        };
        let records = match is_link {
            true => Vec::new(),
            false => records(metadata, &xattrs),
        };
        self.entry(&mut header, name, link.as_deref(), records, content)?;
        if is_opaque {
            self.empty(&path.join(OsString::from_vec(OPAQUE.to_vec())))?;
        }
        Ok(())
    }

    fn empty(&mut self, path: &Path) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_mode(0o644);
        header.set_size(0);
        self.entry(&mut header, path, None, Vec::new(), None)
    }

    fn entry(
        &mut self,
        header: &mut Header,
        path: &Path,
        link: Option<&Path>,
        mut records: Vec<(String, Vec<u8>)>,
        content: Option<File>,
    ) -> io::Result<()> {
        // What does not fit the header goes before it.
        let name = path.as_os_str().as_bytes();
        let header_name = &mut header.as_mut_bytes()[..100];
        let length = name.len().min(100);
        header_name[..length].copy_from_slice(&name[..length]);
        if name.len() > 100 {
            records.push(("path".to_owned(), name.to_vec()));
        }
        if let Some(link) = link {
            let link = link.as_os_str().as_bytes();
            match link.len() <= 100 {
                true => header.set_link_name_literal(link)?,
                false => records.push(("linkpath".to_owned(), link.to_vec())),
            }
        }
        let borrowed = records.iter().map(|(key, value)| (&key[..], &value[..]));
        self.tar.append_pax_extensions(borrowed)?;
        header.set_cksum();
        match content {
            // A file that shrinks meanwhile must not shift what follows: this is then an error.
            Some(file) => {
                let size = header.size()?;
                let mut content = file.take(size);
                self.tar.append(header, &mut content)?;
                match content.limit() {
                    0 => Ok(()),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
            None => self.tar.append(header, io::empty()),
        }
    }
}

/// What a file's attributes make of a header; its size is 0.
fn header(metadata: &Metadata) -> Header {
    let kind = metadata.file_type();
    let mut header = Header::new_ustar();
    header.set_entry_type(match kind {
        _ if kind.is_dir() => EntryType::Directory,
        _ if kind.is_symlink() => EntryType::Symlink,
        _ if kind.is_fifo() => EntryType::Fifo,
        _ if kind.is_char_device() => EntryType::Char,
        _ if kind.is_block_device() => EntryType::Block,
        _ => EntryType::Regular,
    });
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(u64::from(metadata.uid()));
    header.set_gid(u64::from(metadata.gid()));
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    header
}

/// PAX records: what the header has no place for.
fn records(metadata: &Metadata, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let mut records = Vec::new();
    if metadata.mtime_nsec() != 0 || metadata.mtime() < 0 {
        // Before 1970, seconds and nanoseconds have different signs.
        let nanoseconds = i128::from(metadata.mtime()) * 1_000_000_000;
        let nanoseconds = nanoseconds + i128::from(metadata.mtime_nsec());
        let (sign, size) = (if nanoseconds < 0 { "-" } else { "" }, nanoseconds.abs());
        let (seconds, fraction) = (size / 1_000_000_000, size % 1_000_000_000);
        let time = format!("{sign}{seconds}.{fraction:09}");
        records.push(("mtime".to_owned(), time.into_bytes()));
    }
    for (key, value) in xattrs {
        if let Ok(key) = std::str::from_utf8(key) {
            records.push((format!("SCHILY.xattr.{key}"), value.clone()));
        }
    }
    records
}

/// Whether an attribute is an overlay's own.
fn is_overlays(key: &[u8]) -> bool {
    key.windows(9).any(|part| part == b".overlay.")
}

/// Whether it says that a directory hides what lower layers have there.
fn is_opaque((key, value): &(Vec<u8>, Vec<u8>)) -> bool {
    key.ends_with(b".overlay.opaque") && value == b"y"
}

/// A layer cannot refer to another.
fn check(path: &Path, xattrs: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
    let refers = |(key, _): &(Vec<u8>, _)| {
        key.ends_with(b".overlay.redirect") || key.ends_with(b".overlay.metacopy")
    };
    match xattrs.iter().any(refers) {
        true => Err(io::Error::other(format!(
            "{path:?} refers to a file of a lower layer (redirect_dir or metacopy); an overlay to be \
             committed is mounted without"
        ))),
        false => Ok(()),
    }
}

/// The extended attributes of a file, a link itself, by name.
fn xattrs(file: &File) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let own = path_of(file);
    // As many bytes as Linux ever gives.
    let mut buffer = vec![0; 1 << 16];
    let length = match rustix::fs::listxattr(&own, &mut buffer[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let names = buffer[..length].split(|byte| *byte == 0);
    let mut names: Vec<Vec<u8>> = names
        .filter(|n| !n.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.sort();
    let mut found = Vec::new();
    for name in names {
        let key = CString::new(name.clone())?;
        let length = rustix::fs::getxattr(&own, &key, &mut buffer[..])?;
        let value = buffer[..length].to_vec();
        found.push((name, value));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    /// If it fails, a container that changes its files while it is committed gets the host's into its
    /// image.
    #[test]
    fn a_directory_that_becomes_a_link_leads_nowhere() {
        let top = std::env::temp_dir().join(format!("cofferdam-layer-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        let (upper, outside) = (top.join("upper"), top.join("outside"));
        fs::create_dir_all(upper.join("a")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(upper.join("a/file"), "own").unwrap();
        fs::write(outside.join("file"), "secret").unwrap();
        symlink(&outside, upper.join("b")).unwrap();
        let stop = AtomicBool::new(false);
        let swap = |from: &str, to: &str| fs::rename(upper.join(from), upper.join(to)).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for (from, to) in [("a", "c"), ("b", "a"), ("c", "b")] {
                        swap(from, to);
                    }
                }
            });
            let mut whole = 0;
            for _ in 0..2000 {
                let mut layer = Vec::new();
                // What is gone since it was listed is an error.
                whole += u32::from(write_layer(&upper, &[], &mut layer).is_ok());
                let is_told = layer.windows(6).any(|part| part == b"secret");
                if is_told {
                    stop.store(true, Ordering::Relaxed);
                }
                assert!(!is_told);
            }
            stop.store(true, Ordering::Relaxed);
            assert!(whole > 0);
        });
        fs::remove_dir_all(top).unwrap();
    }
}
