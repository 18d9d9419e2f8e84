//! The OCI runtime: a bundle through all of its life, as engines drive it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{TempDir, guest_file, host, patience, program, wait_until};

/// A change of a configuration.
type Change = fn(&mut Value);

/// The programs of a root file system, all busybox.
const APPLETS: &str = "sh cat ls echo sleep true uname id ps ip httpd wget dd test tr stty";

/// The runtime with directories of its own. All that it started goes with it.
pub struct Runtime {
    dir: TempDir,
    /// The runtime's program.
    pub program: String,
}

impl Runtime {
    /// `name` is that of no other test.
    pub fn new(name: &str) -> Self {
        // A memory file system of the lab's: an overlay, which engines make, cannot lie on an overlay.
        let dir = TempDir::within("/run".as_ref(), name);
        let link = dir.join("bin/cofferdam-runc");
        fs::create_dir(dir.join("bin")).unwrap();
        symlink(program(), &link).unwrap();
        // Engines do not pass on what is in our environment.
        let program = dir.join("cofferdam-runc");
        let (run, link) = (dir.join("run"), link.display());
        let script = format!(
            "#!/bin/sh\nexport COFFERDAM_RUN={} COFFERDAM_GUEST={}\nexec {link} \"$@\"\n",
            run.display(),
            guest_file("vmlinux").parent().unwrap().display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let program = program.to_str().unwrap().to_owned();
        let this = Self { dir, program };
        this.root_file_system();
        this
    }

    /// A path of the test's own.
    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn root_file_system(&self) {
        let root = self.path("rootfs");
        host(&format!(
            "mkdir -p {root}; cd {root}; mkdir bin dev etc proc root sys tmp www; echo page >www/index.html;
             cp /bin/busybox bin; for one in {APPLETS}; do ln -s busybox bin/$one; done;
             tar -c . >../box.tar"
        ));
    }

    /// A bundle whose configuration `change` completes.
    pub fn bundle(&self, name: &str, script: &str, change: impl FnOnce(&mut Value)) -> String {
        let bundle = self.path(name);
        fs::create_dir_all(&bundle).unwrap();
        host(&format!("cp -a {} {bundle}", self.path("rootfs")));
        self.text(&format!("spec --bundle {bundle}"));
        let file = PathBuf::from(&bundle).join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["root"]["readonly"] = false.into();
        change(&mut config);
        fs::write(file, config.to_string()).unwrap();
        bundle
    }

    /// Runs a command, split at spaces, to its end; `log` is where its errors go.
    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs a command whose last argument is a script.
    pub fn shell(&self, line: &str, script: &str) -> Output {
        let mut command = self.command(line);
        command.args(["sh", "-c", script]).output().unwrap()
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        let (root, log) = (self.path("state"), self.path("log"));
        command.args(["--root", &root, "--log", &log, "--log-format", "json"]);
        command.args(line.split_whitespace()).stdin(Stdio::null());
        command
    }

    /// What a command prints, which must succeed.
    #[track_caller]
    pub fn text(&self, line: &str) -> String {
        let output = self.run(line);
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "{line}: {output:?}");
        text
    }

