//! The default image: the host's static busybox, so that a first container needs no network.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use super::digest::Digest;
use super::reference::Reference;
use super::store::{self, Store, oci};

const NAME: &str = "busybox";
const PLACES: [&str; 3] = ["/bin/busybox", "/usr/bin/busybox", "/sbin/busybox"];

/// Why there is no default image.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(
        "the host has no busybox to make the default image of (looked for {PLACES:?}); install the package busybox-static, or pull another image"
    )]
    Missing,
    #[error(
        "{0:?} needs shared libraries, which the default image has not; install the package busybox-static, or pull another image"
    )]
    Dynamic(PathBuf),
    #[error("cannot make the default image of {path:?}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Whether a name is that of the default image.
pub fn is_meant(name: &str) -> bool {
    let default: Result<Reference, _> = NAME.parse();
    matches!((name.parse::<Reference>(), default), (Ok(name), Ok(default)) if name == default)
}

/// Makes the image. It is the same for the same busybox.
pub fn make(store: &Store) -> Result<(), store::Error> {
    let path = PLACES.iter().map(PathBuf::from).find(|path| path.exists());
    let path = path.ok_or(Error::Missing)?;
    let failed = |source| Error::Io {
        path: path.clone(),
        source,
    };
    let program = fs::read(&path).map_err(failed)?;
    if is_dynamic(&program) {
        return Err(Error::Dynamic(path).into());
    }
    let list = Command::new(&path).arg("--list").output().map_err(failed)?;
    let applets = String::from_utf8_lossy(&list.stdout);
    let tar = layer(&program, applets.lines()).map_err(failed)?;
    let diff_id = Digest::of(&tar);
    let layer = store.add_bytes(oci::LAYER, &tar)?;
    let platform = oci::Platform::default();
    let config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["sh"],
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        "history": [{ "created_by": format!("cofferdam: the host's {}", path.display()) }],
    });
    let reference = NAME.parse()?;
    store.add_image(&config, vec![layer], Some(&reference))?;
    Ok(())
}

/// Whether an ELF program asks for a dynamic linker (ELF-64, `PT_INTERP`).
fn is_dynamic(program: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        let mut bytes = [0; 8];
        let part = program.get(at..at.saturating_add(length));
        bytes[..length].copy_from_slice(part.unwrap_or(&[0; 8][..length]));
        usize::try_from(u64::from_le_bytes(bytes)).unwrap_or(0)
    };
    let (start, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|index| number(start.saturating_add(index * size), 4) == 3)
}

fn layer<'a>(program: &[u8], applets: impl Iterator<Item = &'a str>) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |kind, path: &str, mode, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(path)?;
        header.set_link_name_literal(link)?;
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content)
    };
    let (directory, file) = (tar::EntryType::Directory, tar::EntryType::Regular);
    for (path, mode) in [
        ("bin/", 0o755),
        ("dev/", 0o755),
        ("etc/", 0o755),
        ("home/", 0o755),
        ("proc/", 0o755),
        ("root/", 0o700),
        ("sys/", 0o755),
        ("tmp/", 0o1777),
        ("usr/", 0o755),
        ("usr/bin/", 0o755),
        ("usr/sbin/", 0o755),
        ("var/", 0o755),
    ] {
        add(directory, path, mode, "", b"")?;
    }
    add(tar::EntryType::Symlink, "sbin", 0o777, "bin", b"")?;
    add(file, "bin/busybox", 0o755, "", program)?;
    let mut applets: Vec<&str> = applets.filter(|name| *name != NAME).collect();
    applets.sort_unstable();
    for applet in applets {
        let path = format!("bin/{applet}");
        add(tar::EntryType::Symlink, &path, 0o777, "busybox", b"")?;
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
    let group = "root:x:0:\nnogroup:x:65534:\n";
    for (path, content) in [("etc/passwd", passwd), ("etc/group", group)] {
        add(file, path, 0o644, "", content.as_bytes())?;
    }
    tar.into_inner()
}
