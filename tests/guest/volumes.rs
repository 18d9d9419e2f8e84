//! Volumes: images with file systems of their own, and directories that are shared.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Output;

use crate::container::{Engine, code, said};
use crate::harness::{guest_file, host, wait_until};

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_ne!(code(output), 0, "{output:?}");
    for word in words {
        assert!(errors.contains(word), "{word} is not in {errors}");
    }
}

/// If it fails, what is in a volume is lost with the container, a new one is not empty, or it is no file
/// system of its own.
#[test]
fn a_volume_has_a_file_system_of_its_own() {
    let engine = Engine::new("volume-image");
    let run = "run --rm --network none";
    let script = "grep -q ' /v ext4 .*discard' /proc/mounts; ls -A /v; echo kept >/v/file
                  mkdir /v/dir; chown 7:8 /v/dir; ln /v/file /v/dir/link; echo done";
    let said = engine.script(&format!("{run} -v data:/v busybox"), script);
    assert_eq!(said, "done");
    // Of a container that is removed at its end, too; and where it is mounted twice.
    let line = format!("{run} -v data:/v -v data:/w:ro busybox");
    let script = "cat /v/file /w/dir/link; stat -c %u:%g:%h /v/dir /v/file | tr '\n' ' '
                  ! touch /w/x 2>/dev/null && touch /v/x && test -e /w/x && echo same";
    let said = engine.script(&line, script);
    assert_eq!(said, "kept\nkept\n7:8:2 0:0:2 same");
    let line = format!("{run} -v /own --mount type=volume,source=data,target=/v,readonly busybox");
    let script = "rmdir /v/dir 2>/dev/null || grep -c ' /own ext4' /proc/mounts";
    assert_eq!(engine.script(&line, script), "1");
    // The container's own volume is gone with it.
    assert_eq!(engine.text("volume ls -q"), "data");

    // The bound is not what it takes.
    let inspect = engine.text("volume inspect data");
    assert!(inspect.contains("\"type\": \"image\""), "{inspect}");
    let image = engine.path("data/volumes/data/volume.img");
    let about = fs::metadata(&image).unwrap();
    let used = || fs::metadata(&image).unwrap().blocks() * 512;
    assert_eq!((about.len(), about.mode() & 0o777), (64 << 30, 0o600));
    assert!(used() < 16 << 20, "{}", used());
    let run = format!("{run} -v data:/v busybox");
    engine.script(&run, "head -c 100m /dev/urandom >/v/big");
    assert!(used() > 100 << 20, "{}", used());
    engine.script(&run, "rm /v/big");
    assert!(used() < 48 << 20, "{}", used());
    engine.text("volume rm data");
}

/// If it fails, a program whose image declares where it writes cannot write there if its root is read-only, or
/// leaves a volume behind.
#[test]
fn a_declared_volume_is_there_on_a_read_only_root() {
    let engine = Engine::for_processes("volume-declared");
    engine.text("run --name made --network none busybox true");
    let change = [
        "commit",
        "-c",
        "VOLUME /not/there",
        "-c",
        "VOLUME /var/own",
        "made",
        "declares",
    ];
    assert!(engine.command(&change).status().unwrap().success());
    for isolation in ["vm", "process"] {
        let run = format!(
            "run --rm --network none --read-only --isolation={isolation} --tmpfs /var/own declares"
        );
        let script = "touch /not/there/x && ls /not/there; grep -c ' /var/own tmpfs' /proc/mounts
                      touch /y 2>/dev/null || echo refused";
        assert_eq!(engine.script(&run, script), "x\n1\nrefused", "{isolation}");
    }
    assert_eq!(engine.text("volume ls -q"), "");
}

