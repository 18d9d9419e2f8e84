//! The store keeps what it has, whoever is killed, and whoever else is at work.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::image::testing::{Layer, Scratch};

fn store() -> (Scratch, Store) {
    let scratch = Scratch::new();
    let store = Store::open(scratch.path()).unwrap();
    (scratch, store)
}

/// Adds an image of these layers.
fn add(store: &Store, name: &str, layers: &[Vec<u8>]) -> Descriptor {
    let _session = store.begin().unwrap();
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let layers = layers
        .iter()
        .map(|layer| store.add_bytes(oci::LAYER, layer).unwrap())
        .collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Cmd": ["sh"], "Healthcheck": { "Test": ["CMD", "true"] } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let name = name.parse().ok();
    store.add_image(&config, layers, name.as_ref()).unwrap()
}

fn files(store: &Store) -> usize {
    ["blobs/sha256", "layers", "tmp"]
        .iter()
        .map(|directory| fs::read_dir(store.root().join(directory)).unwrap().count())
        .sum()
}

/// If it fails, the first `cofferdam run busybox` of a newcomer does not work.
#[test]
fn busybox_is_there_without_a_network() {
    let (_scratch, store) = store();
    let image = store.resolve("busybox").unwrap();
    assert_eq!(image.layers.len(), 1);
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.cmd().as_ref().unwrap(), &["sh"]);
    let again = store.resolve(&image.id.short()).unwrap();
    assert_eq!(again.digest, image.digest);
    assert_eq!(
        store
            .resolve("docker.io/library/busybox:latest")
            .unwrap()
            .id,
        image.id
    );
    let missing = store.resolve("alpine").unwrap_err().to_string();
    assert!(missing.contains("no image"), "{missing}");
}

/// If it fails, names point at the wrong image, or an image is lost with one of its names.
#[test]
fn names_come_and_go() {
    let (_scratch, store) = store();
    let one = add(&store, "one", &[Layer::new().file("a", b"1").done()]);
    let two = add(&store, "two:v2", &[Layer::new().file("a", b"2").done()]);
    store
        .name(&one, Some(&"other/one".parse().unwrap()))
        .unwrap();
    assert_eq!(store.find("other/one").unwrap().names.len(), 2);
    assert_eq!(
        store
            .find(&format!("one@{}", one.digest))
            .unwrap()
            .descriptor,
        one
    );
    assert!(store.find(&format!("two@{}", one.digest)).is_err());
    assert!(store.find("two").is_err(), "another tag");
    // The name moves; the image that had it is still listed, without one.
    store.name(&one, Some(&"two:v2".parse().unwrap())).unwrap();
    let records = store.list().unwrap();
    assert_eq!(records.len(), 2);
    assert!(records[0].names.is_empty());
    assert_eq!(records[0].descriptor, two);
    let removed = store.remove("one", false).unwrap();
    assert_eq!(removed.names, ["docker.io/library/one:latest"]);
    assert!(removed.images.is_empty());
    let removed = store.remove(&one.digest.hex(), false).unwrap();
    assert_eq!(removed.images.len(), 1);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(store.prune(false, |_| true).unwrap().images.len(), 1);
    assert_eq!(files(&store), 0);
}

/// If it fails, a container loses its image, or images that nobody uses stay forever.
#[test]
fn what_a_container_holds_stays() {
    let (_scratch, store) = store();
    let layers = [
        Layer::new().file("a", b"1").done(),
        Layer::new().file("b", b"2").done(),
    ];
    add(&store, "used", &layers);
    let image = store.resolve("used").unwrap();
    store.hold(&image, "container").unwrap();
    assert!(matches!(
        store.remove("used", false),
        Err(Error::InUse { .. })
    ));
    store.remove("used", true).unwrap();
    store.prune(true, |_| true).unwrap();
    assert!(image.layers.iter().all(|layer| layer.exists()));
    store.release("container").unwrap();
    store.prune(true, |_| true).unwrap();
    assert_eq!(files(&store), 0);
    assert!(store.hold(&image, "late").is_err());
}

/// If it fails, a deep image needs more devices than a VM has, or a layer hides what it should not.
#[test]
fn deep_and_sparse_images_are_merged() {
    let (_scratch, store) = store();
    let layer = |at: usize| Layer::new().file(&format!("f{at}"), b"x").done();
    let layers: Vec<_> = (0..12).map(layer).collect();
    add(&store, "deep", &layers);
    let deep = store.resolve("deep").unwrap();
    assert_eq!(deep.layers.len(), MAX_LAYERS);
    assert!(deep.layers[0].to_string_lossy().ends_with(".merged.erofs"));
    add(&store, "eight", &layers[..8]);
    assert_eq!(store.resolve("eight").unwrap().layers.len(), 8);
    // The second one does not say what its directory is like.
    let implicit = Layer::new().file("d/file", b"x").done();
    add(&store, "implicit", &[layer(0), implicit.clone(), layer(1)]);
    let image = store.resolve("implicit").unwrap();
    assert_eq!(image.layers.len(), 2);
    add(&store, "base", &[implicit]);
    assert_eq!(store.resolve("base").unwrap().layers.len(), 1);
}

