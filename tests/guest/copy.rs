//! Files in and out of containers: cp, diff, commit.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::thread;

use crate::container::{Engine, code, said};
use crate::harness::host;

/// If it fails, files do not come out of containers or into them as with Docker, whether they run or
/// not.
#[test]
fn files_are_copied() {
    let engine = Engine::new("cp");
    let (tree, out) = (engine.path("tree"), engine.path("out"));
    fs::create_dir_all(format!("{tree}/sub")).unwrap();
    fs::create_dir(&out).unwrap();
    fs::write(format!("{tree}/sub/file"), "x".repeat(300_000)).unwrap();
    fs::set_permissions(
        format!("{tree}/sub/file"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    std::os::unix::fs::symlink("sub/file", format!("{tree}/link")).unwrap();

    // One that never ran, one that runs, one that has ended: the same.
    let script = "echo 1 >/root/mine; ln -s /root/mine /root/link; exec sleep 1000";
    engine.script("create --name one --network none busybox", script);
    engine.text(&format!("cp {tree} one:/srv"));
    assert_eq!(engine.text("inspect -f {{.State.Status}} one"), "created");
    engine.text("start one");
    let listed = engine.script("exec one", "cd /srv; ls -ln sub/file link; wc -c <link");
    assert!(listed.contains("-rw-r-----    1 0        0"), "{listed}");
    assert!(
        listed.contains("link -> sub/file") && listed.ends_with("300000"),
        "{listed}"
    );
    engine.text(&format!("cp {tree}/. one:/tmp"));
    engine.text(&format!("cp {tree}/sub/file one:/root/named"));
    engine.text(&format!("cp -L {tree}/link one:/root/"));
    engine.script(
        "exec one",
        "test -d /tmp/sub && cmp /root/named /tmp/sub/file && test -f /root/link",
    );

    engine.text(&format!("cp one:/root/mine {out}/renamed"));
    engine.text(&format!("cp one:srv {out}"));
    assert_eq!(fs::read_to_string(format!("{out}/renamed")).unwrap(), "1\n");
    assert_eq!(host(&format!("diff -r {tree} {out}/srv")), "");
    assert!(
        fs::symlink_metadata(format!("{out}/srv/link"))
            .unwrap()
            .is_symlink()
    );
    for (line, why) in [
        ("cp one:/nothing /tmp", "/nothing"),
        ("cp one:/etc/passwd one:/tmp", "one of SOURCE and TARGET"),
        ("cp /etc one:/etc/passwd", "no directory"),
        ("cp /etc/passwd one:/nothing/here/", "/nothing/here"),
        ("cp /nothing one:/", "/nothing"),
        ("cp nobody:/etc /tmp", "nobody"),
    ] {
        let end = engine.run(line);
        let text = String::from_utf8_lossy(&end.stderr).into_owned();
        assert!(code(&end) != 0 && text.contains(why), "{line}: {text}");
    }

    engine.text("stop -t 0 one");
    let tar = engine.run("cp one:/srv/sub -");
    let mut unpack = Command::new("tar");
    unpack.args(["-C", &out, "-xf", "-"]).stdin(Stdio::piped());
    let mut unpack = unpack.spawn().unwrap();
    unpack.stdin.take().unwrap().write_all(&tar.stdout).unwrap();
    assert!(unpack.wait().unwrap().success());
    host(&format!("cmp {out}/sub/file {tree}/sub/file"));
    let mut into = engine.command(&["cp", "-", "one:/root"]);
    let mut into = into.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = into.stdin.take().unwrap();
    let writer = thread::spawn(move || input.write_all(&tar.stdout).unwrap());
    assert!(into.wait().unwrap().success());
    writer.join().unwrap();
    // It is as it was: not running, with its exit code.
    assert_eq!(engine.text("inspect -f {{.State.ExitCode}} one"), "137");
    engine.text("start one");
    engine.script("exec one", "cmp /root/sub/file /srv/sub/file");
    engine.text("rm -f one");
}

/// If it fails, a container that had files copied to the host has others written where it likes, or gets
/// files of the host.
#[test]
fn what_a_copy_brought_is_not_followed() {
    let engine = Engine::new("cp-links");
    let (out, outside) = (engine.path("out"), engine.path("outside"));
    for dir in [&out, &outside] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(format!("{outside}/file"), "the host's").unwrap();
    let links = format!(
        "mkdir /tree; ln -s {outside} /data; ln -s {outside} /tree/sub; ln -s {outside}/file /one; \
         exec sleep 1000"
    );
    engine.script("run -d --name one --network none busybox", &links);
    engine.text("exec one test -L /one");
    for name in ["data", "tree", "one"] {
        engine.text(&format!("cp one:/{name} {out}/{name}"));
    }
    engine.script(
        "exec one",
        "rm /data /tree/sub /one; mkdir /data /tree/sub; echo theirs | tee /data/new /tree/sub/new >/one",
    );
    for line in [
        format!("one:/data {out}/data"),
        format!("one:/data {out}/data/"),
        format!("one:/data {out}"),
        format!("one:/data/. {out}/data/."),
        format!("-a one:/data {out}/data/made"),
        format!("one:/tree {out}"),
        format!("one:/tree/sub {out}/tree"),
        format!("one:/tree/sub/new {out}/tree/sub/new"),
        format!("one:/tree/sub/new {out}/tree/sub/file"),
        format!("{out}/data/. one:/root"),
        format!("{out}/data/ one:/root"),
        format!("{out}/data/file one:/root"),
        format!("{out}/tree/sub/file one:/root"),
    ] {
        let end = engine.run(&format!("cp {line}"));
        assert_ne!(code(&end), 0, "{line}: {end:?}");
    }
    let end = engine.run(&format!("save -o {out}/one busybox"));
    assert_ne!(code(&end), 0, "{end:?}");
    assert_eq!(engine.text("exec one ls /root"), "");
    assert_eq!(host(&format!("ls {outside}")), "file\n");
    let file = fs::read_to_string(format!("{outside}/file")).unwrap();
    assert_eq!(file, "the host's");
    // A file takes the place of a link, and who says so has links followed.
    engine.text(&format!("cp one:/one {out}/one"));
    let one = fs::symlink_metadata(format!("{out}/one")).unwrap();
    assert!(one.is_file());
    engine.text(&format!("cp -L {out}/data/file one:/root"));
    assert_eq!(engine.text("exec one cat /root/file"), "the host's");
    engine.text("rm -f one");
}

/// If it fails, what a container changed is not seen, or the image that is made of it runs neither here
/// nor with Podman.
#[test]
fn changes_become_an_image() {
    let engine = Engine::new("commit");
    let script = "mkdir /new; echo 2 >/new/file; rm /etc/group; echo more >>/etc/passwd; exit 4";
    let line = "run --name one --network none -e KEPT=yes -w /new busybox";
    assert_eq!(code(&engine.shell(line, script)), 4);
    let diff = engine.text("diff one");
    let lines: Vec<&str> = diff.lines().collect();
    for expected in [
        "A /new",
        "A /new/file",
        "D /etc/group",
        "C /etc/passwd",
        "C /etc",
    ] {
        assert!(lines.contains(&expected), "{expected} is not in\n{diff}");
    }
    assert!(
        !diff.contains("/proc") && !diff.contains("resolv.conf"),
        "{diff}"
    );
    let mut commit = vec!["commit", "-m", "changed", "-c", "LABEL a=b", "-c"];
    commit.extend([r#"CMD ["sh", "-c", "cat file; echo $KEPT; test ! -e /etc/group"]"#]);
    commit.extend(["one", "made:v1"]);
    let id = said("commit", &engine.command(&commit).output().unwrap());
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(engine.text("run --rm --network none made:v1"), "2\nyes");

    // Of one that runs: it is frozen for it, and goes on.
    engine.text("run -d --name two --network none made:v1 sleep 1000");
    engine.script("exec two", "echo 3 >/new/third");
    assert_eq!(engine.text("diff two"), "C /new\nA /new/third");
    engine.text("commit two made:v2");
    engine.text("exec two true");
    engine.text("rm -f two");
    assert_eq!(
        engine.text("run --rm --network none made:v2 cat third"),
        "3"
    );

    let saved = engine.path("saved.tar");
    engine.text(&format!("save -o {saved} made:v1"));
    let podman = format!(
        "podman --root {} --runroot {} --storage-driver vfs",
        engine.path("podman"),
        engine.path("podman-run")
    );
    host(&format!("{podman} load -q -i {saved}"));
    let ran = host(&format!(
        "{podman} run --rm --network none --cgroups disabled made:v1"
    ));
    assert_eq!(ran, "2\nyes\n");
}

/// If it fails, programs that are no init leave zombies in a container with `--init`, cannot be stopped
/// but by KILL, or end with another exit code.
#[test]
fn an_init_reaps_and_passes_signals_on() {
    let engine = Engine::new("init");
    let script = "sh -c 'sleep 0.1 & exec true'; sleep 0.5; ps -o pid,stat,comm; exit 7";
    let end = engine.shell("run --rm --init --network none busybox", script);
    let text = String::from_utf8_lossy(&end.stdout).into_owned();
    assert_eq!(code(&end), 7, "{end:?}");
    assert!(
        text.contains("cofferdam-init") && !text.contains("Z "),
        "{text}"
    );
    engine.text("run -d --init --name one --network none busybox sleep 1000");
    engine.text("stop one");
    assert_eq!(engine.text("inspect -f {{.State.ExitCode}} one"), "143");
    engine.text("rm one");
}
