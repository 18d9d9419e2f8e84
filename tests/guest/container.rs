//! Containers in VMs of their own: run, watched, entered, stopped, removed.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use crate::harness::{TempDir, guest_file, host, program, wait_until};

/// Container mode with directories of its own. All that it started goes with it.
pub struct Engine {
    dir: TempDir,
}

impl Engine {
    /// `name` is that of no other test.
    pub fn new(name: &str) -> Self {
        Self {
            dir: TempDir::new(name),
        }
    }

    /// As [`Engine::new`], not on an overlay, as the lab's root is: containers on the host's kernel
    /// have one of their own, which cannot lie there.
    pub fn for_processes(name: &str) -> Self {
        let dir = TempDir::within(Path::new("/run"), name);
        Self { dir }
    }

    /// A path for the test's own use.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// `cofferdam` with arguments.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .env("COFFERDAM_DATA", self.dir.join("data"))
            .env("COFFERDAM_RUN", self.dir.join("run"))
            .env("COFFERDAM_GUEST", guest_file("vmlinux").parent().unwrap())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command, split at spaces, to its end.
    pub fn run(&self, line: &str) -> Output {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.command(&args).output().unwrap()
    }

    /// Runs a command with a last argument that has spaces.
    pub fn shell(&self, line: &str, script: &str) -> Output {
        let mut args: Vec<&str> = line.split_whitespace().collect();
        args.extend(["sh", "-c", script]);
        self.command(&args).output().unwrap()
    }

    /// What a command prints, which must succeed.
    #[track_caller]
    pub fn text(&self, line: &str) -> String {
        said(line, &self.run(line))
    }

    /// What a script in a container prints, which must succeed.
    #[track_caller]
    pub fn script(&self, line: &str, script: &str) -> String {
        said(script, &self.shell(line, script))
    }

    /// Processes that belong to this test's containers.
    fn processes(&self) -> Vec<String> {
        let ours = self.dir.join("").display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if name.starts_with("cofferdam") && String::from_utf8_lossy(&environ).contains(&ours) {
                found.push(format!("{} {name}", entry.file_name().to_string_lossy()));
            }
        }
        found
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for process in self.processes() {
            let pid = process.split(' ').next().unwrap_or_default();
            let _ = Command::new("kill").args(["-9", pid]).output();
        }
    }
}

/// What a command printed, which must have succeeded.
#[track_caller]
pub fn said(what: &str, output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{what}: {:?}\n{text}{errors}",
        output.status
    );
    text.trim_end().to_owned()
}

/// How a command ended.
#[track_caller]
pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

