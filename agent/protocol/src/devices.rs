//! The device nodes that a kernel has, as its /dev shows them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Directories of /dev that are file systems of their own, of which a container has its own.
const APART: [&str; 5] = ["pts", "shm", "fd", "mqueue", ".udev"];

/// Files of /dev that each container has of its own: its terminals.
const OWN: [&str; 2] = ["console", "ptmx"];

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where it is.
    pub path: PathBuf,
    /// A block device, or a character device.
    pub is_block: bool,
    /// Major and minor number, as stat(2) gives them.
    pub number: u64,
    /// Its permissions.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// All nodes below `dev`, a /dev, that are not of a container's own: what Docker gives to a privileged one.
pub fn all(dev: &Path) -> io::Result<Vec<Node>> {
    let mut nodes = Vec::new();
    let is_apart = |name: &Path| APART.iter().chain(&OWN).any(|one| Path::new(one) == name);
    for entry in fs::read_dir(dev)? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| is_apart(name.as_ref())) {
            add(path, &mut nodes)?;
        }
    }
    nodes.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(nodes)
}

fn add(path: PathBuf, nodes: &mut Vec<Node>) -> io::Result<()> {
    let about = match fs::symlink_metadata(&path) {
        // Devices go as they come.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        about => about?,
    };
    let kind = about.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(&path)? {
            add(entry?.path(), nodes)?;
        }
    } else if kind.is_block_device() || kind.is_char_device() {
        nodes.push(Node {
            path,
            is_block: kind.is_block_device(),
            number: about.rdev(),
            mode: about.mode() & 0o777,
            uid: about.uid(),
            gid: about.gid(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a privileged container lacks devices, or has some of another one's terminals.
    #[test]
    fn devices_are_found_and_terminals_are_not() {
        let nodes = all(Path::new("/dev")).unwrap();
        let null = nodes
            .iter()
            .find(|node| node.path == Path::new("/dev/null"));
        let null = null.unwrap();
        assert!(!null.is_block && null.number == 0x103 && null.mode & 0o666 == 0o666);
        let is_own = |node: &Node| {
            let path = &node.path;
            path.starts_with("/dev/pts") || path == "/dev/ptmx" || path == "/dev/console"
        };
        assert!(!nodes.iter().any(is_own), "{nodes:?}");
    }
}
