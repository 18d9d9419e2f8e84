//! Layers become images that erofs-utils finds in order and that hold what was meant.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ::tar::{EntryType, Header};
use proptest::prelude::*;

use super::*;
use crate::image::testing::{Layer, Scratch};

struct Image {
    scratch: Scratch,
    tree: Tree,
}

impl Image {
    fn path(&self) -> PathBuf {
        self.scratch.path().join("image")
    }

    /// What fsck.erofs unpacks, after it found no fault.
    fn extract(&self) -> PathBuf {
        let out = self.scratch.path().join("out");
        let mut arguments = vec![format!("--extract={}", out.display())];
        if rustix::process::geteuid().is_root() {
            arguments.push("--preserve".to_owned());
        }
        run("fsck.erofs", &arguments, &self.path());
        out
    }

    fn dump(&self, path: &str) -> String {
        let out = run("dump.erofs", &[format!("--path={path}")], &self.path());
        String::from_utf8(out.stdout).unwrap()
    }
}

fn run(program: &str, arguments: &[String], image: &Path) -> Output {
    let out = Command::new(program).args(arguments).arg(image).output();
    let out = out.expect("erofs-utils is needed: resources/setup");
    assert!(out.status.success(), "{program}: {out:?}");
    out
}

fn build(layers: &[Vec<u8>]) -> Result<Image, Error> {
    let scratch = Scratch::new();
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(scratch.path().join("image"))
        .unwrap();
    let mut tree = Tree::new(layers.len() > 1);
    let mut image = Writer::new(file);
    for (index, layer) in layers.iter().enumerate() {
        if index > 0 {
            tree.next_layer();
        }
        apply(&layer[..], &mut tree, &mut image)?;
    }
    image.finish(&tree, [7; 16])?;
    Ok(Image { scratch, tree })
}

fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// If it fails, files reach a guest with other names, content, types, owners or times than the layer's.
#[test]
fn a_layer_becomes_an_image_with_the_same_files() {
    let large: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut holes = vec![0; 300_000];
    holes[200_000] = 1;
    let long = format!("etc/{}", "n".repeat(90));
    let layer = Layer::new()
        .dir("etc/")
        .file("etc/small", b"hello\n")
        .file("etc/empty", b"")
        .file("./etc/limit", &[1; 2048])
        .file("etc/above", &[2; 2049])
        .file("/large", &large)
        .file("holes", &holes)
        .link("hard", "etc/small")
        .symlink("etc/soft", "/../../outside")
        .entry(EntryType::Fifo, "fifo", "", b"")
        .entry(EntryType::Char, "char", "", b"")
        .entry(EntryType::Block, "block", "", b"")
        .file(&long, b"long")
        .done();
    let image = build(&[layer]).unwrap();
    let out = image.extract();
    assert_eq!(fs::read(out.join("etc/small")).unwrap(), b"hello\n");
    assert_eq!(fs::read(out.join("etc/limit")).unwrap(), [1; 2048]);
    assert_eq!(fs::read(out.join("etc/above")).unwrap(), [2; 2049]);
    assert!(fs::read(out.join("large")).unwrap() == large);
    assert!(fs::read(out.join("holes")).unwrap() == holes);
    assert_eq!(fs::read(out.join(&long)).unwrap(), b"long");
    let target = fs::read_link(out.join("etc/soft")).unwrap();
    assert_eq!(target.as_os_str().as_bytes(), b"/../../outside");
    let small = image.dump("/etc/small");
    assert!(small.contains("Links: 2"), "{small}");
    assert!(small.contains("Uid: 1000"), "{small}");
    assert!(small.contains("Gid: 100000"), "{small}");
    assert!(small.contains("Access: 0644"), "{small}");
    assert!(small.contains("2009-02-1"), "{small}");
    assert_eq!(image.dump("/hard").lines().nth(1), small.lines().nth(1));
    if rustix::process::geteuid().is_root() {
        let fifo = fs::metadata(out.join("fifo")).unwrap();
        assert!(fifo.file_type().is_fifo());
        let device = fs::metadata(out.join("char")).unwrap();
        assert!(device.file_type().is_char_device());
        assert_eq!(device.rdev(), rustix::fs::makedev(5, 0x12345));
        assert!(
            fs::metadata(out.join("block"))
                .unwrap()
                .file_type()
                .is_block_device()
        );
    }
    // Of 4 MB only what is not zero is on disk.
    let metadata = fs::metadata(image.path()).unwrap();
    assert!(metadata.len() > 4_300_000, "{}", metadata.len());
    assert!(metadata.blocks() * 512 < 4_100_000, "{}", metadata.blocks());
}

