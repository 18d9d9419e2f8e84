//! What files take of the disk. Some of them are a guest's: no link is followed, and no path is walked twice.

use std::ffi::CString;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};

/// Bytes of a file that are on the disk: holes are not.
pub fn of_file(about: &Metadata) -> u64 {
    about.blocks() * 512
}

/// Bytes of a file, or of a directory with all that is in it. What cannot be looked at counts nothing.
pub fn of_tree(path: &Path) -> u64 {
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut bytes = 0;
    let mut next = openat(CWD, path, look, Mode::empty()).ok().map(File::from);
    let mut pending: Vec<(Rc<File>, CString)> = Vec::new();
    loop {
        if let Some(file) = next.take()
            && let Ok(about) = file.metadata()
        {
            bytes += of_file(&about);
            if about.is_dir() {
                pending.extend(entries(&file));
            }
        }
        match pending.pop() {
            Some((directory, name)) => {
                let opened = openat(&*directory, name, look, Mode::empty());
                next = opened.ok().map(File::from);
            }
            None => return bytes,
        }
    }
}

/// What is in a directory, and the directory to find it in.
fn entries(directory: &File) -> Vec<(Rc<File>, CString)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(opened) = openat(directory, ".", flags, Mode::empty()) else {
        return Vec::new();
    };
    let names: Vec<CString> = Dir::read_from(&opened)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_owned())
        .filter(|name| !matches!(name.to_bytes(), b"." | b".."))
        .collect();
    let opened = Rc::new(File::from(opened));
    names
        .into_iter()
        .map(|name| (Rc::clone(&opened), name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, sparse files count as what they could hold, links as what they lead to, or a deep tree ends
    /// the program.
    #[test]
    fn the_disk_is_counted() {
        let dir = std::env::temp_dir().join(format!("cofferdam-usage-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        let empty = of_tree(&dir);
        let sparse = File::create(dir.join("sub/sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/usr", dir.join("link")).unwrap();
        std::fs::create_dir_all(dir.join("d/".repeat(500))).unwrap();
        assert!(of_tree(&dir) < empty + (4 << 20));
        std::fs::write(dir.join("sub/file"), vec![1; 8 << 20]).unwrap();
        assert!(of_tree(&dir) >= empty + (8 << 20));
        std::fs::remove_dir_all(dir).unwrap();
        assert_eq!(of_tree(Path::new("/nowhere/at/all")), 0);
    }
}
