//! What the kernel is told about its root file system.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::config::RootConfig;

/// Our part of the kernel command line for this root.
pub fn arguments(root: &RootConfig) -> String {
    let mode = if root.is_read_only() { "ro" } else { "rw" };
    match root {
        RootConfig::Disk(_) => format!("root=/dev/vda {mode}"),
        RootConfig::Pmem(pmem) => {
            // The device appears late; a kernel that has none gives up, rather than wait for ever.
            let device = format!("root=/dev/pmem0 rootwait=10 {mode}");
            match dax_options(&pmem.file) {
                Some(options) => format!("{device} {options}"),
                None => device,
            }
        }
    }
}

/// How the file system in `image` is mounted so that its files are mapped from the image, without a
/// copy in the guest; `None` if it cannot be, or if it is none that we know.
fn dax_options(image: &Path) -> Option<&'static str> {
    // Both have their superblock, little-endian, at the same place.
    let mut block = [0; 256];
    File::open(image)
        .and_then(|file| file.read_exact_at(&mut block, 1024))
        .ok()?;
    let bytes = |at| block.get(at..)?.first_chunk();
    let word = |at| bytes(at).copied().map(u32::from_le_bytes);
    let byte = |at: usize| block.get(at).copied();
    // A file system whose blocks are not pages refuses DAX, and ext4 then refuses to be mounted.
    if word(0)? == EROFS_MAGIC && byte(12)? == 12 {
        return Some("rootfstype=erofs rootflags=dax=always");
    }
    let is_ext4 = word(56)?.to_le_bytes().starts_with(&EXT4_MAGIC);
    let has_inline_data = word(96)? & EXT4_INLINE_DATA != 0;
    let can_dax = is_ext4 && word(24)? == 2 && !has_inline_data;
    can_dax.then_some("rootfstype=ext4 rootflags=dax")
}

const EROFS_MAGIC: u32 = 0xe0f5_e1e2;
const EXT4_MAGIC: [u8; 2] = [0x53, 0xef];
/// Bit of an ext4's incompatible features: small files lie in their inodes.
const EXT4_INLINE_DATA: u32 = 0x8000;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{PmemConfig, parse_options};
    use vmm_sys_util::tempfile::TempFile;

    /// A superblock with these bytes in it.
    fn options(fields: &[(usize, &[u8])]) -> Option<&'static str> {
        let mut image = vec![0; 4096];
        for &(at, bytes) in fields {
            image[1024 + at..1024 + at + bytes.len()].copy_from_slice(bytes);
        }
        let file = TempFile::new().unwrap();
        fs::write(file.as_path(), image).unwrap();
        dax_options(file.as_path())
    }

    /// If it fails, a root is mounted without DAX, so that each guest has a copy of it; or with it
    /// where it cannot be, and the guest does not come up.
    #[test]
    fn a_file_system_is_known_by_its_superblock() {
        let erofs = (0, &EROFS_MAGIC.to_le_bytes()[..]);
        let ext4 = (56, &EXT4_MAGIC[..]);
        let dax = Some("rootfstype=erofs rootflags=dax=always");
        assert_eq!(options(&[erofs, (12, &[12])]), dax);
        assert_eq!(options(&[erofs, (12, &[9])]), None);
        let dax = Some("rootfstype=ext4 rootflags=dax");
        assert_eq!(options(&[ext4, (24, &[2])]), dax);
        assert_eq!(options(&[ext4]), None);
        assert_eq!(options(&[ext4, (24, &[2]), (97, &[0x80])]), None);
        assert_eq!(options(&[]), None);
        assert_eq!(dax_options("/nowhere".as_ref()), None);
    }

    /// If it fails, the kernel looks for its root on another device, or writes to what is read-only.
    #[test]
    fn the_root_is_where_it_was_put() {
        let disk = parse_options::<RootConfig>("disk,ro", Some("path")).unwrap();
        assert_eq!(arguments(&disk), "root=/dev/vda ro");
        let pmem = RootConfig::Pmem(PmemConfig {
            file: "/nowhere".into(),
            ro: false,
        });
        assert_eq!(arguments(&pmem), "root=/dev/pmem0 rootwait=10 rw");
    }
}
