//! What the host has mounted below a directory that a container gets with all of it. In the guest, too,
//! each is a mount of its own, with attributes of its own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// More of them are part of the directory's mount, as are those of the kernel's own.
const MAX: usize = 16;
/// Kinds of file systems with files that somebody put there.
const KINDS: [&str; 12] = [
    "tmpfs", "ramfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "overlay", "virtiofs", "fuse",
    "nfs4", "erofs",
];

/// Their places, as paths from `source`, those above first.
pub(super) fn below(source: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(find(&fs::read("/proc/self/mountinfo")?, source))
}

fn find(mountinfo: &[u8], source: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let Some(place) = place_of(line) else {
            continue;
        };
        let Ok(place) = place.strip_prefix(source) else {
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

/// Where a mount is, if it is of a kind that counts.
fn place_of(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|byte| *byte == b' ');
    let place = fields.nth(4)?;
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let kind = std::str::from_utf8(kind).ok()?;
    let counts = KINDS.contains(&kind);
    counts.then(|| OsString::from_vec(unescaped(place)).into())
}

/// Without the `\ooo` that stand for spaces and their like.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((first, others)) = rest.split_first() {
        let code = || -> Option<u8> {
            let digits = std::str::from_utf8(others.get(..3)?).ok()?;
            u8::from_str_radix(digits, 8).ok()
        };
        match (first, code()) {
            (b'\\', Some(code)) => {
                bytes.push(code);
                rest = others.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    bytes
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
            4 1 0:7 / /nowhere/at\\040all rw shared:7 - tmpfs tmp rw\nodd\n";
        let places = |source: &str| find(text, Path::new(source));
        assert_eq!(places("/"), [Path::new("tmp")]);
        assert!(places("/tmp").is_empty());
        let line = b"4 1 0:7 / /at\\040all rw - tmpfs tmp rw";
        assert_eq!(place_of(line).unwrap(), Path::new("/at all"));
        let many: String = (0..20)
            .map(|n| format!("{n} 1 0:7 / /proc/{} rw - tmpfs tmp rw\n", n + 1))
            .collect();
        assert!(find(many.as_bytes(), Path::new("/proc")).len() <= MAX);
    }
}