/// If it fails, two kernels write to one file system, or nobody learns who has a volume.
#[test]
fn an_image_is_for_one_container_at_a_time() {
    let engine = Engine::new("volume-one");
    let run = "run --network none -v data:/v";
    engine.text(&format!("{run} -d --name holder busybox sleep 1000"));
    let words = ["volume data", "container holder", "type=shared"];
    for line in [
        format!("{run} --name other busybox true"),
        "run --rm --network none -v data:/v:ro busybox true".into(),
    ] {
        refused(&engine.run(&line), &words);
    }
    refused(&engine.run("cp other:/v/x ."), &words);
    refused(&engine.run("volume rm data"), &["in use by container"]);
    engine.text("rm -f holder");
    engine.text("start other");
    engine.text("wait other");
    engine.text("rm other");

    // Several read it at once, and then nobody writes.
    engine.script("run --rm --network none -v data:/v busybox", "echo x >/v/x");
    for name in ["one", "two"] {
        let line = format!("run -d --network none -v data:/v:ro --name {name} busybox sleep 1000");
        engine.text(&line);
        assert_eq!(engine.text(&format!("exec {name} cat /v/x")), "x");
    }
    let line = format!("{run} --rm busybox true");
    refused(&engine.run(&line), &["volume data", "in use by container"]);
    engine.text("rm -f one two");
    engine.text(&line);
    // What is copied from and to a container that does not run.
    engine.text(&format!("{run} --name stopped busybox true"));
    let file = engine.path("file");
    fs::write(&file, "copied").unwrap();
    engine.text(&format!("cp {file} stopped:/v/copy"));
    engine.text(&format!("cp stopped:/v/copy {file}.back"));
    assert_eq!(
        fs::read_to_string(format!("{file}.back")).unwrap(),
        "copied"
    );
}

/// If it fails, containers that run at the same time cannot share a volume, or who has a directory of
/// before loses it.
#[test]
fn a_shared_volume_is_for_several_containers() {
    let engine = Engine::for_processes("volume-shared");
    engine.text("volume create --opt type=shared data");
    refused(
        &engine.run("volume create --opt type=image data"),
        &["other options"],
    );
    refused(&engine.run("volume create --opt o=bind x"), &["type=image"]);
    let run = "run --network none -v data:/v";
    engine.text(&format!("{run} -d --name one busybox sleep 1000"));
    engine.text(&format!("{run} --rm busybox touch /v/two"));
    engine.text("exec one test -e /v/two");
    let process = format!("{run} --isolation=process --rm busybox");
    engine.text(&format!("{process} touch /v/three"));
    engine.text("exec one test -e /v/three");
    engine.text("rm -f one");

    // What the host's kernel is to mount is shared, and nothing else.
    let run = "run --rm --network none";
    engine.text(&format!(
        "{run} --isolation=process -v new:/v busybox touch /v/x"
    ));
    engine.text(&format!("{run} -v new:/v busybox test -e /v/x"));
    engine.text("volume create image");
    let end = engine.run(&format!(
        "{run} --isolation=process -v image:/v busybox true"
    ));
    refused(&end, &["volume image", "type=shared"]);
    // A volume as it was before there were images.
    host(&format!(
        "cd {}; sed -i '/Options/,/}}/d; s/\"Scope\": \"local\",/\"Scope\": \"local\"/' new/volume.json",
        engine.path("data/volumes")
    ));
    engine.text(&format!("{run} -v new:/v busybox test -e /v/x"));
    // What somebody mounted in one is not ours to remove.
    engine.text("volume create --opt type=shared other");
    let mount = engine.path("data/volumes/other/_data");
    let theirs = engine.path("theirs");
    host(&format!(
        "mkdir {theirs}; touch {theirs}/file; mount --bind {theirs} {mount}"
    ));
    refused(&engine.run("volume rm other"), &["unmount", "other/_data"]);
    host(&format!("ls {theirs}/file; umount {mount}"));
    engine.text("volume rm other");
}

/// If it fails, nobody runs containers in a container in a VM: their overlays lie on a volume.
#[test]
fn an_overlay_lies_on_a_volume() {
    let engine = Engine::new("volume-overlay");
    let script =
        "mkdir -p /v/upper /v/work /low/sub /m; echo low >/low/sub/file; echo gone >/low/gone
        mount -t overlay o -o lowerdir=/low,upperdir=/v/upper,workdir=/v/work /m || exit 1
        rm /m/gone; echo new >>/m/sub/file; mv /m/sub/file /m/moved; mkdir /m/dir
        chmod 4755 /m/moved; umount /m; cat /v/upper/moved; stat -c %a /v/upper/moved
        test -c /v/upper/gone && echo whiteout";
    let line = "run --rm --network none --privileged -v data:/v busybox";
    let said = engine.script(line, script);
    assert_eq!(said, "low\nnew\n4755\nwhiteout");
}