    /// `create` as engines call it: what the container prints goes to the file `ID.out`.
    #[track_caller]
    pub fn create(&self, bundle: &str, id: &str) {
        let out = fs::File::create(self.path(&format!("{id}.out"))).unwrap();
        let pid = self.path(&format!("{id}.pid"));
        let mut command = self.command(&format!("create --bundle {bundle} --pid-file {pid} {id}"));
        command.stdout(out.try_clone().unwrap()).stderr(out);
        assert!(command.status().unwrap().success(), "{}", self.log());
    }

    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.text(&format!("state {id}"))).unwrap()
    }

    /// What it wrote to the engine's file.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn printed(&self, id: &str) -> String {
        fs::read_to_string(self.path(&format!("{id}.out"))).unwrap()
    }

    pub fn wait_stopped(&self, id: &str) {
        wait_until("the container's end", || {
            self.state(id)["status"] == "stopped"
        });
    }

    /// Our processes that have this test's directory in their arguments.
    fn processes(&self) -> Vec<String> {
        let ours = self.path("");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let args = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let args = String::from_utf8_lossy(&args).replace('\0', " ");
            if name.starts_with("cofferdam") && args.contains(&ours) {
                found.push(args);
            }
        }
        found
    }

    /// How far packets come between the host, a network namespace and a container.
    fn network_of(&self, id: &str, netns: &str) -> String {
        let [root, logs] = ["state", "run/oci"].map(|name| self.path(name));
        // A guest that hangs says nothing.
        let seen = host(&format!(
            "exec 2>&1; ip -s address; ip neigh; set -- ip netns exec {netns}
             $@ ip -s address; for one in eth7 cofferdam0; do $@ tc -s filter show dev $one ingress; done
             timeout 20 {} --root {root} exec {id} sh -c 'ip -s address; ip neigh; ps' || :
             cat {logs}/*/monitor.log {logs}/*/console.log || :",
            self.program
        ));
        format!("{:#}\n{seen}", self.state(id))
    }

    /// If something of a container's is left on the host, or a bundle's files are not, this says what.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        wait_until("the processes' end", || self.processes().is_empty());
        for dir in ["state", "run/runc", "run/oci"] {
            let left = fs::read_dir(self.path(dir));
            let left: Vec<_> = left.into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let bundles = fs::read_dir(self.path("")).unwrap().flatten();
        for root in bundles.map(|bundle| bundle.path().join("rootfs")) {
            assert!(
                !root.exists() || root.join("bin/sh").is_symlink(),
                "{root:?}"
            );
        }
    }
}

/// Held by who needs much of the lab's memory.
pub fn big() -> MutexGuard<'static, ()> {
    static BIG: Mutex<()> = Mutex::new(());
    BIG.lock().unwrap_or_else(PoisonError::into_inner)
}

#[track_caller]
pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

/// If it fails, an engine cannot take a container through its life, or is told of it in other words
/// than the specification's and runc's.
#[test]
fn a_bundle_lives_as_the_specification_says() {
    let runtime = Runtime::new("runc-life");
    let (hooks, source) = (runtime.path("hooks"), runtime.path("source"));
    fs::write(&source, "from the host").unwrap();
    let script =
        "cat /hook /data; echo out; echo err >&2; cat /proc/sys/kernel/hostname; sleep 1000";
    let bundle = runtime.bundle("b", script, |config| {
        let script = |name: &str| format!("(echo {name}; cat; echo) >>{hooks}");
        let hook =
            |script: &str| json!([{"path": "/bin/sh", "args": ["hook", "-c", script], "timeout": 60}]);
        for name in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            config["hooks"][name] = hook(&script(name));
        }
        config["hooks"]["startContainer"] = hook("cat >/hook");
        config["hostname"] = "inside".into();
        config["linux"]["cgroupsPath"] = "/runc-life/one".into();
        config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/data", "type": "bind", "source": source, "options": ["bind", "ro"]}));
    });
    runtime.create(&bundle, "one");
    let state = runtime.state("one");
    assert_eq!(
        (&state["status"], &state["id"]),
        (&json!("created"), &json!("one"))
    );
    let pid = fs::read_to_string(runtime.path("one.pid")).unwrap();
    assert_eq!(state["pid"].to_string(), pid);
    assert_eq!(
        host(&format!("cat /proc/{pid}/cgroup")).trim(),
        "0::/runc-life/one"
    );
    assert_eq!(runtime.printed("one"), "");
    // Whoever enters the mount namespace of that process finds the container's files.
    let entered = host(&format!("nsenter -m -t {pid} /bin/sh -c 'ls /; cat /data'"));
    assert!(
        entered.contains("www") && entered.ends_with("from the host"),
        "{entered}"
    );
    assert_eq!(code(&runtime.run("create --bundle /nothing two")), 1);
    assert_eq!(
        code(&runtime.run(&format!("create --bundle {bundle} one"))),
        1
    );
    assert!(
        runtime.log().contains("container with id exists"),
        "{}",
        runtime.log()
    );

    runtime.text("start one");
    assert_eq!(runtime.state("one")["status"], "running");
    wait_until("its output", || runtime.printed("one").contains("inside"));
    let printed = runtime.printed("one");
    for part in ["\"status\":\"created\"", "from the host", "out\n", "err\n"] {
        assert!(printed.contains(part), "{part:?}: {printed}");
    }
    assert_eq!(code(&runtime.run("start one")), 1);
    assert!(runtime.text("list").contains("running"));
    assert!(runtime.text("ps one").contains("sleep 1000"));
    assert!(
        runtime
            .text("events --stats one")
            .contains("\"type\":\"stats\"")
    );
    assert_eq!(
        code(&runtime.shell("exec one", "echo \"$A\" >&2; exit 9")),
        9
    );
    let end = runtime.run("exec --cwd /www --env A=5 one cat index.html");
    assert_eq!((code(&end), end.stdout.as_slice()), (0, &b"page\n"[..]));
    assert_eq!(code(&runtime.run("exec one ls /nothing")), 1);
    runtime.text("pause one");
    assert_eq!(runtime.state("one")["status"], "paused");
    assert_eq!(code(&runtime.run("exec one true")), 255);
    runtime.text("resume one");
    runtime.text("update --memory 100000000 one");
    assert_eq!(
        runtime.text("exec one cat /sys/fs/cgroup/memory.max"),
        "99999744"
    );
    assert_eq!(code(&runtime.run("update --memory 99000000000 one")), 1);

    assert_eq!(code(&runtime.run("delete one")), 1);
    runtime.text("kill one KILL");
    runtime.wait_stopped("one");
    assert_eq!(code(&runtime.run("kill one")), 1);
    assert!(runtime.log().contains("container not running"));
    runtime.text("delete one");
    assert_eq!(code(&runtime.run("state one")), 1);
    assert!(
        runtime.log().contains("does not exist"),
        "{}",
        runtime.log()
    );
    runtime.text("delete --force one");
    let ran = fs::read_to_string(&hooks).unwrap();
    let ran: Vec<&str> = ran.lines().collect();
    let names: Vec<&str> = ran
        .iter()
        .copied()
        .filter(|line| !line.starts_with('{'))
        .collect();
    let expected = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ];
    assert_eq!(names, expected);
    for (name, status) in [
        ("prestart", "creating"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ] {
        let at = ran.iter().position(|line| *line == name).unwrap();
        assert!(
            ran[at + 1].contains(&format!("\"status\":\"{status}\"")),
            "{ran:?}"
        );
    }
    assert!(!PathBuf::from("/sys/fs/cgroup/runc-life/one").exists());
    runtime.nothing_is_left();
}

