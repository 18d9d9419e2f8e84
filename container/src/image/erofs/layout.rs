//! Where inodes and directories lie, and their bytes.

use std::collections::BTreeMap;

use super::format::{self, ATTRIBUTES, DataLayout, ENTRY, INODE, SLOT};
use super::{BLOCK, Data, Error};
use crate::image::layer::tree::{Content, Id, Inode, ROOT, Tree};

const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// The plan of an image.
pub(super) struct Layout {
    /// Inodes in the image's order, the root first.
    order: Vec<Planned>,
    /// Where each inode of the tree is in `order`.
    position: Vec<u32>,
    directory_blocks: u64,
    inode_blocks: u64,
}

struct Planned {
    id: Id,
    parent: Id,
    /// Extended attributes as they are on disk.
    attributes: Vec<u8>,
    /// In bytes from the first inode's block.
    offset: usize,
    /// What is behind the inode; the rest is in blocks.
    inline: usize,
    /// Of directories: the lengths of their blocks' content.
    blocks: Vec<usize>,
    /// Of what is in directory blocks: the first one.
    start: u64,
}

/// Space for inodes: what fits together into a block, each kind of hole used before a new block is.
#[derive(Default)]
struct Space {
    blocks: usize,
    /// Offsets of free ends of blocks by their length.
    holes: BTreeMap<usize, Vec<usize>>,
}

impl Space {
    /// The offset of `length` bytes that lie in one block, or begin one.
    fn take(&mut self, length: usize) -> usize {
        let length = length.next_multiple_of(SLOT);
        let hole = self.holes.range(length..).next().map(|(size, _)| *size);
        let (offset, size) =
            match hole.and_then(|size| Some((self.holes.get_mut(&size)?.pop()?, size))) {
                Some((offset, size)) => {
                    if self.holes.get(&size).is_some_and(Vec::is_empty) {
                        self.holes.remove(&size);
                    }
                    (offset, size)
                }
                None => {
                    let offset = self.blocks * BLOCK;
                    let blocks = length.div_ceil(BLOCK);
                    self.blocks += blocks;
                    (offset, blocks * BLOCK)
                }
            };
        if size - length >= INODE {
            let rest = self.holes.entry(size - length).or_default();
            rest.push(offset + length);
        }
        offset
    }
}

impl Layout {
    pub(super) fn new(tree: &Tree) -> Result<Self, Error> {
        let mut layout = Self {
            order: Vec::new(),
            position: vec![u32::MAX; tree.inodes()],
            directory_blocks: 0,
            inode_blocks: 0,
        };
        let mut space = Space::default();
        // Inode number 0 means "none" to readdir(3): the first slots stay empty.
        space.take(INODE);
        layout.plan(tree, &mut space, ROOT, ROOT)?;
        let mut next = 0;
        while let Some(planned) = layout.order.get(next) {
            next += 1;
            let parent = planned.id;
            for child in tree.children(parent).into_iter().flat_map(BTreeMap::values) {
                if layout.position[*child] == u32::MAX {
                    layout.plan(tree, &mut space, *child, parent)?;
                }
            }
        }
        layout.inode_blocks = space.blocks as u64;
        Ok(layout)
    }

    pub(super) fn directory_blocks(&self) -> u64 {
        self.directory_blocks
    }

    pub(super) fn inode_blocks(&self) -> u64 {
        self.inode_blocks
    }

    pub(super) fn inodes(&self) -> u64 {
        self.order.len() as u64
    }

    /// The root's inode number. It is planned first, so it is small.
    pub(super) fn root(&self) -> u16 {
        self.order
            .first()
            .and_then(|root| u16::try_from(root.offset / SLOT).ok())
            .unwrap_or_default()
    }

    fn plan(&mut self, tree: &Tree, space: &mut Space, id: Id, parent: Id) -> Result<(), Error> {
        let inode = tree.inode(id);
        let attributes = attributes(inode)?;
        let head = INODE + attributes.len();
        let mut blocks = Vec::new();
        // What does not fill a block, and how many blocks the rest fills.
        let (tail, full) = match &inode.content {
            Content::Directory { .. } => {
                blocks = directory_lengths(tree, id);
                let last = blocks.last().copied().unwrap_or(0);
                (last, blocks.len() as u64 - 1)
            }
            Content::Symlink(target) => (target.len(), 0),
            Content::File(Data::Inline(bytes)) => (bytes.len(), 0),
            _ => (0, 0),
        };
        let fits = head + tail <= BLOCK;
        let inline = if fits { tail } else { 0 };
        let start = self.directory_blocks;
        self.directory_blocks += full + u64::from(!fits);
        self.position[id] = u32::try_from(self.order.len()).map_err(|_| Error::TooLarge)?;
        self.order.push(Planned {
            id,
            parent,
            offset: space.take(head + inline),
            attributes,
            inline,
            blocks,
            start,
        });
        Ok(())
    }

    fn number(&self, id: Id) -> u64 {
        (self.order[self.position[id] as usize].offset / SLOT) as u64
    }

