//! Images between Cofferdam and what others use: Debian's registry, skopeo, buildah and podman.

#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cofferdam_container::image;
use rustix::fs::{CWD, FileType, Mode, mknodat};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cofferdam-container");

/// A directory of a test's own.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("images-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One store, in a directory of its own.
struct Store(PathBuf);

impl Store {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env("COFFERDAM_DATA", &self.0)
            .env("COFFERDAM_RUN", self.0.join("run"))
            .env("HOME", &self.0)
            .env("XDG_RUNTIME_DIR", &self.0)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("REGISTRY_AUTH_FILE");
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        output(&mut self.command(arguments))
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let out = self.command(arguments).output().unwrap();
        assert!(!out.status.success(), "{arguments:?} succeeded");
        String::from_utf8(out.stderr).unwrap()
    }

    fn id(&self, name: &str) -> String {
        self.run(&["images", "-q", "--no-trunc", name])
            .trim()
            .to_owned()
    }
}

fn output(command: &mut Command) -> String {
    let out = command.output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {error}");
    String::from_utf8(out.stdout).unwrap()
}

fn have(programs: &[&str]) -> bool {
    programs.iter().all(|program| {
        let there = Command::new(program).arg("--version").output().is_ok();
        if !there {
            eprintln!("SKIPPED: there is no {program}; resources/setup containers installs it");
        }
        there
    })
}

