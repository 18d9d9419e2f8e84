//! Layers: tar archives, compressed or not, that say what they add to the layers below and hide of
//! them (OCI image specification, "Image Layer Filesystem Changeset").

pub mod budget;
pub mod tar;
#[cfg(test)]
mod tests;
pub mod tree;

use std::io::{self, BufReader, Read};

use flate2::read::MultiGzDecoder;

use self::budget::TooMuch;
use self::tar::{Archive, Entry, Kind};
use self::tree::{Attributes, Content, Name, Tree, directory};
use super::digest::{Digest, Digesting};
use super::erofs::{self, Writer};

pub use cofferdam_changes::{OPAQUE, WHITEOUT};

/// What a layer in zstd may ask us to remember of what it had, as a power of two: 32 MiB, which is what
/// builders ask for at most.
const MAX_WINDOW: u32 = 25;

/// Why a layer cannot be taken.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    #[error("the layer's entry {entry:?}")]
    Entry {
        entry: String,
        #[source]
        source: Box<Error>,
    },
    #[error("leads out of the image's root")]
    Escape,
    #[error("has a name that no Linux file can have")]
    Name,
    #[error("lies deeper than any path reaches")]
    Depth,
    #[error("lies behind more than 40 symbolic links")]
    Links,
    #[error("has a parent that is no directory")]
    NotADirectory,
    #[error("links to {0:?}, which the layers do not have")]
    NoTarget(String),
    #[error("links to a directory")]
    LinkToDirectory,
    #[error("has the device number {0}:{1}, beyond 12 and 20 bits")]
    Device(u32, u32),
    #[error("there are more than 2 million files")]
    Inodes,
    #[error(transparent)]
    Memory(#[from] TooMuch),
    #[error(transparent)]
    Image(#[from] erofs::Error),
}

/// What compresses a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Nothing.
    None,
    /// gzip, in any number of members.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// What compresses a layer that begins with these bytes. Media types are not asked: `docker save` has
/// none, and builders were wrong about them.
pub fn compression(magic: &[u8]) -> Compression {
    match magic {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The tar inside of a layer.
pub fn decompress<'a>(stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut stream = BufReader::with_capacity(128 << 10, stream);
    let mut magic = Vec::new();
    stream.by_ref().take(4).read_to_end(&mut magic)?;
    let compression = compression(&magic);
    let stream = io::Cursor::new(magic).chain(stream);
    Ok(match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(stream)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::new(stream)?;
            decoder.window_log_max(MAX_WINDOW)?;
            Box::new(decoder)
        }
        Compression::None => Box::new(stream),
    })
}

/// Applies a layer, a tar that may be compressed, to the tree; the content of its files goes to
/// `image`. Gives the digest of the tar: its diff id.
pub fn apply(stream: impl Read, tree: &mut Tree, image: &mut Writer) -> Result<Digest, Error> {
    let stream = decompress(stream).map_err(Error::Read)?;
    let mut digesting = Digesting::new(stream);
    let mut archive = Archive::new(&mut digesting);
    while let Some(entry) = archive.entry().map_err(Error::Read)? {
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        apply_entry(entry, &mut archive, tree, image).map_err(|source| match source {
            Error::Inodes | Error::Memory(_) => source,
            _ => Error::Entry {
                entry: name,
                source: Box::new(source),
            },
        })?;
        for data in tree.take_garbage() {
            image.discard(&data)?;
        }
    }
    archive.drain().map_err(Error::Read)?;
    Ok(digesting.finish().0)
}

fn apply_entry(
    entry: Entry,
    archive: &mut Archive<impl Read>,
    tree: &mut Tree,
    image: &mut Writer,
) -> Result<(), Error> {
    let (parent, name) = tree.locate(&entry.path)?;
    let Some(name) = name else {
        if entry.kind == Kind::Directory {
            tree.set_root(attributes(entry));
        }
        return Ok(());
    };
    if &name[..] == OPAQUE {
        tree.opaque(parent);
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        // What AUFS kept for itself: `.wh..wh.plnk` and the like.
        if !hidden.starts_with(WHITEOUT) {
            tree.whiteout(parent, Name::from(hidden))?;
        }
        return Ok(());
    }
    let content = match entry.kind {
        Kind::HardLink => {
            let target = tree.find(&entry.link)?;
            let target = target.ok_or_else(|| {
                Error::NoTarget(String::from_utf8_lossy(&entry.link).into_owned())
            })?;
            return tree.link(parent, name, target);
        }
        Kind::File => Content::File(image.store(archive, entry.size)?),
        Kind::Directory => directory(),
        Kind::Symlink if entry.link.is_empty() || entry.link.len() >= 4096 => {
            return Err(Error::Name);
        }
        Kind::Symlink => Content::Symlink(entry.link.clone()),
        // A whiteout of overlayfs, as some tools leave them.
        Kind::Character(0, 0) => return tree.whiteout(parent, name),
        Kind::Character(major, minor) => {
            device(major, minor)?;
            Content::Character(major, minor)
        }
        Kind::Block(major, minor) => {
            device(major, minor)?;
            Content::Block(major, minor)
        }
        Kind::Fifo => Content::Fifo,
    };
    tree.put(parent, name, attributes(entry), content)
}

fn device(major: u32, minor: u32) -> Result<(), Error> {
    match major < 1 << 12 && minor < 1 << 20 {
        true => Ok(()),
        false => Err(Error::Device(major, minor)),
    }
}

fn attributes(entry: Entry) -> Attributes {
    Attributes {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        mtime_nsec: entry.mtime_nsec,
        // What overlayfs keeps in attributes is for us to say: it can redirect a file to another.
        xattrs: entry
            .xattrs
            .into_iter()
            .filter(|(name, _)| {
                !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.")
            })
            .collect(),
    }
}