/// If it fails, packages with set-ID programs cannot be installed in a container whose root is a directory, or
/// it leaves such programs where any user of the host can start them.
#[test]
fn programs_get_rights_where_nobody_else_is() {
    let runtime = Runtime::new("runc-rights");
    let volume = runtime.path("volume");
    host(&format!("mkdir {volume}; chmod 755 {volume}"));
    let script =
        "for at in / /volume /trusted; do cd $at; busybox cp /bin/busybox p; busybox chmod 4755 p
                  busybox mknod n c 1 3 2>/dev/null; echo $(busybox stat -c %a p) $(ls n); done";
    for (mode, in_root) in [("700", "4755 n"), ("755", "755")] {
        let name = format!("mode-{mode}");
        let trusted = runtime.path(&format!("trusted-{mode}"));
        host(&format!("mkdir {trusted}"));
        let bundle = runtime.bundle(&name, script, |config| {
            for set in ["bounding", "effective", "permitted"] {
                let set = &mut config["process"]["capabilities"][set];
                set.as_array_mut().unwrap().push("CAP_MKNOD".into());
            }
            config["mounts"].as_array_mut().unwrap().extend([
                json!({"destination": "/volume", "source": volume, "options": ["rbind"]}),
                json!({"destination": "/trusted", "source": trusted,
                       "options": ["rbind", "suid", "dev"]}),
            ]);
        });
        host(&format!("chmod 755 {}/..; chmod {mode} {bundle}", bundle));
        let end = runtime.run(&format!("run --bundle {bundle} {name}"));
        let expected = format!("{in_root}\n755\n4755 n\n");
        assert_eq!(String::from_utf8_lossy(&end.stdout), expected, "{end:?}");
        let modes = host(&format!(
            "stat -c %a {bundle}/rootfs/p {volume}/p {trusted}/p"
        ));
        assert_eq!(modes, expected.replace(" n", ""));
    }
}