/// If it fails, whoever kills a container loses what it had written.
#[test]
fn what_was_written_outlives_a_kill() {
    let engine = Engine::new("volume-kill");
    let script = "head -c 20m /dev/urandom >/v/file; md5sum </v/file; exec sleep 1000";
    engine.script(
        "run -d --name one --network none -v data:/v busybox",
        script,
    );
    wait_until("the file", || engine.text("logs one").contains('-'));
    let sum = engine.text("logs one");
    engine.text("rm -f one");
    let line = "run --rm --network none -v data:/v busybox";
    assert_eq!(engine.script(line, "md5sum </v/file"), sum);
    // The VM is killed: what was not synced may be lost, and nothing else; also for readers.
    let script = "head -c 5m /dev/urandom >/v/file; sync; md5sum </v/file; exec sleep 1000";
    engine.script(
        "run -d --name two --network none -v data:/v busybox",
        script,
    );
    wait_until("the file", || engine.text("logs two").contains('-'));
    let sum = engine.text("logs two");
    let pid = engine.text("inspect -f {{.State.Pid}} two");
    host(&format!("kill -9 {pid}"));
    wait_until("its end", || {
        engine.text("inspect -f {{.State.Status}} two") == "exited"
    });
    let line = "run --rm --network none -v data:/v:ro busybox";
    assert_eq!(engine.script(line, "md5sum </v/file"), sum);
}

/// If it fails, volumes are too small for good, or who has a shared directory cannot have an image, and
/// the other way round.
#[test]
fn a_volume_grows_and_changes_its_type() {
    let engine = Engine::new("volume-update");
    engine.text("volume create --opt size=64m data");
    let run = "run --rm --network none -v data:/v busybox";
    let size = || engine.script(run, "df -m /v | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2");
    let small: u64 = size().parse().unwrap();
    assert!((48..64).contains(&small), "{small}");
    let script = "echo kept >/v/file; ln /v/file /v/link; mkfifo /v/fifo; mkdir -p /v/dir/sub; chmod 1777 /v
                  head -c 100m /dev/zero >/v/big 2>/dev/null || rm /v/big; chown 7:8 /v/file /v/fifo /v/dir
                  chmod 500 /v/dir; mknod /v/gone c 0 0";
    engine.script(run, script);
    refused(&engine.run("volume update --opt size=32m data"), &["64MiB"]);
    engine.text("volume update --opt size=3g data");
    let large: u64 = size().parse().unwrap();
    assert!((2900..3072).contains(&large), "{large}");
    engine.script(run, "head -c 200m /dev/zero >/v/big && rm /v/big");
    // No device comes into being on the host, and nothing is lost for that.
    let end = engine.run("volume update --opt type=shared data");
    refused(&end, &["volume data stays what it was", "gone"]);
    engine.script(run, "rm /v/gone");

    let look = "cat /v/link; cd /v; find . | sort | xargs stat -c %n=%u:%g:%a:%F";
    let expected = engine.script(run, look);
    assert!(expected.contains("./fifo=7:8:"), "{expected}");
    for kind in ["shared", "image", "shared"] {
        let update = format!("volume update --opt type={kind} data");
        engine.text("run -d --name user --network none -v data:/v busybox sleep 1000");
        refused(&engine.run(&update), &["container user"]);
        engine.text("rm -f user");
        engine.text(&update);
        let inspect = engine.text("volume inspect data");
        let named = format!("\"type\": \"{kind}\"");
        assert!(inspect.contains(&named), "{inspect}");
        assert_eq!(engine.script(run, look), expected, "{kind}");
        let links = engine.script(run, "stat -c %h /v/link");
        assert_eq!(links, "2", "{kind}");
        let left = host(&format!("ls {}", engine.path("data/volumes/data")));
        assert_eq!(left.contains("volume.img"), kind == "image", "{left}");
        assert_eq!(left.contains("_data"), kind == "shared", "{left}");
    }
}