/// If it fails, directories of many entries lose some, or the kernel's binary search misses them.
#[test]
fn large_directories_are_complete() {
    let mut layer = Layer::new();
    for number in 0..3000 {
        layer = layer.file(
            &format!("dir/!file-{number}"),
            number.to_string().as_bytes(),
        );
    }
    let image = build(&[layer.done()]).unwrap();
    let out = image.extract().join("dir");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 3000);
    for number in 0..3000 {
        let content = fs::read_to_string(out.join(format!("!file-{number}"))).unwrap();
        assert_eq!(content, number.to_string());
    }
}

/// If it fails, what a layer deletes is still there, or more than that is gone.
#[test]
fn whiteouts_are_those_of_overlayfs() {
    let layer = Layer::new()
        .dir("a")
        .file("a/.wh.gone", b"")
        .dir("b")
        .file("b/kept", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/.wh.kept", b"")
        .file(".wh.dir", b"")
        .dir("dir")
        .dir("late")
        .file(".wh.late", b"")
        .file(".wh..wh.plnk", b"")
        .done();
    let image = build(&[layer]).unwrap();
    assert!(!image.tree.needs_lower());
    let gone = image.dump("/a/gone");
    assert!(gone.contains("char dev"), "{gone}");
    for (path, size) in [("/a", 0), ("/b", 32), ("/dir", 32), ("/late", 32)] {
        let dump = image.dump(path);
        assert!(
            dump.contains(&format!("Xattr size: {size}")),
            "{path}: {dump}"
        );
    }
    let kept = image.dump("/b/kept");
    assert!(kept.contains("regular file"), "{kept}");
}

/// If it fails, an image of many layers has files that a layer deleted, or lacks some.
#[test]
fn layers_merge_as_if_unpacked_one_after_another() {
    let lower = Layer::new()
        .dir("a")
        .file("a/one", b"1")
        .file("a/two", b"2")
        .dir("b")
        .dir("b/c")
        .file("b/c/deep", b"deep")
        .dir("usr")
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("big", &[9; 10_000])
        .link("big2", "big")
        .file("x", b"x");
    let upper = Layer::new()
        .file("a/.wh.one", b"")
        .file("b/new", b"new")
        .file("b/.wh..wh..opq", b"")
        .file("lib/library", b"so")
        .file("big", b"small")
        .file("x", b"X")
        .file(".wh.x", b"");
    let image = build(&[lower.done(), upper.done()]).unwrap();
    let out = image.extract();
    let names = |path: &str| {
        let entries = fs::read_dir(out.join(path)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names("a").into_iter().collect::<Vec<_>>(), ["two"]);
    assert_eq!(names("b").into_iter().collect::<Vec<_>>(), ["new"]);
    assert_eq!(fs::read(out.join("usr/lib/library")).unwrap(), b"so");
    assert!(fs::symlink_metadata(out.join("lib")).unwrap().is_symlink());
    assert_eq!(fs::read(out.join("big")).unwrap(), b"small");
    assert_eq!(fs::read(out.join("big2")).unwrap(), [9; 10_000]);
    assert_eq!(fs::read(out.join("x")).unwrap(), b"X");
    // Directories that the upper layer did not describe keep what the lower one says.
    assert!(image.dump("/b").contains("Access: 0750"));
}

/// If it fails, a hostile archive makes files out of reach, a corrupt image, a crash or an endless loop.
#[test]
fn hostile_archives_are_refused_or_harmless() {
    let deep = "d/".repeat(45);
    let refused = [
        (Layer::new().file("../escape", b""), "leads out"),
        (Layer::new().file("a/../../escape", b""), "leads out"),
        (Layer::new().file(".wh...", b""), "no Linux file"),
        (Layer::new().file(".wh.", b""), "no Linux file"),
        (Layer::new().link("a", "nothing"), "do not have"),
        (Layer::new().link("a", "../../etc/passwd"), "leads out"),
        (Layer::new().dir("d").link("a", "d"), "links to a directory"),
        (
            Layer::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", b""),
            "symbolic links",
        ),
        (Layer::new().file("a", b"").file("a/b", b""), "no directory"),
        (Layer::new().symlink("a", ""), "no Linux file"),
        (
            Layer::new().pax("path", b"a\0b").file("x", b""),
            "no Linux file",
        ),
        (
            Layer::new().pax("path", &[b'n'; 256]).file("x", b""),
            "no Linux file",
        ),
        (
            Layer::new()
                .pax("path", "d/".repeat(2000).as_bytes())
                .dir("x"),
            "deeper",
        ),
        (
            Layer::new()
                .pax("size", b"9999999999999999999")
                .file("x", b""),
            "4 TiB",
        ),
        (
            Layer::new().pax("size", b"99999999999").file("x", b""),
            "file's content",
        ),
        (
            Layer::new().pax("uid", b"4294967296").file("x", b""),
            "32 bits",
        ),
        (
            Layer::new().pax("GNU.sparse.major", b"1").file("x", b""),
            "sparse",
        ),
        (
            Layer::new()
                .pax("comment", &vec![b'x'; 2 << 20])
                .file("x", b""),
            "extended header",
        ),
        (
            Layer::new().entry(EntryType::new(b'?'), "x", "", b""),
            "unknown type",
        ),
        (
            Layer::new()
                .pax("SCHILY.xattr.user.x", &vec![1; 70_000])
                .file("x", b""),
            "attributes",
        ),
    ];
    for (layer, message) in refused {
        let error = text(&build(&[layer.done()]).err().unwrap());
        assert!(error.contains(message), "{message}: {error}");
    }
    // Links out are links in the image, and what is written through them stays in it.
    let layer = Layer::new()
        .symlink("out", "/../../..")
        .file("out/inside", b"x")
        .dir("twice")
        .file("twice", b"now a file")
        .dir("file")
        .file("file", b"1")
        .dir("file")
        .dir(&deep)
        .file("big", &[1; 9000])
        .file("big", &[2; 9000])
        .entry(EntryType::Regular, "", "", b"")
        .done();
    let image = build(&[layer]).unwrap();
    let out = image.extract();
    assert_eq!(fs::read(out.join("inside")).unwrap(), b"x");
    assert_eq!(fs::read(out.join("twice")).unwrap(), b"now a file");
    assert!(out.join("file").is_dir());
    assert_eq!(fs::read(out.join("big")).unwrap(), [2; 9000]);
}

/// If it fails, attributes (file capabilities among them) are lost, or a layer can make overlayfs serve
/// one file as another.
#[test]
fn extended_attributes_are_kept_but_not_those_of_overlayfs() {
    let layer = Layer::new()
        .pax("SCHILY.xattr.security.capability", b"\x01\n\0=\n")
        .file("a", b"content")
        .pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc/shadow")
        .file("b", b"")
        .pax("SCHILY.xattr.user.large", &[b'v'; 9000])
        .file("c", b"with much before it")
        .pax("SCHILY.xattr.nonsense", b"x")
        .file("d", b"")
        .done();
    let image = build(&[layer]).unwrap();
    let out = image.extract();
    assert_eq!(fs::read(out.join("c")).unwrap(), b"with much before it");
    for (path, size) in [("/a", 32), ("/b", 0), ("/c", 9024), ("/d", 0)] {
        let dump = image.dump(path);
        assert!(
            dump.contains(&format!("Xattr size: {size}")),
            "{path}: {dump}"
        );
    }
    let bytes = fs::read(image.path()).unwrap();
    let mut attribute = vec![10, 6, 5, 0];
    attribute.extend(b"capability\x01\n\0=\n");
    assert!(
        bytes
            .windows(attribute.len())
            .any(|window| window == attribute)
    );
}

/// If it fails, layers in one of the usual compressions cannot be used, or their digest is of the wrong
/// bytes.
#[test]
fn compressed_layers_are_the_same() {
    let tar = Layer::new().file("a", &[5; 5000]).done();
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(&tar).unwrap();
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let plain = fs::read(build(std::slice::from_ref(&tar)).unwrap().path()).unwrap();
    for layer in [zipped.finish().unwrap(), zstd] {
        let image = build(std::slice::from_ref(&layer)).unwrap();
        assert!(fs::read(image.path()).unwrap() == plain);
        let mut tree = Tree::new(false);
        let file = File::create(image.scratch.path().join("other")).unwrap();
        let digest = apply(&layer[..], &mut tree, &mut Writer::new(file)).unwrap();
        assert_eq!(digest, Digest::of(&tar));
    }
    assert!(build(&[tar[..800].to_vec()]).is_err(), "a cut archive");
    assert!(build(&[vec![b'?'; 5000]]).is_err(), "no archive");
}

/// What a random layer does.
#[derive(Debug, Clone)]
enum Step {
    File(String, usize),
    Dir(String),
    Symlink(String, String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

fn step() -> impl Strategy<Value = Step> {
    let path = "[abc](/[abc]){0,3}";
    prop_oneof![
        (path, 0_usize..9000).prop_map(|(path, size)| Step::File(path, size)),
        path.prop_map(Step::Dir),
        (path, "(/|\\.\\./)?[abc](/[abc])?").prop_map(|(path, to)| Step::Symlink(path, to)),
        (path, path).prop_map(|(path, to)| Step::Link(path, to)),
        path.prop_map(Step::Whiteout),
        path.prop_map(Step::Opaque),
    ]
}

fn hidden(path: &str, name: &str) -> String {
    match path.rsplit_once('/') {
        Some((parent, last)) => format!("{parent}/{}", name.replace("NAME", last)),
        None => name.replace("NAME", path),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// If it fails, some sequence of entries, possible or hostile, makes a corrupt image or a panic, or
    /// files whose content is another's.
    #[test]
    fn any_sequence_of_entries_makes_a_sound_image(
        layers in prop::collection::vec(prop::collection::vec(step(), 0..12), 1..4)
    ) {
        let mut contents = BTreeMap::new();
        let layers: Vec<Vec<u8>> = layers
            .iter()
            .map(|steps| {
                let mut layer = Layer::new();
                for step in steps {
                    layer = match step {
                        Step::File(path, size) => {
                            let byte = u8::try_from(contents.len() + 1).unwrap();
                            contents.insert(byte, *size);
                            layer.file(path, &vec![byte; *size])
                        }
                        Step::Dir(path) => layer.dir(path),
                        Step::Symlink(path, to) => layer.symlink(path, to),
                        Step::Link(path, to) => layer.link(path, to),
                        Step::Whiteout(path) => layer.file(&hidden(path, ".wh.NAME"), b""),
                        Step::Opaque(path) => layer.file(&format!("{path}/.wh..wh..opq"), b""),
                    };
                }
                layer.done()
            })
            .collect();
        if let Ok(image) = build(&layers) {
            let out = image.extract();
            let mut directories = vec![out];
            while let Some(directory) = directories.pop() {
                for entry in fs::read_dir(directory).unwrap() {
                    let entry = entry.unwrap();
                    let kind = entry.file_type().unwrap();
                    if kind.is_dir() {
                        directories.push(entry.path());
                    } else if kind.is_file() {
                        let content = fs::read(entry.path()).unwrap();
                        if let Some(byte) = content.first() {
                            prop_assert_eq!(contents[byte], content.len());
                            prop_assert!(content.iter().all(|other| other == byte));
                        }
                    }
                }
            }
        }
    }

    /// If it fails, an archive of garbage makes a panic.
    #[test]
    fn any_bytes_are_taken_or_refused(
        flips in prop::collection::vec((0_usize..6000, any::<u8>()), 1..6)
    ) {
        let mut tar = Layer::new()
            .pax("SCHILY.xattr.user.x", b"value")
            .file("a", &[1; 700])
            .link("b", "a")
            .symlink("c", "b")
            .entry(EntryType::Char, "d", "", b"")
            .done();
        for (at, byte) in flips {
            let at = at % tar.len();
            tar[at] = byte;
            // With the right checksum, so that more than that is tried.
            let block = at / 512 * 512;
            let mut header = Header::from_byte_slice(&tar[block..block + 512]).clone();
            header.set_cksum();
            tar[block..block + 512].copy_from_slice(header.as_bytes());
        }
        if let Ok(image) = build(&[tar]) {
            run("fsck.erofs", &[], &image.path());
        }
    }
}
