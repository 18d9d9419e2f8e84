//! What this thread sees mounted on this host: `/proc/thread-self/mountinfo`, see proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// What of the file system it shows; `/` is all of it.
    pub root: PathBuf,
    /// Where.
    pub place: PathBuf,
    /// What file system it is.
    pub kind: String,
    /// What it is on.
    pub source: PathBuf,
    /// Nobody writes to the file system, by this mount or another.
    pub is_read_only: bool,
}

/// All of them, in the order in which they were made.
pub(crate) fn all() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/thread-self/mountinfo")?))
}

pub(crate) fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n')
        .filter_map(mount)
        .collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = path(fields.nth(3)?);
    let place = path(fields.next()?);
    let mut of_file_system = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = std::str::from_utf8(of_file_system.next()?).ok()?.to_owned();
    let source = path(of_file_system.next()?);
    let mut options = of_file_system.next()?.split(|byte| *byte == b',');
    let is_read_only = options.any(|option| option == b"ro");
    Some(Mount {
        root,
        place,
        kind,
        source,
        is_read_only,
    })
}

/// Without the `\ooo` that stand for spaces and their like.
fn path(text: &[u8]) -> PathBuf {
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
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, what is mounted on the host is taken for something else, or is not seen.
    #[test]
    fn lines_are_understood() {
        let text =
            b"4 1 0:7 / /at\\040all rw,noatime shared:7 master:1 - tmpfs a\\134b rw,size=4k\n\
            5 1 7:0 /sub /image ro - erofs /dev/loop0 ro\n\
            6 1 8:1 / /bind ro - ext4 /dev/sda1 rw,errors=remount-ro\nodd\n\n7 1 8:1 / /cut - x\n";
        let mounts = parse(text);
        let seen: Vec<_> = mounts
            .iter()
            .map(|one| {
                let paths = [&one.root, &one.place, &one.source];
                let paths = paths.map(|path| path.to_str().unwrap());
                (paths, one.kind.as_str(), one.is_read_only)
            })
            .collect();
        let expected = [
            (["/", "/at all", "a\\b"], "tmpfs", false),
            (["/sub", "/image", "/dev/loop0"], "erofs", true),
            (["/", "/bind", "/dev/sda1"], "ext4", false),
        ];
        assert_eq!(seen, expected);
    }
}