/// If it fails, content that was damaged on the way is run.
#[test]
fn wrong_content_is_refused() {
    use std::io::Write as _;
    let (_scratch, store) = store();
    let session = store.begin().unwrap();
    let mut blob = store.add().unwrap();
    blob.write_all(b"content").unwrap();
    let error = blob.finish(Some(Digest::of(b"other"))).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }));
    assert_eq!(files(&store), 0);
    let layer = store.add_bytes(oci::LAYER, &Layer::new().done()).unwrap();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(b"another tar")] },
    });
    store
        .add_image(&config, vec![layer], Some(&"wrong".parse().unwrap()))
        .unwrap();
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": ["sha256:../../x"] },
    });
    store
        .add_image(&config, vec![], Some(&"count".parse().unwrap()))
        .unwrap();
    drop(session);
    assert!(matches!(
        store.resolve("wrong"),
        Err(Error::Mismatch { .. })
    ));
    assert!(matches!(
        store.resolve("count"),
        Err(Error::LayerCount { .. })
    ));
}

/// Not a test: what [`killed_writers_leave_a_sound_store`] and [`many_at_once`] run beside themselves.
#[test]
fn worker() {
    let Some(root) = std::env::var_os("STORE_TEST_ROOT") else {
        return;
    };
    let forever = std::env::var_os("STORE_TEST_FOREVER").is_some();
    let store = Store::open(Path::new(&root)).unwrap();
    let mut round = 0_u32;
    loop {
        let content = vec![b'x'; 300_000 + usize::try_from(round).unwrap()];
        let layers = [
            Layer::new().file("a", &content).done(),
            Layer::new()
                .file("d/b", round.to_string().as_bytes())
                .done(),
        ];
        let name = format!("image:{round}");
        add(&store, &name, &layers);
        assert_eq!(store.resolve(&name).unwrap().layers.len(), 1);
        if forever && round > 3 {
            let _ = store.remove(&format!("image:{}", round - 3), false);
        }
        round += 1;
        if !forever && round == 12 {
            return;
        }
    }
}

fn start(store: &Store, forever: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "image::store::tests::worker"])
        .env("STORE_TEST_ROOT", store.root())
        .stdout(Stdio::null());
    if forever {
        command.env("STORE_TEST_FOREVER", "1");
    }
    command.spawn().unwrap()
}

/// If it fails, a killed pull or load leaves a store that no command works with, content that is not
/// what its name says, or garbage that stays.
#[test]
fn killed_writers_leave_a_sound_store() {
    let (_scratch, store) = store();
    for round in 0..12_u64 {
        let mut child = start(&store, true);
        std::thread::sleep(Duration::from_millis(40 + round * 17));
        child.kill().unwrap();
        child.wait().unwrap();
        for path in fs::read_dir(store.root().join("blobs/sha256")).unwrap() {
            let path = path.unwrap().path();
            let digest = Digest::of(&fs::read(&path).unwrap());
            assert_eq!(path, store.blob(digest));
        }
        for record in store.list().unwrap() {
            assert_eq!(store.image(&record).unwrap().layers.len(), 1);
        }
        for path in fs::read_dir(store.root().join("layers")).unwrap() {
            let path = path.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| extension == "erofs")
            {
                let out = Command::new("fsck.erofs").arg(&path).output().unwrap();
                assert!(out.status.success(), "{out:?}");
            }
        }
    }
    assert!(!store.list().unwrap().is_empty());
    store.prune(true, |_| true).unwrap();
    assert_eq!(files(&store), 0);
}

/// If it fails, commands that run at the same time lose each other's images or wait for ever.
#[test]
fn many_at_once() {
    let (_scratch, store) = store();
    let mut children: Vec<Child> = (0..4).map(|_| start(&store, false)).collect();
    while children
        .iter_mut()
        .any(|child| child.try_wait().unwrap().is_none())
    {
        store.prune(false, |_| true).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    for round in 0..12 {
        store.resolve(&format!("image:{round}")).unwrap();
    }
    assert_eq!(store.list().unwrap().len(), 12);
}