/// If it fails, `run` does not end as the container does, a failure is not said, or leaves something.
#[test]
fn a_bundle_runs_and_fails() {
    let runtime = Runtime::new("runc-run");
    let bundle = runtime.bundle("b", "cat; echo err >&2; exit 42", |_| ());
    let mut command = runtime.command(&format!("run --bundle {bundle} one"));
    let input = fs::File::open(runtime.path("rootfs/www/index.html")).unwrap();
    let end = command.stdin(input).output().unwrap();
    assert_eq!(code(&end), 42, "{end:?}");
    assert_eq!(
        (end.stdout.as_slice(), end.stderr.as_slice()),
        (&b"page\n"[..], &b"err\n"[..])
    );

    let script = "! touch /x && ls -d /made/deep /made/file && pwd";
    let bundle = runtime.bundle("read-only", script, |config| {
        config["root"]["readonly"] = true.into();
        config["process"]["cwd"] = "/work/here".into();
        config["mounts"].as_array_mut().unwrap().extend([
            json!({"destination": "/made/deep", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/made/file", "type": "bind", "source": "/etc/passwd", "options": ["bind"]}),
        ]);
    });
    let end = runtime.run(&format!("run --bundle {bundle} one"));
    assert_eq!(
        end.stdout, b"/made/deep\n/made/file\n/work/here\n",
        "{end:?}"
    );

    let failures: [(&str, Change); 5] = [
        ("executable file not found in $PATH", |c| {
            c["process"]["args"] = json!(["nothing"])
        }),
        ("permission denied", |c| {
            c["process"]["args"] = json!(["/www/index.html"])
        }),
        ("share no kernel", |c| {
            c["linux"]["namespaces"][0]["path"] = "/proc/1/ns/pid".into();
        }),
        ("the prestart hook /bin/false failed", |c| {
            c["hooks"]["prestart"] = json!([{"path": "/bin/false"}]);
        }),
        ("/dev/kmsg", |c| {
            let mount = json!({"destination": "/x", "type": "bind", "source": "/dev/kmsg"});
            c["mounts"].as_array_mut().unwrap().push(mount);
        }),
    ];
    for (number, (words, change)) in failures.into_iter().enumerate() {
        let bundle = runtime.bundle(&format!("bad{number}"), "true", change);
        assert_eq!(
            code(&runtime.run(&format!("run --bundle {bundle} bad"))),
            1,
            "{words}"
        );
        let log = runtime.log();
        let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "error");
        assert!(
            last["msg"].as_str().unwrap().contains(words),
            "{words}: {last}"
        );
    }
    runtime.nothing_is_left();
}

/// If it fails, a guest has no network, or another than its engine made in the namespace, or does not
/// hear of what changed before its start.
#[test]
fn a_network_namespace_is_mirrored() {
    let runtime = Runtime::new("runc-net");
    host(
        "ip netns add runcnet; ip link add runch type veth peer name eth7 netns runcnet
         ip addr add 10.77.0.1/24 dev runch; ip link set runch up
         ip -n runcnet addr add 10.77.0.2/24 dev eth7; ip -n runcnet link set eth7 mtu 1400 up",
    );
    let bundle = runtime.bundle("b", "httpd -f -h /www", |config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = "/run/netns/runcnet".into();
            }
        }
    });
    runtime.create(&bundle, "net");
    host("ip -n runcnet route add default via 10.77.0.1");
    runtime.text("start net");
    let inside = runtime.shell("exec net", "ip addr; ip route");
    let inside = String::from_utf8_lossy(&inside.stdout);
    let mac = host("ip netns exec runcnet cat /sys/class/net/eth7/address");
    for part in [
        "eth7",
        "10.77.0.2/24",
        "mtu 1400",
        mac.trim(),
        "default via 10.77.0.1",
    ] {
        assert!(inside.contains(part), "{part}: {inside}");
    }
    let until = Instant::now() + patience();
    while host("curl -s --max-time 5 http://10.77.0.2/ || :") != "page\n" {
        let is_over = Instant::now() > until;
        assert!(
            !is_over,
            "no page: {}",
            runtime.network_of("net", "runcnet")
        );
    }
    runtime.text("delete --force net");
    runtime.nothing_is_left();
    host("ip netns del runcnet");
}