/// Debian's registry on the loopback.
struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(scratch: &Scratch, extra: &str) -> Self {
        // Free a moment ago; a registry that loses the race ends at once, and the test says so.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{extra}",
            scratch.path("registry").display()
        );
        let path = scratch.path("registry.yml");
        fs::write(&path, config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut registry = Self { process, address };
        for _ in 0..200 {
            if TcpStream::connect(&registry.address).is_ok() {
                return registry;
            }
            assert!(
                registry.process.try_wait().unwrap().is_none(),
                "the registry ended"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the registry does not answer");
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn skopeo(arguments: &[&str]) -> String {
    output(
        Command::new("skopeo")
            .args(["--insecure-policy"])
            .args(arguments),
    )
}

/// A tar with a file of so many bytes that no compression shortens.
fn tar(scratch: &Scratch, name: &str, size: usize) -> PathBuf {
    let mut content = Vec::with_capacity(size);
    let mut state = 1_u64;
    while content.len() < size {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        content.extend((state >> 32).to_le_bytes());
    }
    let directory = scratch.path(&format!("{name}.d"));
    fs::create_dir_all(directory.join("etc")).unwrap();
    fs::write(directory.join("etc/content"), content).unwrap();
    fs::write(directory.join("etc/name"), name).unwrap();
    let path = scratch.path(&format!("{name}.tar"));
    output(
        Command::new("tar")
            .arg("-C")
            .arg(&directory)
            .arg("-cf")
            .arg(&path)
            .arg("."),
    );
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// If it fails, images cannot be exchanged with a registry, or change on the way.
#[test]
fn images_go_to_a_registry_and_come_back() {
    if !have(&["docker-registry", "skopeo"]) {
        return;
    }
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "");
    let (one, two) = (Store(scratch.path("one")), Store(scratch.path("two")));
    let tar = tar(&scratch, "rootfs", 3_000_000);
    let name = registry.name("team/app:v1");
    one.run(&["import", "-c", "CMD [\"sh\"]", text(&tar), &name]);
    one.run(&["push", &name]);
    let said = two.run(&["pull", &name]);
    assert!(said.contains("Downloaded newer image"), "{said}");
    assert!(said.ends_with(&format!("{name}\n")), "{said}");
    assert_eq!(one.id(&name), two.id(&name));
    let said = two.run(&["pull", &name]);
    assert!(said.contains("up to date"), "{said}");
    // skopeo finds the same image, and its compressed copy is the same image again.
    let inspected = skopeo(&["inspect", "--tls-verify=false", &format!("docker://{name}")]);
    let digests = two.run(&["images", "--digests", "--format", "json"]);
    let digest = digests
        .split("sha256:")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert!(inspected.contains(digest), "{inspected}\n{digests}");
    let squeezed = registry.name("team/app:squeezed");
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "--dest-compress-format=zstd",
        "--format=oci",
        &format!("docker://{name}"),
        &format!("docker://{squeezed}"),
    ]);
    let said = two.run(&["pull", &squeezed]);
    assert!(said.contains("Downloaded newer image"), "{said}");
    // By digest.
    let pinned = registry.name(&format!("team/app@sha256:{digest}"));
    two.run(&["rmi", "-f", &name]);
    two.run(&["pull", &pinned]);
    assert_eq!(two.id(&name), "");
    two.run(&["image", "inspect", &pinned]);
    let error = two.fails(&["pull", &registry.name("team/nothing")]);
    assert!(error.contains("has no image"), "{error}");
    let error = two.fails(&["pull", "127.0.0.1:1/x"]);
    assert!(error.contains("cannot be reached"), "{error}");
}

/// If it fails, a broken connection or a killed pull costs the whole download again, or leaves an image
/// that is not what its name says.
#[test]
fn pulls_go_on_where_they_were_killed() {
    if !have(&["docker-registry"]) {
        return;
    }
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "");
    let (one, two) = (Store(scratch.path("one")), Store(scratch.path("two")));
    let name = registry.name("large:v1");
    one.run(&["import", text(&tar(&scratch, "large", 40_000_000)), &name]);
    one.run(&["push", "-q", &name]);
    let mut delays = [30_u64, 60, 90, 120, 150, 200].into_iter();
    for delay in delays.by_ref() {
        let mut child = two
            .command(&["pull", "-q", &name])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    two.run(&["pull", "-q", &name]);
    assert_eq!(one.id(&name), two.id(&name));
    // The first half, from a pull that was killed: it is gone on with.
    let three = Store(scratch.path("three"));
    three.run(&["images"]);
    let inspected = one.run(&["image", "inspect", &name]);
    let manifest = inspected.split("\"layers\"").nth(1).unwrap();
    let hex = manifest
        .split("sha256:")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let blob = fs::read(scratch.path(&format!("one/images/blobs/sha256/{hex}"))).unwrap();
    let partial = scratch.path(&format!("three/images/tmp/{hex}.partial"));
    fs::write(&partial, &blob[..blob.len() / 2]).unwrap();
    three.run(&["pull", "-q", &name]);
    assert_eq!(one.id(&name), three.id(&name));
    // A damaged half is noticed, and the next pull begins anew.
    let four = Store(scratch.path("four"));
    four.run(&["images"]);
    let partial = scratch.path(&format!("four/images/tmp/{hex}.partial"));
    fs::write(&partial, vec![0; blob.len() / 2]).unwrap();
    let error = four.fails(&["pull", "-q", &name]);
    assert!(error.contains("damaged or forged"), "{error}");
    four.run(&["pull", "-q", &name]);
    assert_eq!(one.id(&name), four.id(&name));
}

/// If it fails, pulls at the same time corrupt each other or wait for ever.
#[test]
fn pulls_at_the_same_time_share_the_work() {
    if !have(&["docker-registry"]) {
        return;
    }
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "");
    let (one, two) = (Store(scratch.path("one")), Store(scratch.path("two")));
    let name = registry.name("shared:v1");
    one.run(&["import", text(&tar(&scratch, "shared", 10_000_000)), &name]);
    one.run(&["push", "-q", &name]);
    let start = || {
        two.command(&["pull", "-q", &name])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let children: Vec<Child> = (0..4).map(|_| start()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(one.id(&name), two.id(&name));
    let said = two.run(&["prune", "-f"]);
    assert!(said.contains("reclaimed space: 0B"), "{said}");
}

/// If it fails, private images cannot be used, or somebody without a password gets them.
#[test]
fn registries_with_passwords_take_those_that_were_kept() {
    if !have(&["docker-registry"]) {
        return;
    }
    let scratch = Scratch::new();
    let passwords = scratch.path("passwords");
    fs::write(
        &passwords,
        "user:$2b$05$AMudlw/MaYn3pF6qmAx17uCzbaXzT6lHKmaSsawV3LtbBwI1tk/u.\n",
    )
    .unwrap();
    let auth = format!(
        "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
        text(&passwords)
    );
    let registry = Registry::start(&scratch, &auth);
    let store = Store(scratch.path("store"));
    let name = registry.name("private:v1");
    store.run(&["import", text(&tar(&scratch, "private", 1000)), &name]);
    let error = store.fails(&["push", &name]);
    assert!(error.contains("cofferdam login"), "{error}");
    let login = |path: &str, encoded: &str| {
        let path = scratch.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = format!(
            "{{\"auths\":{{\"{}\":{{\"auth\":\"{encoded}\"}}}}}}",
            registry.address
        );
        fs::File::create(path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    };
    // user:wrong, then user:secret.
    login("store/.docker/config.json", "dXNlcjp3cm9uZw==");
    let error = store.fails(&["push", &name]);
    assert!(error.contains("cofferdam login"), "{error}");
    login("store/.docker/config.json", "dXNlcjpzZWNyZXQ=");
    store.run(&["push", &name]);
    fs::remove_file(scratch.path("store/.docker/config.json")).unwrap();
    store.fails(&["pull", &name]);
    login("store/containers/auth.json", "dXNlcjpzZWNyZXQ=");
    store.run(&["pull", &name]);
    fs::remove_file(scratch.path("store/containers/auth.json")).unwrap();
    let address = registry.address.as_str();
    let error = store.fails(&["login", "-u", "user", "-p", "wrong", address]);
    assert!(error.contains("does not know user"), "{error}");
    store.fails(&["pull", &name]);
    let said = store.run(&["login", "-u", "user", "-p", "secret", address]);
    assert!(said.contains("Login Succeeded"), "{said}");
    store.run(&["pull", &name]);
    let said = store.run(&["logout", address]);
    assert!(said.contains("Removed"), "{said}");
    store.fails(&["pull", &name]);
    let said = store.run(&["logout", address]);
    assert!(said.contains("Not logged in"), "{said}");
}

/// If it fails, of an image for several machines the wrong one is taken.
#[test]
fn of_several_platforms_the_right_one_is_pulled() {
    if !have(&["docker-registry", "skopeo"]) {
        return;
    }
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "");
    let store = Store(scratch.path("store"));
    let layout = scratch.path("layout");
    let mut entries = Vec::new();
    for platform in ["amd64", "arm64"] {
        let tar = tar(&scratch, platform, 5000);
        store.run(&["import", "--platform", platform, text(&tar), platform]);
        let archive = scratch.path("archive");
        store.run(&["save", "-o", text(&archive), platform]);
        fs::create_dir_all(&layout).unwrap();
        output(
            Command::new("tar")
                .arg("-C")
                .arg(&layout)
                .arg("-xf")
                .arg(&archive),
        );
        let index = fs::read_to_string(layout.join("index.json")).unwrap();
        let digest = index
            .split("sha256:")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let size = fs::metadata(layout.join("blobs/sha256").join(digest))
            .unwrap()
            .len();
        entries.push(format!(
            "{{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:{digest}\",\
             \"size\":{size},\"platform\":{{\"os\":\"linux\",\"architecture\":\"{platform}\"}}}}"
        ));
    }
    let index = |entries: &str| {
        format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"manifests\":[{entries}]}}"
        )
    };
    let both = index(&entries.join(","));
    let file = scratch.path("both");
    fs::write(&file, &both).unwrap();
    let sum = output(Command::new("sha256sum").arg(&file));
    let hex = sum.split(' ').next().unwrap();
    fs::write(layout.join("blobs/sha256").join(hex), &both).unwrap();
    let entry = format!(
        "{{\"mediaType\":\"application/vnd.oci.image.index.v1+json\",\"digest\":\"sha256:{hex}\",\"size\":{},\
         \"annotations\":{{\"org.opencontainers.image.ref.name\":\"both:v1\"}}}}",
        both.len()
    );
    fs::write(layout.join("index.json"), index(&entry)).unwrap();
    let name = registry.name("both:v1");
    skopeo(&[
        "copy",
        "--all",
        "--dest-tls-verify=false",
        &format!("oci:{}:both:v1", text(&layout)),
        &format!("docker://{name}"),
    ]);
    let (amd64, arm64) = (store.id("amd64"), store.id("arm64"));
    assert_ne!(amd64, arm64);
    for (platform, id) in [("linux/amd64", &amd64), ("arm64", &arm64)] {
        store.run(&["pull", "--platform", platform, &name]);
        assert_eq!(store.id(&name), *id);
        store.run(&["load", "--platform", platform, "-i", text(&layout)]);
        assert_eq!(store.id("both:v1"), *id);
    }
    let error = store.fails(&["pull", "--platform", "linux/s390x", &name]);
    assert!(error.contains("linux/amd64, linux/arm64"), "{error}");
    let error = store.fails(&["load", "--platform", "linux/s390x", "-i", text(&layout)]);
    assert!(error.contains("linux/amd64, linux/arm64"), "{error}");
}

/// buildah or podman, with a storage of the test's own.
fn others(scratch: &Scratch, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command
        .args([
            "--root",
            text(&scratch.path("others")),
            "--runroot",
            text(&scratch.path("othersrun")),
        ])
        .args(["--storage-driver", "vfs"])
        .args(arguments)
        .current_dir(&scratch.0);
    output(&mut command)
}

/// If it fails, what buildah builds is not what runs here, or what a container changed is lost on
/// the way to Podman.
#[test]
fn buildahs_images_run_and_commits_go_to_podman() {
    if !have(&["buildah", "podman"]) {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: the storage of buildah and podman takes root here");
        return;
    }
    let scratch = Scratch::new();
    let context = scratch.path("context");
    fs::create_dir_all(context.join("tree/etc")).unwrap();
    fs::write(context.join("tree/etc/one"), "1").unwrap();
    fs::write(context.join("tree/etc/two"), "2").unwrap();
    fs::write(context.join("tool"), "tool").unwrap();
    let recipe =
        "FROM scratch\nCOPY tree/ /\nCOPY --chmod=4755 tool /usr/bin/tool\nCMD [\"tool\"]\n";
    fs::write(context.join("Containerfile"), recipe).unwrap();
    others(
        &scratch,
        "buildah",
        &["build", "--layers", "-t", "built:v1", text(&context)],
    );
    let archive = scratch.path("built.tar");
    let target = format!("oci-archive:{}:built:v1", text(&archive));
    others(
        &scratch,
        "buildah",
        &["push", "localhost/built:v1", &target],
    );
    let store = Store(scratch.path("store"));
    assert_eq!(
        store.run(&["load", "-i", text(&archive)]),
        "Loaded image: built:v1\n"
    );

    let images = image::Store::open(&scratch.path("store/images")).unwrap();
    let built = images.resolve("built:v1").unwrap();
    assert_eq!(built.raw_config["config"]["Cmd"][0], "tool");
    let files = scratch.path("files");
    fs::create_dir(&files).unwrap();
    images.unpack(&built, &files).unwrap();
    assert_eq!(fs::read(files.join("etc/two")).unwrap(), b"2");
    let tool = fs::metadata(files.join("usr/bin/tool")).unwrap();
    assert_eq!(tool.permissions().mode() & 0o7777, 0o4755);

    // A container's upper directory: a file deleted, one changed, one new.
    let upper = scratch.path("upper");
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/two"), "changed").unwrap();
    fs::write(upper.join("new"), "new").unwrap();
    let (mode, whiteout) = (Mode::RUSR, FileType::CharacterDevice);
    mknodat(CWD, upper.join("etc/one"), whiteout, mode, 0).unwrap();
    let mut layer = Vec::new();
    image::commit::write_layer(&upper, &[], &mut layer).unwrap();
    let about = image::commit::About {
        created: "2026-01-01T00:00:00Z".to_owned(),
        ..Default::default()
    };
    let record = images.find("built:v1").unwrap();
    let name = "changed:v1".parse().unwrap();
    image::commit::commit(&images, &record, &layer[..], &about, Some(&name)).unwrap();
    let saved = scratch.path("changed.tar");
    store.run(&["save", "-o", text(&saved), "changed:v1"]);
    others(&scratch, "podman", &["load", "-q", "-i", text(&saved)]);
    let name = "docker.io/library/changed:v1";
    let mounted = others(&scratch, "podman", &["image", "mount", name]);
    let mounted = PathBuf::from(mounted.trim());
    let read = |path: &str| fs::read_to_string(mounted.join(path));
    assert_eq!(read("etc/two").unwrap(), "changed");
    assert_eq!(read("new").unwrap(), "new");
    assert!(read("etc/one").is_err());
    assert_eq!(read("usr/bin/tool").unwrap(), "tool");
    others(&scratch, "podman", &["image", "umount", name]);
}

/// If it fails, archives cannot be exchanged with Docker, Podman, buildah and skopeo, or change on the
/// way.
#[test]
fn archives_are_those_of_others() {
    if !have(&["skopeo"]) {
        return;
    }
    let scratch = Scratch::new();
    let store = Store(scratch.path("store"));
    let tar = tar(&scratch, "rootfs", 100_000);
    store.run(&["import", text(&tar), "app:v1"]);
    let saved = scratch.path("saved.tar");
    store.run(&["save", "-o", text(&saved), "app:v1"]);
    let again = scratch.path("again.tar");
    store.run(&["save", "-o", text(&again), &store.id("app:v1")]);
    assert!(
        fs::read(&saved).unwrap() == fs::read(&again).unwrap(),
        "not reproducible"
    );
    let id = store.id("app:v1");
    for (number, (source, target)) in [
        ("docker-archive:FROM:app:v1", "oci-archive:TO:copy:0"),
        ("oci-archive:FROM", "docker-archive:TO:copy:1"),
        ("oci-archive:FROM", "oci:TO:copy:2"),
    ]
    .into_iter()
    .enumerate()
    {
        let to = scratch.path(&format!("copy-{number}"));
        let source = source.replace("FROM", text(&saved));
        skopeo(&["copy", &source, &target.replace("TO", text(&to))]);
        store.run(&["load", "-i", text(&to)]);
        let name = format!("copy:{number}");
        let layers = |name: &str| {
            let inspected = store.run(&["image", "inspect", name]);
            inspected.split("\"RootFS\"").nth(1).unwrap().to_owned()
        };
        assert_eq!(layers(&name), layers("app:v1"), "{source}");
    }
    // Compressed as a whole, and through a pipe.
    store.run(&["rmi", "app:v1"]);
    let mut gzip = Command::new("gzip")
        .arg("-c")
        .arg(&saved)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = output(store.command(&["load"]).stdin(gzip.stdout.take().unwrap()));
    assert_eq!(said, "Loaded image: app:v1\n");
    assert!(gzip.wait().unwrap().success());
    assert_eq!(store.id("app:v1"), id);
    let error = store.fails(&["load", "-i", text(&tar)]);
    assert!(error.contains("cofferdam import"), "{error}");
}
