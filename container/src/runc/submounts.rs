//! What the host has mounted below a directory that a container gets with all of it. In the guest, too,
//! each is a mount of its own, with attributes of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::mountinfo::{self, Mount};

/// More of them are part of the directory's mount, as are those of the kernel's own.
const MAX: usize = 16;
/// Kinds of file systems with files that somebody put there.
const KINDS: [&str; 12] = [
    "tmpfs", "ramfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "overlay", "virtiofs", "fuse",
    "nfs4", "erofs",
];

/// Their places, as paths from `source`, those above first.
pub(super) fn below(source: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(find(&mountinfo::all()?, source))
}

fn find(mounts: &[Mount], source: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let counts = |mount: &&Mount| KINDS.contains(&mount.kind.as_str());
    for mount in mounts.iter().filter(counts) {
        let Ok(place) = mount.place.strip_prefix(source) else {
            continue;
        };
        // What is mounted on it twice is there once, and what is hidden is not there.
        if place != Path::new("") && !found.iter().any(|other| other == place) {
            found.push(place.to_owned());
        }
    }
    let is_shareable = |place: &PathBuf| {
        let about = fs::metadata(source.join(place));
        about.is_ok_and(|about| about.is_dir() || about.is_file())
    };
    found.retain(is_shareable);
    if found.len() > MAX {
        found.clear();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, what is mounted below a volume has the attributes of the volume, or others.
    #[test]
    fn mounts_below_are_found() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 0:5 / /proc rw shared:5 - proc proc rw\n\
            3 1 0:6 / /tmp rw - tmpfs tmp rw\n\
            4 1 0:7 / /nowhere/at\\040all rw shared:7 - tmpfs tmp rw\n";
        let places = |text: &[u8], source: &str| find(&mountinfo::parse(text), Path::new(source));
        assert_eq!(places(text, "/"), [Path::new("tmp")]);
        assert!(places(text, "/tmp").is_empty());
        let many: String = (0..20)
            .map(|n| format!("{n} 1 0:7 / /proc/{} rw - tmpfs tmp rw\n", n + 1))
            .collect();
        assert!(places(many.as_bytes(), "/proc").len() <= MAX);
    }
}