/// If it fails, a root that is an image goes through the file-system process, each VM has a copy of it, or one
/// that the host writes to is written to by two kernels.
#[test]
fn a_root_that_is_an_image_is_a_device() {
    let runtime = Runtime::new("runc-image");
    let (dir, root) = (runtime.path(""), runtime.path("rootfs"));
    host(&format!(
        "cd {dir}; mkfs.erofs -zlz4 erofs.img {root} >/dev/null
         truncate -s 32M ext4.img; mkfs.ext4 -q -d {root} ext4.img"
    ));
    let script = "grep ' / ' /proc/mounts; touch /new && echo written; cat /www/index.html";
    for (image, options, expected) in [
        ("erofs", "ro", "/dev/pmem1 / erofs ro"),
        ("ext4", "ro", "/dev/vda / ext4 ro"),
        // The host's kernel writes to it.
        ("ext4", "rw", " / virtiofs rw"),
    ] {
        let bundle = runtime.bundle(&format!("{image}-{options}"), script, |_| ());
        let mounted = format!("{bundle}/rootfs");
        host(&format!(
            "rm -r {mounted}; mkdir -p {mounted}
             mount -o loop,{options} {}.img {mounted}",
            runtime.path(image)
        ));
        let end = runtime.run(&format!("run --bundle {bundle} one"));
        let out = String::from_utf8_lossy(&end.stdout);
        let is_writable = options == "rw";
        assert!(
            out.contains(expected) && out.contains("page\n"),
            "{image} {options}: {end:?}"
        );
        assert_eq!(out.contains("written\n"), is_writable, "{image}: {end:?}");
        host(&format!("umount {mounted}; rmdir {mounted}"));
    }
    runtime.nothing_is_left();
}

/// If it fails, what is killed cannot be removed, or leaves processes, cgroups or files behind.
#[test]
fn the_killed_are_deleted() {
    let runtime = Runtime::new("runc-killed");
    let bundle = runtime.bundle("b", "sleep 1000", |config| {
        config["linux"]["cgroupsPath"] = "/runc-killed/one".into();
    });
    let monitor = "pgrep -f '[c]offerdam boot --config' -P";
    for (started, victim) in [
        (false, "shim"),
        (true, "shim"),
        (false, "monitor"),
        (true, "monitor"),
    ] {
        runtime.create(&bundle, "one");
        if started {
            runtime.text("start one");
        }
        let shim = fs::read_to_string(runtime.path("one.pid")).unwrap();
        match victim {
            "shim" => host(&format!("kill -9 {shim}")),
            _ => host(&format!("kill -9 $({monitor} {shim})")),
        };
        runtime.wait_stopped("one");
        runtime.text("delete one");
        runtime.nothing_is_left();
        assert!(!PathBuf::from("/sys/fs/cgroup/runc-killed/one").exists());
    }
    // The engine, with the runtime that it has just called.
    let mut create = runtime.command(&format!("create --bundle {bundle} one"));
    let mut create = create
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("its state", || runtime.run("state one").status.success());
    create.kill().unwrap();
    create.wait().unwrap();
    runtime.text("delete --force one");
    runtime.nothing_is_left();
}

/// If it fails, containers that are made at the same time get in each other's way.
#[test]
fn twenty_containers_at_once() {
    let _alone = big();
    let runtime = Runtime::new("runc-twenty");
    let bundle = runtime.bundle("b", "sleep 1000", |config| {
        config["linux"]["resources"]["memory"]["limit"] = (32 << 20).into();
    });
    thread::scope(|scope| {
        for worker in 0..4 {
            let (runtime, bundle) = (&runtime, &bundle);
            scope.spawn(move || {
                for number in 0..5 {
                    let id = format!("c{worker}-{number}");
                    runtime.create(bundle, &id);
                    runtime.text(&format!("start {id}"));
                }
            });
        }
    });
    assert_eq!(runtime.text("list").matches("running").count(), 20);
    let ids = runtime.text("list --quiet");
    for id in ids.lines() {
        assert_eq!(runtime.text(&format!("exec {id} echo {id}")), id);
        runtime.text(&format!("delete --force {id}"));
    }
    runtime.nothing_is_left();
}
