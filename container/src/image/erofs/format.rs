//! The structures of an image as they are on disk (Linux, `fs/erofs/erofs_fs.h`), little-endian.

use super::BLOCK;

const MAGIC: u32 = 0xe0f5_e1e2;
const SUPERBLOCK: usize = 1024;
const CHECKSUM: u32 = 1;
const MTIME: u32 = 2;

/// Bytes in an extended inode.
pub(super) const INODE: usize = 64;
/// Inode numbers count slots of this many bytes.
pub(super) const SLOT: usize = 32;
/// Bytes in a directory entry, without its name.
pub(super) const ENTRY: usize = 12;
/// Bytes before the first extended attribute.
pub(super) const ATTRIBUTES: usize = 12;

/// What the superblock says of this image.
pub(super) struct Superblock {
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) inode_start: u32,
    pub(super) id: [u8; 16],
}

impl Superblock {
    /// Block 0.
    pub(super) fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut set = |at: usize, bytes: &[u8]| {
            block[SUPERBLOCK + at..][..bytes.len()].copy_from_slice(bytes);
        };
        set(0, &MAGIC.to_le_bytes());
        set(8, &(CHECKSUM | MTIME).to_le_bytes());
        set(12, &[BLOCK.trailing_zeros().to_le_bytes()[0]]);
        set(14, &self.root.to_le_bytes());
        set(16, &self.inodes.to_le_bytes());
        set(36, &self.blocks.to_le_bytes());
        set(40, &self.inode_start.to_le_bytes());
        set(48, &self.id);
        let checksum = crc32c(&block[SUPERBLOCK..]);
        block[SUPERBLOCK + 4..][..4].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}

/// CRC-32C as the kernel computes it: without the last inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    })
}

/// How the content of an inode is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// In blocks.
    Plain = 0,
    /// What does not fill a block is behind the inode and its attributes.
    Inline = 2,
}

/// An inode, without its attributes and content.
pub(super) struct Inode {
    pub(super) layout: DataLayout,
    pub(super) attribute_count: u16,
    /// With the type.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// The first block or the device number.
    pub(super) start: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_nsec: u32,
    pub(super) links: u32,
}

impl Inode {
    pub(super) fn encode(&self) -> [u8; INODE] {
        let extended = 1;
        let format = extended | (self.layout as u16) << 1;
        let mut inode = [0; INODE];
        let mut set = |at: usize, bytes: &[u8]| inode[at..][..bytes.len()].copy_from_slice(bytes);
        set(0, &format.to_le_bytes());
        set(2, &self.attribute_count.to_le_bytes());
        set(4, &self.mode.to_le_bytes());
        set(8, &self.size.to_le_bytes());
        set(16, &self.start.to_le_bytes());
        set(20, &self.number.to_le_bytes());
        set(24, &self.uid.to_le_bytes());
        set(28, &self.gid.to_le_bytes());
        set(32, &self.mtime.to_le_bytes());
        set(40, &self.mtime_nsec.to_le_bytes());
        set(44, &self.links.to_le_bytes());
        inode
    }
}

/// The prefixes of attributes' names that have a number; others do not exist on Linux, or not in
/// EROFS.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Appends an attribute; nothing if EROFS cannot hold one of this name.
pub(super) fn attribute(name: &[u8], value: &[u8], out: &mut Vec<u8>) -> Result<(), usize> {
    let Some((prefix, index)) = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)) else {
        return Ok(());
    };
    let suffix = &name[prefix.len()..];
    let exact = !prefix.ends_with(b".");
    let Ok(length) = u8::try_from(suffix.len()) else {
        return Ok(());
    };
    if exact != suffix.is_empty() {
        return Ok(());
    }
    let size = u16::try_from(value.len()).map_err(|_| value.len())?;
    out.extend([length, *index]);
    out.extend(size.to_le_bytes());
    out.extend(suffix);
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}
