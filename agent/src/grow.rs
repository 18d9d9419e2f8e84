//! A volume that was made larger: its file system is made as large as its disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Context, Result};

// _IOW('f', 16, __u64): as many blocks it shall have.
nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);

/// Has the ext4 that is mounted at `place` fill its disk.
pub fn grow(disk: &Path, place: &Path) -> Result<()> {
    let doing = || format!("make the volume at {} larger", place.display());
    let mut device = File::open(disk).context(doing)?;
    let size = device.seek(SeekFrom::End(0)).context(doing)?;
    let (blocks, block) = blocks(&device).context(doing)?;
    let wanted = size / block;
    if wanted <= blocks {
        return Ok(());
    }
    let top = File::open(place).context(doing)?;
    // SAFETY: the call reads the number that it is given, which lives as long as it, and keeps nothing.
    let grown = unsafe { ext4_resize(top.as_raw_fd(), &raw const wanted) };
    grown.map(drop).context(doing)
}

/// How many blocks an ext4 has, and of what size: at fixed places of its superblock.
fn blocks(device: &File) -> io::Result<(u64, u64)> {
    let mut superblock = [0; 1024];
    device.read_exact_at(&mut superblock, 1024)?;
    let number = |at: usize| {
        let bytes = [0, 1, 2, 3].map(|n| superblock[at + n]);
        u64::from(u32::from_le_bytes(bytes))
    };
    // The higher half is there with the feature 64bit alone.
    let high = match number(0x60) & 0x80 {
        0 => 0,
        _ => number(0x150),
    };
    let shift = u32::try_from(number(0x18)).unwrap_or(u32::MAX);
    match 1024_u64.checked_shl(shift).filter(|size| *size != 0) {
        Some(size) => Ok((number(4) | high << 32, size)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a volume that was made larger holds no more than before, or does not start.
    #[test]
    fn the_superblock_says_how_large() {
        let path = std::env::temp_dir().join(format!("cofferdam-grow-{}", std::process::id()));
        let mut superblock = vec![0; 2048];
        superblock[1024 + 4] = 5;
        superblock[1024 + 0x18] = 2;
        superblock[1024 + 0x150] = 1;
        let read = |superblock: &[u8]| {
            std::fs::write(&path, superblock).unwrap();
            blocks(&File::open(&path).unwrap())
        };
        assert_eq!(read(&superblock).unwrap(), (5, 4096));
        superblock[1024 + 0x60] = 0x80;
        assert_eq!(read(&superblock).unwrap(), ((1 << 32) + 5, 4096));
        superblock[1024 + 0x18] = 200;
        assert!(read(&superblock).is_err());
        assert!(read(&[0; 1024]).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
