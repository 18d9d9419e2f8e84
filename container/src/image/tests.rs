//! From an image to a directory and back.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, XattrFlags};
use serde_json::json;

use super::commit::{About, Change, commit, diff, write_layer};
use super::digest::Digest;
use super::store::oci;
use super::testing::{Layer, Scratch};
use super::{Image, Store};

fn base(store: &Store) -> Image {
    let layers = [Layer::new()
        .dir("etc")
        .file("etc/kept", b"kept")
        .file("etc/gone", b"gone")
        .file("etc/large", &[7; 100_000])
        .dir("old")
        .file("old/file", b"old")
        .symlink("link", "/etc/kept")
        .done()];
    let _session = store.begin().unwrap();
    let diff_ids = [Digest::of(&layers[0])];
    let layer = store.add_bytes(oci::LAYER, &layers[0]).unwrap();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Cmd": ["sh"], "Env": ["A=1"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": [{ "created_by": "test" }],
    });
    let name = "base".parse().unwrap();
    store.add_image(&config, vec![layer], Some(&name)).unwrap();
    store.resolve("base").unwrap()
}

/// The upper directory of a container's overlay.
fn upper(path: &Path) {
    fs::create_dir_all(path.join("etc")).unwrap();
    fs::write(path.join("etc/kept"), b"changed").unwrap();
    fs::set_permissions(path.join("etc/kept"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(path.join("new"), b"new").unwrap();
    fs::hard_link(path.join("new"), path.join("newer")).unwrap();
    symlink("etc/kept", path.join("soft")).unwrap();
    let long = "n".repeat(200);
    fs::write(path.join(&long), b"long").unwrap();
    symlink(&long, path.join("to-long")).unwrap();
    fs::create_dir(path.join("old")).unwrap();
    fs::write(path.join("old/other"), b"other").unwrap();
    if rustix::process::geteuid().is_root() {
        let set = |name, key: &str, value: &[u8]| {
            rustix::fs::setxattr(path.join(name), key, value, XattrFlags::empty()).unwrap();
        };
        set("old", "trusted.overlay.opaque", b"y");
        set("new", "trusted.test", b"a\nb\0");
        let node = |name, kind, device| {
            let path = path.join(name);
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::RUSR, device).unwrap();
        };
        node("etc/gone", FileType::CharacterDevice, 0);
        node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        node("pipe", FileType::Fifo, 0);
        let owner = (Some(100_000), Some(3_000_000));
        std::os::unix::fs::lchown(path.join("soft"), owner.0, owner.1).unwrap();
    }
}

/// If it fails, what a container changed is not in the image that `commit` makes, or something else is.
#[test]
fn a_containers_changes_become_a_layer() {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.path().join("store")).unwrap();
    let image = base(&store);
    let record = store.find("base").unwrap();
    let changed = scratch.path().join("upper");
    upper(&changed);
    fs::create_dir(changed.join("place")).unwrap();
    fs::write(changed.join("file"), b"").unwrap();
    // Something was mounted there, over a file of the container's, too.
    let points = ["/place", "/file", "/new"].map(PathBuf::from);
    let mut layer = Vec::new();
    write_layer(&changed, &points, &mut layer).unwrap();
    let mut again = Vec::new();
    write_layer(&changed, &points, &mut again).unwrap();
    assert!(layer == again, "not reproducible");
    let about = About {
        author: Some("somebody".to_owned()),
        message: Some("why".to_owned()),
        created: "2026-01-02T03:04:05Z".to_owned(),
        created_by: "sh".to_owned(),
        changes: vec!["CMD [\"new\"]".to_owned()],
    };
    let name = "made:v1".parse().unwrap();
    let made = commit(&store, &record, &layer[..], &about, Some(&name)).unwrap();
    let made = store.resolve(&made.id.hex()).unwrap();
    assert_eq!(made.layers.len(), 2);
    assert_eq!(made.layers[0], image.layers[0]);
    assert_eq!(
        made.raw_config["config"],
        json!({ "Cmd": ["new"], "Env": ["A=1"] })
    );
    assert_eq!(made.raw_config["history"].as_array().unwrap().len(), 2);
    let changes = diff(&store, &record, &layer[..]).unwrap();
    let of = |path: &str| {
        let found = changes
            .iter()
            .find(|(_, changed)| changed == Path::new(path));
        found.map(|(change, _)| *change)
    };
    assert_eq!(of("/etc"), Some(Change::Changed));
    assert_eq!(of("/etc/kept"), Some(Change::Changed));
    assert_eq!(of("/new"), Some(Change::Added));
    assert_eq!(of("/old/other"), Some(Change::Added));
    assert_eq!((of("/place"), of("/file")), (None, None));

    let out = scratch.path().join("out");
    fs::create_dir(&out).unwrap();
    store.unpack(&made, &out).unwrap();
    let read = |path: &str| fs::read(out.join(path)).unwrap();
    assert_eq!(read("etc/kept"), b"changed");
    assert_eq!(
        fs::metadata(out.join("etc/kept")).unwrap().mode() & 0o7777,
        0o4755
    );
    assert_eq!(read("etc/large"), [7; 100_000]);
    assert_eq!(read("n".repeat(200).as_str()), b"long");
    assert_eq!(read("to-long"), b"long");
    assert_eq!(
        fs::read_link(out.join("soft")).unwrap(),
        Path::new("etc/kept")
    );
    let (new, newer) = (out.join("new"), out.join("newer"));
    let inode = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
    assert_eq!(inode(&new), inode(&newer));
    let modified = |path: &Path| {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.mtime(), metadata.mtime_nsec())
    };
    assert_eq!(modified(&new), modified(&changed.join("new")));
    assert_eq!(modified(&out.join("etc")), modified(&changed.join("etc")));
    let error = store.unpack(&made, &out).unwrap_err();
    assert!(
        matches!(error, super::store::Error::Io { .. }),
        "not empty: {error}"
    );
    if rustix::process::geteuid().is_root() {
        assert_eq!(of("/etc/gone"), Some(Change::Deleted));
        assert!(!out.join("etc/gone").exists());
        assert!(!out.join("old/file").exists());
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(&new, "trusted.test", &mut value).unwrap();
        assert_eq!(value[..length], *b"a\nb\0");
        let null = fs::metadata(out.join("null")).unwrap();
        assert!(null.file_type().is_char_device());
        assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
        assert!(
            fs::metadata(out.join("pipe"))
                .unwrap()
                .file_type()
                .is_fifo()
        );
        let soft = fs::symlink_metadata(out.join("soft")).unwrap();
        assert_eq!((soft.uid(), soft.gid()), (100_000, 3_000_000));
        assert_eq!(fs::metadata(out.join("etc/large")).unwrap().uid(), 1000);
    }
}

/// If it fails, a hostile layer makes process isolation write to the host outside of the container's
/// directory.
#[test]
fn nothing_is_unpacked_outside() {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.path().join("store")).unwrap();
    let victim = scratch.path().join("victim");
    fs::create_dir(&victim).unwrap();
    let path = victim.to_str().unwrap();
    let layer = Layer::new()
        .symlink("a", path)
        .file("a/file", b"x")
        .symlink("b", "../../../../../../../../..")
        .file(&format!("b{path}/file"), b"x")
        .symlink("c", "a")
        .file("c/other", b"x")
        .done();
    let session = store.begin().unwrap();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer)] },
    });
    let layer = store.add_bytes(oci::LAYER, &layer).unwrap();
    let name = "hostile".parse().unwrap();
    store.add_image(&config, vec![layer], Some(&name)).unwrap();
    drop(session);
    let out = scratch.path().join("out");
    fs::create_dir(&out).unwrap();
    store
        .unpack(&store.resolve("hostile").unwrap(), &out)
        .unwrap();
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    assert!(out.join(path.trim_start_matches('/')).join("file").exists());
}