    /// The bytes of the blocks of directories, the first of which is block `start` of the image, and of
    /// those of inodes.
    pub(super) fn encode(&self, tree: &Tree, start: u32) -> (Vec<u8>, Vec<u8>) {
        let mut directories = Vec::new();
        // What was planned fits into memory, so its size does into usize.
        let mut inodes = vec![0; usize::try_from(self.inode_blocks).unwrap_or(0) * BLOCK];
        for planned in &self.order {
            let content = match &tree.inode(planned.id).content {
                Content::Directory { .. } => self.directory(tree, planned),
                Content::Symlink(target) => target.clone(),
                Content::File(Data::Inline(bytes)) => bytes.clone(),
                _ => Vec::new(),
            };
            let in_blocks = content.len() - planned.inline;
            directories.extend(&content[..in_blocks]);
            directories.resize(directories.len().next_multiple_of(BLOCK), 0);
            let inode = self.inode(tree, planned, content.len(), start);
            let mut at = planned.offset;
            for bytes in [&inode[..], &planned.attributes, &content[in_blocks..]] {
                inodes[at..][..bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
            }
        }
        (directories, inodes)
    }

    fn inode(
        &self,
        tree: &Tree,
        planned: &Planned,
        content: usize,
        directories: u32,
    ) -> [u8; INODE] {
        let inode = tree.inode(planned.id);
        let (kind, size, start) = match &inode.content {
            Content::File(Data::Blocks { start, size }) => (0o100_000, *size, *start),
            Content::Character(major, minor) => (0o020_000, 0, device(*major, *minor)),
            Content::Block(major, minor) => (0o060_000, 0, device(*major, *minor)),
            Content::Fifo => (0o010_000, 0, 0),
            // The device 0:0 is how overlayfs has whiteouts.
            Content::Whiteout => (0o020_000, 0, 0),
            other => {
                let kind = match other {
                    Content::Directory { .. } => 0o040_000,
                    Content::Symlink(_) => 0o120_000,
                    _ => 0o100_000,
                };
                // The whole image has fewer than 2^32 blocks; that was checked before.
                let first = u32::try_from(planned.start).unwrap_or(u32::MAX);
                (kind, content as u64, directories.saturating_add(first))
            }
        };
        let links = match tree.children(planned.id) {
            Some(children) => {
                let is_directory = |id: &&Id| tree.children(**id).is_some();
                let below = children.values().filter(is_directory).count();
                u32::try_from(below).unwrap_or(u32::MAX - 2) + 2
            }
            None => inode.names,
        };
        let attribute_count = match planned.attributes.len() {
            0 => 0,
            length => (length - ATTRIBUTES) / 4 + 1,
        };
        format::Inode {
            layout: match planned.inline {
                0 => DataLayout::Plain,
                _ => DataLayout::Inline,
            },
            attribute_count: u16::try_from(attribute_count).unwrap_or(0),
            mode: kind | inode.attributes.mode,
            size,
            start,
            number: self.position[planned.id] + 1,
            uid: inode.attributes.uid,
            gid: inode.attributes.gid,
            mtime: inode.attributes.mtime,
            mtime_nsec: inode.attributes.mtime_nsec,
            links,
        }
        .encode()
    }

    fn directory(&self, tree: &Tree, planned: &Planned) -> Vec<u8> {
        let mut bytes = Vec::new();
        let entries = entries(tree, planned.id, planned.parent);
        let mut entries = &entries[..];
        for length in &planned.blocks {
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            let mut used = 0;
            let count = entries
                .iter()
                .take_while(|(name, _)| {
                    used += ENTRY + name.len();
                    used <= *length
                })
                .count();
            let (here, rest) = entries.split_at(count);
            entries = rest;
            let mut name_at = count * ENTRY;
            for (name, id) in here {
                bytes.extend(self.number(*id).to_le_bytes());
                // Below 4096, as the block.
                bytes.extend(u16::try_from(name_at).unwrap_or(0).to_le_bytes());
                bytes.extend([file_type(&tree.inode(*id).content), 0]);
                name_at += name.len();
            }
            for (name, _) in here {
                bytes.extend(*name);
            }
        }
        bytes
    }
}

/// The entries of a directory by name, with `.` and `..`.
fn entries(tree: &Tree, id: Id, parent: Id) -> Vec<(&[u8], Id)> {
    let children = tree.children(id).into_iter().flatten();
    let mut entries: Vec<(&[u8], Id)> = children.map(|(name, id)| (&name[..], *id)).collect();
    entries.extend([(&b"."[..], id), (&b".."[..], parent)]);
    entries.sort_unstable();
    entries
}

/// How many bytes are used of each block of a directory.
fn directory_lengths(tree: &Tree, id: Id) -> Vec<usize> {
    let mut lengths = vec![0];
    for (name, _) in entries(tree, id, id) {
        let length = ENTRY + name.len();
        match lengths.last_mut() {
            Some(used) if *used + length <= BLOCK => *used += length,
            _ => lengths.push(length),
        }
    }
    lengths
}

fn attributes(inode: &Inode) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; ATTRIBUTES];
    let opaque = matches!(&inode.content, Content::Directory { opaque: true, .. });
    let own = opaque.then_some((OPAQUE, &b"y"[..]));
    let given = &inode.attributes.xattrs;
    let given = given.iter().map(|(name, value)| (&name[..], &value[..]));
    for (name, value) in own.into_iter().chain(given) {
        format::attribute(name, value, &mut bytes).map_err(Error::Attributes)?;
    }
    if bytes.len() == ATTRIBUTES {
        bytes.clear();
    }
    match bytes.len() / 4 < usize::from(u16::MAX) {
        true => Ok(bytes),
        false => Err(Error::Attributes(bytes.len())),
    }
}

/// As Linux keeps device numbers in 32 bits.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn file_type(content: &Content) -> u8 {
    match content {
        Content::File(_) => 1,
        Content::Directory { .. } => 2,
        Content::Character(..) | Content::Whiteout => 3,
        Content::Block(..) => 4,
        Content::Fifo => 5,
        Content::Symlink(_) => 7,
    }
}