/// If it fails, `cofferdam run` does not run an image in a VM, or scripts see other exit codes and
/// streams than Docker's.
#[test]
fn an_image_runs_in_a_vm() {
    let engine = Engine::new("run");
    let release = engine.text("run --rm busybox uname -r");
    assert_ne!(release, host("uname -r").trim());
    let end = engine.shell("run --rm busybox", "echo out; echo err >&2; exit 42");
    assert_eq!(code(&end), 42, "{end:?}");
    assert_eq!(end.stdout, b"out\n");
    assert_eq!(end.stderr, b"err\n");
    assert_eq!(code(&engine.run("run --rm busybox /nothing/here")), 127);
    assert_eq!(code(&engine.run("run --rm busybox /etc/passwd")), 126);
    assert_eq!(code(&engine.run("run --rm no-such-image-here true")), 125);
    assert_eq!(code(&engine.run("run --rm --gpus all busybox true")), 125);
    assert_eq!(engine.text("ps -aq"), "");

    let mut child = engine
        .command(&["run", "--rm", "-i", "busybox", "sh", "-c", "cat; exit 3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = "line\n".repeat(100_000);
    let mut input = child.stdin.take().unwrap();
    let theirs = text.clone();
    thread::spawn(move || input.write_all(theirs.as_bytes()).unwrap());
    let mut back = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut back)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(back == text, "{} bytes came back", back.len());
    wait_until("the processes' end", || engine.processes().is_empty());
}

/// If it fails, an option of Docker's does not do in a VM what it does in a container.
#[test]
fn options_arrive() {
    let engine = Engine::new("options");
    fs::write(engine.path("env"), "FROM_FILE=yes\n").unwrap();
    let line = format!(
        "run --rm -e A=1 --env-file {} -w /var --hostname box -u 1000:100 --read-only \
         --tmpfs /scratch:size=1m -m 64m --cpus 2 --pids-limit 50 --ulimit nofile=100:200 \
         --add-host db:10.1.2.3 --dns 9.9.9.9 --sysctl net.core.somaxconn=77 --network none busybox",
        engine.path("env")
    );
    let said = engine.script(
        &line,
        "echo $A $FROM_FILE $PWD $(hostname) $(id -u):$(id -g) $(nproc) $(ulimit -n)
         ! touch /bin/x 2>/dev/null && echo read-only
         df /scratch | grep -q 1024 && echo scratch
         grep -q '10.1.2.3.*db' /etc/hosts && grep -q 9.9.9.9 /etc/resolv.conf && echo names
         cat /proc/sys/net/core/somaxconn
         ls /sys/class/net | tr '\\n' ' '",
    );
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    let expected = [
        "1 yes /var box 1000:100 2 100",
        "read-only",
        "scratch",
        "names",
        "77",
        "lo",
    ];
    assert_eq!(lines, expected);
    let end = engine.shell(
        "run --name hog -m 64m --network none busybox",
        "head -c 200m /dev/zero | tail >/dev/null",
    );
    assert_ne!(code(&end), 0);
    let oom = engine.text("inspect -f {{.State.OOMKilled}} hog");
    assert_eq!(oom, "true");
    assert_eq!(
        engine.text("run --rm --network none -u nobody busybox id -u -n"),
        "nobody"
    );
    assert_eq!(
        code(&engine.run("run --rm --network none -u nobody-here busybox id")),
        125
    );
    let caps = "run --rm --network none --cap-drop ALL --cap-add CHOWN --security-opt \
                no-new-privileges busybox grep -E Cap(Eff|Bnd)|NoNewPrivs /proc/self/status";
    let caps = engine.text(caps);
    assert_eq!(caps.matches("0000000000000001").count(), 2, "{caps}");
    assert!(caps.contains("NoNewPrivs:\t1"), "{caps}");
}

/// If it fails, containers in the background are lost, or cannot be entered, watched and ended.
#[test]
fn a_detached_container_is_watched_entered_and_ended() {
    let engine = Engine::new("detached");
    let id = engine.script(
        "run -d --name one --network none busybox",
        "echo first; echo second >&2; trap 'echo bye; exit 7' TERM; while :; do sleep 0.1; done",
    );
    assert_eq!(id.len(), 64);
    wait_until("its output", || engine.text("logs one").contains("first"));
    let logs = engine.run("logs one");
    assert_eq!(
        (logs.stdout.as_slice(), logs.stderr.as_slice()),
        (&b"first\n"[..], &b"second\n"[..])
    );
    assert!(engine.text("ps").contains("one"));
    assert_eq!(
        engine.text("ps --format {{.Names}}={{.State}}"),
        "one=running"
    );

    // More processes in it.
    assert_eq!(code(&engine.shell("exec one", "exit 5")), 5);
    assert_eq!(
        engine.script("exec -e B=2 -w /bin one", "echo $B $PWD"),
        "2 /bin"
    );
    assert_eq!(code(&engine.run("exec one /nothing")), 127);
    let mut cat = engine.command(&["exec", "-i", "one", "cat"]);
    let mut cat = cat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin
        .take()
        .unwrap()
        .write_all(b"through exec")
        .unwrap();
    let mut back = String::new();
    cat.stdout
        .take()
        .unwrap()
        .read_to_string(&mut back)
        .unwrap();
    assert_eq!(
        (cat.wait().unwrap().code(), back.as_str()),
        (Some(0), "through exec")
    );
    assert!(engine.text("top one").contains("sleep"));
    assert!(engine.text("stats --no-stream one").contains("MiB"));

    engine.text("pause one");
    assert_eq!(engine.text("inspect -f {{.State.Status}} one"), "paused");
    engine.text("unpause one");

    // What it is told to do, it does; and it is found as it ended.
    let waiting = engine
        .command(&["wait", "one"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(code(&engine.run("rm one")), 1);
    engine.text("stop one");
    assert_eq!(said("wait", &waiting.wait_with_output().unwrap()), "7");
    assert!(engine.text("logs one").ends_with("bye"));
    assert_eq!(engine.text("inspect -f {{.State.ExitCode}} one"), "7");
    assert!(engine.text("ps -a").contains("Exited (7)"));

    // What it wrote is there when it starts again.
    engine.text("start one");
    engine.text("exec one touch /root/kept");
    engine.text("kill one");
    assert_eq!(engine.text("wait one"), "137");
    engine.text("start one");
    engine.text("exec one test -e /root/kept");
    engine.text("rm -f one");
    assert_eq!(code(&engine.run("inspect one")), 1);
    for command in ["exec one true", "logs one", "start one", "rm one"] {
        assert_eq!(code(&engine.run(command)), 1, "{command}");
    }
    wait_until("the processes' end", || engine.processes().is_empty());
}

/// If it fails, files of the host do not come into containers as they should, or more of them than
/// were given.
#[test]
fn files_are_shared() {
    let engine = Engine::new("files");
    let (shared, single) = (engine.path("shared"), engine.path("single"));
    fs::create_dir(&shared).unwrap();
    fs::write(format!("{shared}/file"), "from the host").unwrap();
    fs::write(&single, "alone").unwrap();
    let line = format!(
        "run --rm --network none -v {shared}:/data -v {shared}:/ro:ro -v {single}:/etc/single \
         -v named:/vol busybox"
    );
    let said = engine.script(
        &line,
        "cat /data/file /etc/single; echo; echo back >/data/new; ! echo x >/ro/x 2>/dev/null &&
         echo kept >/vol/kept && echo more >>/etc/single && echo done",
    );
    assert_eq!(said, "from the hostalone\ndone");
    assert_eq!(
        fs::read_to_string(format!("{shared}/new")).unwrap(),
        "back\n"
    );
    assert_eq!(fs::read_to_string(&single).unwrap(), "alonemore\n");
    assert_eq!(
        engine.text("run --rm --network none -v named:/v:ro busybox cat /v/kept"),
        "kept"
    );
    // A new one gets what the image has there, once.
    let line = "run --rm --network none -v fresh:/etc busybox";
    let said = engine.script(
        line,
        "grep -c ^root: /etc/passwd; echo changed >/etc/passwd",
    );
    assert_eq!(said, "1");
    assert_eq!(engine.text(&format!("{line} cat /etc/passwd")), "changed");
    assert_eq!(engine.text("volume ls -q"), "fresh\nnamed");
    engine.text("volume rm named fresh");
}

/// If it fails, a container's root makes any user of the host root of the host, by programs and devices in
/// what it shares with the host.
#[test]
fn shared_programs_and_devices_get_no_rights() {
    let engine = Engine::new("rights");
    let (shared, trusted) = (engine.path("shared"), engine.path("trusted"));
    for dir in [&shared, &trusted] {
        fs::create_dir(dir).unwrap();
    }
    // Nobody but us reaches what is ours, whoever made it first.
    engine.text("volume create --opt type=shared named");
    for dir in ["", "/volumes"] {
        let mode = host(&format!("stat -c %a {}{dir}", engine.path("data")));
        assert_eq!(mode, "700\n", "{dir}");
    }
    let line = format!(
        "run --rm --network none -v {shared}:/shared -v named:/volume -v {trusted}:/trusted:suid,dev \
         busybox"
    );
    let said = engine.script(
        &line,
        "for at in shared volume trusted; do cd /$at; cp /bin/busybox program; chmod 6755 program
         mkdir dir; chmod 2775 dir; mknod pipe p; mknod null c 1 3 2>/dev/null || echo refused
         stat -c %a program dir; done",
    );
    assert_eq!(said, "refused\n755\n2775\nrefused\n755\n2775\n6755\n2775");
    let volume = engine.path("data/volumes/named/_data");
    for (dir, expected) in [
        (&shared, "2775 755\n"),
        (&volume, "2775 755\n"),
        (&trusted, "2775 6755\n"),
    ] {
        let modes = host(&format!("cd {dir}; echo $(stat -c %a dir program)"));
        assert_eq!(modes, expected, "{dir}");
        let is_made = host(&format!("cd {dir}; test -c null && echo made || true"));
        assert_eq!(is_made == "made\n", *dir == trusted, "{dir}");
    }
    engine.text("volume rm named");
}

/// If it fails, nobody can work in a container from a terminal.
#[test]
fn a_container_has_a_terminal() {
    let engine = Engine::new("terminal");
    let run = format!(
        "stty rows 33 cols 99; {} run -it --rm --network none busybox sh -c \
         'tty; stty size; read line; echo got:$line; exit 9'",
        program()
    );
    let mut script = engine.command::<&str>(&[]);
    let env: Vec<_> = script
        .get_envs()
        .map(|(k, v)| (k.to_owned(), v.unwrap().to_owned()))
        .collect();
    script = Command::new("script");
    script.envs(env).args(["-qec", &run, "/dev/null"]);
    let mut child: Child = script
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    thread::sleep(Duration::from_secs(1));
    input.write_all(b"typed\r").unwrap();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9), "{text}");
    for part in ["/dev/pts/0", "33 99", "got:typed"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

/// If it fails, who is killed leaves processes, files or a container behind that cannot be removed.
#[test]
fn the_killed_leave_nothing_behind() {
    let engine = Engine::new("killed");
    for victim in ["{{.State.Pid}}", "{{.Cofferdam.Shim}}"] {
        engine.text("run -d --name victim --network none busybox sleep 1000");
        let pid = engine.text(&format!("inspect -f {victim} victim"));
        host(&format!("kill -9 {pid}"));
        wait_until("the container's end", || {
            engine.text("inspect -f {{.State.Status}} victim") == "exited"
        });
        assert_eq!(engine.text("inspect -f {{.State.ExitCode}} victim"), "137");
        let status = engine.text("ps -a --format {{.Status}}");
        assert!(
            status.starts_with("Exited (137) ") && !status.contains("year"),
            "{status}"
        );
        wait_until("the processes' end", || engine.processes().is_empty());
        engine.text("rm victim");
    }
    engine.text("run -d --rm --name again --network none busybox sleep 1000");
    let pid = engine.text("inspect -f {{.Cofferdam.Shim}} again");
    host(&format!("kill -9 {pid}"));
    engine.text("rm -f again");
    wait_until("the processes' end", || engine.processes().is_empty());
    for place in ["data/containers", "run"] {
        let left = host(&format!(
            "cd {}; ls -A | grep -v -e .lock -e events || :",
            engine.path(place)
        ));
        assert_eq!(left, "", "{place}");
    }
}

/// If it fails, containers that fail stay down, or start again without end.
#[test]
fn a_container_that_fails_starts_again() {
    let engine = Engine::new("restart");
    let line = "run -d --name again --network none --restart on-failure:1 busybox";
    engine.script(line, "echo run; exit 3");
    assert_eq!(engine.text("wait again"), "3");
    assert_eq!(engine.text("inspect -f {{.RestartCount}} again"), "1");
    assert_eq!(engine.text("logs again"), "run\nrun");
    let events = engine.text("events --no-follow --since 2020-01-01T00:00:00Z");
    assert_eq!(events.matches(" die ").count(), 2, "{events}");
    engine.text("rm again");
}

/// If it fails, containers get in each other's way.
#[test]
fn ten_containers_at_once() {
    let engine = Engine::new("ten");
    thread::scope(|scope| {
        for number in 0..10 {
            let engine = &engine;
            scope.spawn(move || {
                let line = format!("run --rm --name n{number} -m 48m --network none busybox");
                let said = engine.script(&line, &format!("echo {number}; hostname"));
                assert!(said.starts_with(&number.to_string()), "{said}");
            });
        }
    });
    assert_eq!(engine.text("ps -aq"), "");
    assert!(!Path::new(&engine.path("run/0")).exists());
}