/// Runs in the database's container, as its user.
const SERVE: &str =
    "[ -e /data/db/PG_VERSION ] || initdb -D /data/db -U postgres -A trust --no-locale
    exec postgres -D /data/db -c listen_addresses=";

/// One more row after the other, each acknowledged on standard output when it is committed; beside it
/// another client that changes other rows.
const WRITE: &str = "pgbench -n -c 1 -T 100000 -U postgres postgres >/dev/null 2>&1 &
    n=$(psql -U postgres -Atc 'select coalesce(max(n), 0) from done')
    while :; do n=$((n + 1)); echo \"insert into done values ($n) returning n;\"; done |
        psql -U postgres -At";

/// What must be so whatever was killed: rows without gaps, and no half of a transaction.
const CHECK: &str = "select count(*) = max(n) and count(*) = count(distinct n),
    (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history),
    (select sum(bbalance) from pgbench_branches) = (select coalesce(sum(delta), 0) from pgbench_history),
    (select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta), 0) from pgbench_history),
    max(n) from done";

/// A database in a container, on a volume.
struct Database {
    engine: Engine,
}

impl Database {
    fn new(name: &str) -> Self {
        let engine = Engine::new(name);
        let image = guest_file("database.tar");
        engine.text(&format!("import {} database", image.display()));
        Self { engine }
    }

    fn query(&self, text: &str) -> Output {
        let mut args: Vec<&str> = "exec db psql -U postgres -At -v ON_ERROR_STOP=1 -c"
            .split(' ')
            .collect();
        args.push(text);
        self.engine.command(&args).output().unwrap()
    }

    fn wait_until_ready(&self) {
        wait_until("the database", || code(&self.query("select 1")) == 0);
    }
}

/// If it fails, a database on a volume loses what it said was committed when its VM is killed.
#[test]
fn no_commit_is_lost_when_the_vm_is_killed() {
    let kills = std::env::var("COFFERDAM_TEST_KILLS").ok();
    let kills: u64 = kills.map_or(2, |kills| kills.parse().unwrap());
    let database = Database::new("volume-database");
    let engine = &database.engine;
    let line = "run -d --name db --network none -u postgres -v data:/data database";
    engine.script(line, SERVE);
    database.wait_until_ready();
    engine.text("exec db pgbench -i -q -s 1 -U postgres postgres");
    said(
        "make a table",
        &database.query("create table done (n bigint primary key)"),
    );
    for round in 1..=kills {
        let path = engine.path("acknowledged");
        let mut writer = engine.command(&["exec", "db", "sh", "-c", WRITE]);
        let file = fs::File::create(&path).unwrap();
        let mut writer = writer.stdout(file).spawn().unwrap();
        let acknowledged = || {
            let text = fs::read_to_string(&path).unwrap();
            // What has no end of its line is not acknowledged.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let mut numbers = whole.lines().filter_map(|line| line.parse::<u64>().ok());
            (
                numbers.clone().count() as u64,
                numbers.next_back().unwrap_or(0),
            )
        };
        // At another moment each time.
        wait_until("commits", || acknowledged().0 >= 20 + round * 7 % 50);
        let pid = engine.text("inspect -f {{.State.Pid}} db");
        host(&format!("kill -9 {pid}"));
        let _ = writer.wait();
        let (_, last) = acknowledged();
        wait_until("its end", || {
            engine.text("inspect -f {{.State.Status}} db") == "exited"
        });
        engine.text("start db");
        database.wait_until_ready();
        let found = said("check", &database.query(CHECK));
        let (good, max) = found.rsplit_once('|').unwrap();
        assert_eq!(good, "t|t|t|t", "round {round}: {found}");
        let max: u64 = max.parse().unwrap();
        assert!(max >= last, "round {round}: {max} rows of {last}");
        println!("kill {round}: {last} acknowledged, {max} there");
    }
    engine.text("stop db");
}
