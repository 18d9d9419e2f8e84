//! Containers on the host's own kernel, in the hands of runc or crun.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use crate::container::{Engine, code, said};
use crate::harness::{host, program, wait_until};

/// Both, where they are there.
const RUNTIMES: [&str; 2] = ["runc", "crun"];

#[track_caller]
fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// If it fails, an image does not run as a process to be compared, or differs there in exit codes
/// and streams.
#[test]
fn an_image_runs_as_a_process() {
    let engine = Engine::for_processes("process");
    let options = "--isolation=process --network none";
    let release = engine.text(&format!("run --rm {options} busybox uname -r"));
    assert_eq!(release, host("uname -r").trim());
    let line = format!("run --rm {options} busybox");
    let end = engine.shell(&line, "echo out; echo err >&2; exit 42");
    assert_eq!(code(&end), 42, "{end:?}");
    assert_eq!(
        (end.stdout.as_slice(), end.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(code(&engine.run(&format!("{line} /nothing/here"))), 127);
    assert_eq!(
        code(&engine.run("run --rm --isolation=process --network passt busybox true")),
        125
    );
    engine.text(&format!("run -d --name one {options} busybox sleep 1000"));
    assert_eq!(code(&engine.shell("exec one", "exit 4")), 4);
    engine.text("pause one");
    engine.text("unpause one");
    engine.text("stop -t 1 one");
    assert_eq!(engine.text("inspect -f {{.State.ExitCode}} one"), "137");
    engine.text("rm one");
    let pid = format!("run -d --name two {options} busybox sleep 1234");
    engine.text(&pid);
    let shim = engine.text("inspect -f {{.Cofferdam.Shim}} two");
    host(&format!("kill -9 {shim}"));
    engine.text("rm -f two");
    assert_eq!(host("pgrep -xf 'sleep 1234' || :"), "");
}

/// If it fails, a process runs as another user than the image's files say, or as root.
#[test]
fn users_of_a_process_are_the_images() {
    let engine = Engine::for_processes("process-users");
    let script = "echo www:x:33:34::/srv:/bin/sh >>/etc/passwd
                  printf 'www:x:34:\nlogs:x:5:www\n' >>/etc/group";
    engine.script(
        "run --isolation=process --name made --network none busybox",
        script,
    );
    engine.text("commit made users");
    for runtime in RUNTIMES {
        let run = format!("run --isolation=process --runtime {runtime} --network none");
        let id = |user: &str| engine.script(&format!("{run} --rm -u {user} users"), "id -u; id -G");
        assert_eq!(id("www"), "33\n34 5", "{runtime}");
        assert_eq!(id("33"), "33\n34 5", "{runtime}");
        assert_eq!(id("www:logs"), "33\n5", "{runtime}");
        assert_eq!(id("1000:7"), "1000\n7", "{runtime}");
        let end = engine.run(&format!("{run} --rm -u nobody-here users true"));
        assert_eq!(code(&end), 125);
        assert!(errors(&end).contains("no user nobody-here in /etc/passwd"));

        engine.text(&format!("{run} -d --name one -u www users sleep 1000"));
        assert_eq!(engine.script("exec one", "id -u; id -G"), "33\n34 5");
        let rights = "grep CapEff /proc/self/status; touch /no 2>&1";
        let said = engine.shell("exec one", rights);
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            said.contains("0000000000000000") && said.contains("denied"),
            "{said}"
        );
        assert_eq!(
            engine.script("exec -u root one", "id -u; echo x >/yes"),
            "0"
        );
        assert_eq!(
            engine.script("exec -u 1000:logs one", "id -u; id -G"),
            "1000\n5"
        );
        let said = engine.script(
            "exec --privileged -u root -e A=b -w /tmp one",
            "pwd; echo $A",
        );
        assert_eq!(said, "/tmp\nb");
        let end = engine.run("exec -u nobody-here one true");
        assert!(
            code(&end) != 0 && errors(&end).contains("no user nobody-here"),
            "{end:?}"
        );
        let line = format!("{} exec -it one sh -c 'tty; exit 3'", program());
        let mut typed = Command::new("script");
        typed.args(["-qec", &line, "/dev/null"]);
        let own = engine.command::<&str>(&[]);
        typed.envs(
            own.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        let end = typed.output().unwrap();
        let text = String::from_utf8_lossy(&end.stdout);
        assert!(code(&end) == 3 && text.contains("/dev/pts/"), "{end:?}");
        engine.text("rm -f one");
    }
}

/// If it fails, programs that are no init leave zombies in a process with `--init`, cannot be stopped but
/// by KILL, or end with another exit code.
#[test]
fn an_init_of_the_hosts_runs_a_process() {
    let engine = Engine::for_processes("process-init");
    for runtime in RUNTIMES {
        let run = format!("run --isolation=process --runtime {runtime} --init --network none");
        let script = "sh -c 'sleep 0.1 & exec true'; sleep 0.5; ps -o pid,stat,comm; exit 7";
        let end = engine.shell(&format!("{run} --rm busybox"), script);
        let text = String::from_utf8_lossy(&end.stdout).into_owned();
        assert_eq!(code(&end), 7, "{end:?}");
        assert!(
            text.contains("1 S    init") && !text.contains("Z "),
            "{text}"
        );
        engine.text(&format!("{run} -d --name one busybox sleep 1000"));
        engine.text("stop one");
        assert_eq!(engine.text("inspect -f {{.State.ExitCode}} one"), "143");
        assert_eq!(engine.text("inspect -f {{.Path}} one"), "sleep");
        engine.text("rm one");
    }
}

/// If it fails, nobody learns that a process is unwell, or checks that hang stay.
#[test]
fn a_process_is_asked_whether_it_is_well() {
    let engine = Engine::for_processes("process-health");
    for runtime in RUNTIMES {
        let line = format!(
            "run -d --name one --isolation=process --runtime {runtime} --network none \
             --health-interval 300ms --health-retries 1 --health-timeout 5s --health-cmd"
        );
        let mut args: Vec<&str> = line.split_whitespace().collect();
        let check = "echo asked; test ! -e /slow || exec sleep 4321; test ! -e /bad";
        args.extend([check, "busybox", "sleep", "1000"]);
        said("run", &engine.command(&args).output().unwrap());
        let status = || engine.text("inspect -f {{.State.Health.Status}} one");
        wait_until("health", || status() == "healthy");
        engine.text("exec one touch /bad");
        wait_until("sickness", || status() == "unhealthy");
        let log = || engine.text("inspect one").replace(char::is_whitespace, "");
        assert!(log().contains("asked"), "{}", log());
        assert!(log().contains("\"ExitCode\":1"), "{}", log());
        engine.text("exec one mv /bad /slow");
        wait_until("a check that hangs", || log().contains("didnotendwithin5s"));
        engine.text("exec one rm /slow");
        wait_until("health", || status() == "healthy");
        assert_eq!(host("pgrep -xf 'sleep 4321' || :"), "");
        engine.text("rm -f one");
    }
}

/// If it fails, a process does not have the host's devices that it was given, or more of them.
#[test]
fn a_process_has_devices_of_the_hosts() {
    let engine = Engine::for_processes("process-devices");
    let disk = engine.path("disk.img");
    host(&format!(
        "truncate -s 1M {disk}; echo content | dd of={disk} conv=notrunc"
    ));
    let node = host(&format!("losetup -f --show {disk}"));
    let node = node.trim();
    for runtime in RUNTIMES {
        let run = format!("run --rm --isolation=process --runtime {runtime} --network none");
        let line = format!("{run} --device {node}:/dev/data:rw --device /dev/kmsg:r busybox");
        let said = engine.script(
            &line,
            "head -n 1 /dev/data; echo changed >/dev/data; ls -l /dev/kmsg | cut -c1
             echo x 2>/dev/null >/dev/kmsg || echo refused
             mknod /tmp/mem c 1 1; head -c 1 /tmp/mem 2>/dev/null || echo refused",
        );
        assert_eq!(said, "content\nc\nrefused\nrefused", "{runtime}");
        assert!(host(&format!("head -c 7 {disk}")).starts_with("changed"));
        host(&format!("echo content | dd of={node} conv=fsync"));
        for bad in ["/dev/nothing", "/etc/passwd"] {
            let end = engine.run(&format!("{run} --device {bad} busybox true"));
            assert!(code(&end) == 125 && errors(&end).contains(bad), "{end:?}");
        }
        let said = engine.script(
            &format!("{run} --privileged busybox"),
            &format!("head -n 1 {node}; head -n 1 /dev/kmsg | wc -l; readlink /dev/ptmx"),
        );
        assert_eq!(said, "content\n1\npts/ptmx", "{runtime}");
    }
    host(&format!("losetup -d {node}"));
}

/// If it fails, nobody sees what a process uses, or what runs in it.
#[test]
fn a_process_is_measured() {
    let engine = Engine::for_processes("process-stats");
    for runtime in RUNTIMES {
        let run = format!("run -d --isolation=process --runtime {runtime} --network none");
        engine.script(
            &format!("{run} --name one -m 64m busybox"),
            "sleep 1111 & exec sleep 2222",
        );
        wait_until("both", || {
            // Asleep, too: they may be found in the middle of becoming it.
            engine
                .text("top one")
                .matches("S   00:00:00   sleep ")
                .count()
                == 2
        });
        let top = engine.text("top one");
        assert!(
            top.starts_with("UID") && top.contains("S   00:00:00   sleep 1111"),
            "{top}"
        );
        let stats = engine.text("stats --no-stream --format json one");
        for expected in [
            "\"Name\":\"one\"",
            "/ 64MiB\"",
            "\"PIDs\":\"2\"",
            "\"NetIO\":\"0B / 0B\"",
        ] {
            assert!(stats.contains(expected), "{expected} is not in {stats}");
        }
        assert!(engine.text("stats --no-stream").contains("one"));
        engine.text("stop -t 0 one");
        let end = engine.run("top one");
        assert!(
            code(&end) != 0 && errors(&end).contains("not running"),
            "{end:?}"
        );
        engine.text("rm one");
    }
}

/// If it fails, files do not come out of a process or into it, or a hostile one gets at the host's.
#[test]
fn files_of_a_process_are_copied() {
    let engine = Engine::for_processes("process-cp");
    let (tree, out, secret) = (
        engine.path("tree"),
        engine.path("out"),
        engine.path("secret"),
    );
    fs::create_dir_all(format!("{tree}/sub")).unwrap();
    fs::create_dir(&out).unwrap();
    fs::write(format!("{tree}/sub/file"), "x".repeat(300_000)).unwrap();
    fs::write(&secret, "the host's").unwrap();
    symlink("sub/file", format!("{tree}/link")).unwrap();
    let script = format!(
        "mkdir -p /srv {out}; echo 1 >/root/mine; ln -s /root/mine /link; ln -s {secret} /secret
         ln -s / /srv/top; mkfifo /srv/fifo; exec sleep 1000"
    );
    engine.script(
        "run -d --isolation=process --network none --name one busybox",
        &script,
    );
    wait_until("the files", || {
        code(&engine.run("exec one test -e /srv/fifo")) == 0
    });

    engine.text(&format!("cp {tree} one:/srv"));
    engine.text(&format!("cp {tree}/sub/file one:/root/named"));
    // Through a link that is absolute in the container.
    engine.text(&format!("cp {secret} one:/srv/top/tmp/"));
    engine.script(
        "exec one",
        "cd /srv/tree; cmp sub/file /root/named; cmp link /root/named; test -e /tmp/secret
         test \"$(stat -c %u:%g sub/file)\" = 0:0",
    );
    let end = engine.run(&format!("cp one:/srv {out}"));
    assert!(code(&end) == 0 && errors(&end).is_empty(), "{end:?}");
    assert_eq!(
        host(&format!("diff -r --no-dereference {tree} {out}/srv/tree")),
        ""
    );
    let link = fs::read_link(format!("{out}/srv/top")).unwrap();
    assert_eq!(link, Path::new("/"));
    engine.text(&format!("cp -L one:/link {out}/mine"));
    assert_eq!(fs::read_to_string(format!("{out}/mine")).unwrap(), "1\n");

    for (line, why) in [
        (format!("cp -L one:/secret {out}/stolen"), "/secret"),
        (format!("cp one:/secret/ {out}/stolen"), "/secret"),
        (format!("cp one:/proc/1/root/etc {out}/stolen"), "/proc"),
        (
            format!("cp {tree} one:{out}/../../../../nothing/here"),
            "nothing",
        ),
        ("cp /etc one:/root/mine".into(), "no directory"),
    ] {
        let end = engine.run(&line);
        assert!(
            code(&end) != 0 && errors(&end).contains(why),
            "{line}: {end:?}"
        );
        assert!(!Path::new(&format!("{out}/stolen")).exists(), "{line}");
    }
    engine.text("stop -t 0 one");
    let end = engine.run(&format!("cp one:/root/mine {out}"));
    assert!(
        code(&end) != 0 && errors(&end).contains("not running"),
        "{end:?}"
    );
    engine.text("rm one");
}

/// If it fails, what was mounted in a process leaves its traces in what that changed, and in images.
#[test]
fn changes_of_a_process_are_its_own() {
    let engine = Engine::for_processes("process-diff");
    for runtime in RUNTIMES {
        let run = format!("run --isolation=process --runtime {runtime} --network none");
        engine.text(&format!("{run} --name one -v data:/data busybox true"));
        assert_eq!(engine.text("diff one"), "", "{runtime}");
        engine.text("rm one");
        let script = "echo x >/etc/own; mkdir /own";
        engine.script(&format!("{run} --name one -v data:/data busybox"), script);
        assert_eq!(engine.text("diff one"), "C /etc\nA /etc/own\nA /own");
        engine.text("commit one made");
        engine.text("rm one");
        engine.script(
            &format!("{run} --rm made"),
            "test -d /own -a -f /etc/own -a ! -e /data",
        );
    }
}

/// If it fails, a process finds its new volume empty or not its own, or loses what one had.
#[test]
fn a_new_volume_of_a_process_gets_what_the_image_has() {
    let engine = Engine::for_processes("process-volume");
    let run = "run --isolation=process --network none";
    let script = "mkdir /data; echo 1 >/data/file; chown 33:34 /data /data/file; chmod 750 /data";
    engine.script(&format!("{run} --name made busybox"), script);
    engine.text("commit made filled");
    let run = format!("{run} --rm -v new:/data filled");
    let said = engine.script(
        &run,
        "stat -c %u:%g:%a /data /data/file; cat /data/file; echo 2 >/data/file",
    );
    assert_eq!(said, "33:34:750\n33:34:644\n1");
    assert_eq!(engine.script(&run, "cat /data/file"), "2");
}
