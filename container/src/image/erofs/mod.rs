//! Writes EROFS images: read-only file systems that a guest reads in place.
//!
//! Blocks of 4 KiB, nothing compressed, so that a file's pages are the image's pages and DAX maps them.
//! Content is written as it comes, so the source is read once, in its own order:
//!
//! | blocks | |
//! | --- | --- |
//! | 0 | the superblock, at byte 1024 |
//! | 1.. | the content of files above 2 KiB, each from a block's start; blocks of zeros are holes |
//! | then | directories, all but the last block of each |
//! | then | inodes with their attributes and small content behind them |
//!
//! The same files in the same order make the same bytes.
//!
//! There is no crate for this: those on crates.io read EROFS, or write only composefs's images, which
//! hold no content.

mod format;
mod layout;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use super::layer::tree::Tree;

/// Bytes in a block.
pub const BLOCK: usize = 4096;
const BLOCK_LEN: u64 = BLOCK as u64;
/// Files up to this lie behind their inode: a block each would be mostly empty. A guest reads them
/// through its page cache.
const MAX_INLINE: u64 = 2048;
/// So much of small files is kept in memory until the end; later ones get a block each.
const INLINE_BUDGET: u64 = 64 << 20;
/// An image is mapped into guest-physical memory, and Linux on x86 has no more than 64 TiB of that.
const MAX_IMAGE: u64 = 1 << 42;

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("cannot write the EROFS image")]
    Write(#[source] io::Error),
    #[error("cannot read a file's content")]
    Content(#[source] io::Error),
    #[error("the image would be larger than 4 TiB")]
    TooLarge,
    #[error("the extended attributes of a file have {0} bytes; EROFS takes 256 KiB, 64 KiB each")]
    Attributes(usize),
}

/// Where the content of a regular file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Small content, in memory until the image is complete.
    Inline(Vec<u8>),
    /// In the image.
    Blocks {
        /// The first block.
        start: u32,
        /// Length in bytes.
        size: u64,
    },
}

impl Data {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Blocks { size, .. } => *size,
        }
    }
}

/// An image being written.
#[derive(Debug)]
pub struct Writer {
    /// Nothing: only names and attributes are wanted.
    file: Option<File>,
    /// Blocks in use.
    blocks: u64,
    inline: u64,
    buffer: Vec<u8>,
}

impl Writer {
    /// An image in `file`, which is empty.
    pub fn new(file: File) -> Self {
        Self {
            file: Some(file),
            blocks: 1,
            inline: 0,
            buffer: vec![0; 32 * BLOCK],
        }
    }

    /// No image: content is read and forgotten.
    pub fn discarding() -> Self {
        Self {
            file: None,
            blocks: 1,
            inline: 0,
            buffer: vec![0; 32 * BLOCK],
        }
    }

    /// Takes the content of a file, `size` bytes.
    pub fn store(&mut self, content: &mut impl Read, size: u64) -> Result<Data, Error> {
        if size <= MAX_INLINE && self.inline + size <= INLINE_BUDGET {
            let mut bytes = Vec::new();
            content
                .take(size)
                .read_to_end(&mut bytes)
                .map_err(Error::Content)?;
            if (bytes.len() as u64) < size {
                return Err(Error::Content(io::ErrorKind::UnexpectedEof.into()));
            }
            self.inline += size;
            return Ok(Data::Inline(bytes));
        }
        if size > MAX_IMAGE {
            return Err(Error::TooLarge);
        }
        let start = self.reserve(size.div_ceil(BLOCK_LEN))?;
        let mut offset = u64::from(start) * BLOCK_LEN;
        let mut left = size;
        while left > 0 {
            let part =
                usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            content
                .read_exact(&mut self.buffer[..part])
                .map_err(Error::Content)?;
            self.write(part, offset).map_err(Error::Write)?;
            offset += part as u64;
            left -= part as u64;
        }
        Ok(Data::Blocks { start, size })
    }

    /// Gives back the blocks of content that no file has any more: a hole is left.
    pub fn discard(&mut self, data: &Data) -> Result<(), Error> {
        match data {
            Data::Inline(bytes) => self.inline -= bytes.len() as u64,
            Data::Blocks { start, size } => {
                if let Some(file) = &self.file {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    let (start, size) = (u64::from(*start), size.next_multiple_of(BLOCK_LEN));
                    rustix::fs::fallocate(file, flags, start * BLOCK_LEN, size)
                        .map_err(|error| Error::Write(error.into()))?;
                }
            }
        }
        Ok(())
    }

    /// Makes the file as long as its content, which may end in a hole.
    pub fn extend(&self) -> io::Result<()> {
        match &self.file {
            Some(file) => file.set_len(self.blocks * BLOCK_LEN),
            None => Ok(()),
        }
    }

    /// Completes the image with the tree's names and attributes. `id` tells it from others.
    pub fn finish(mut self, tree: &Tree, id: [u8; 16]) -> Result<(), Error> {
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let layout = layout::Layout::new(tree)?;
        let directories = self.reserve(layout.directory_blocks())?;
        let inodes = self.reserve(layout.inode_blocks())?;
        let write = |bytes: &[u8], block: u32| {
            file.write_all_at(bytes, u64::from(block) * BLOCK_LEN)
                .map_err(Error::Write)
        };
        let (directory_bytes, inode_bytes) = layout.encode(tree, directories);
        write(&directory_bytes, directories)?;
        write(&inode_bytes, inodes)?;
        let superblock = format::Superblock {
            root: layout.root(),
            inodes: layout.inodes(),
            blocks: u32::try_from(self.blocks).map_err(|_| Error::TooLarge)?,
            inode_start: inodes,
            id,
        };
        write(&superblock.encode(), 0)?;
        file.set_len(self.blocks * BLOCK_LEN).map_err(Error::Write)
    }

    /// Writes the buffer's first `length` bytes, but no blocks of zeros.
    fn write(&self, length: usize, offset: u64) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let mut at = 0;
        while at < length {
            let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
            let mut end = at;
            while end < length && !is_zero(&self.buffer[end..length.min(end + BLOCK)]) {
                end = length.min(end + BLOCK);
            }
            file.write_all_at(&self.buffer[at..end], offset + at as u64)?;
            at = end + BLOCK;
        }
        Ok(())
    }

    fn reserve(&mut self, blocks: u64) -> Result<u32, Error> {
        let start = u32::try_from(self.blocks).map_err(|_| Error::TooLarge)?;
        self.blocks += blocks;
        match self.blocks <= MAX_IMAGE / BLOCK_LEN {
            true => Ok(start),
            false => Err(Error::TooLarge),
        }
    }
}
