//! The agent, driven by its protocol's client as a container's shim does it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::api::{
    self, ContainerRequest, CopyRequest, CreateRequest, Empty, Event, ExecRequest,
    NextEventRequest, PoweroffRequest, ProcessRequest, ResizeRequest, SignalRequest, Size, Streams,
    UpdateRequest, WaitResponse,
};
use cofferdam_agent_protocol::stream::Name;
use cofferdam_agent_protocol::{CONTROL_PORT, Client, ClientError, STORAGE, STREAM_PORT};
use serde_json::{Value, json};

use crate::harness::{TempDir, Vm, guest_file, host, patience};

/// A VM with the agent, and the images of a container.
struct Guest {
    client: Client,
    hello: api::HelloResponse,
    vm: Mutex<Vm>,
    socket: PathBuf,
    _dir: TempDir,
}

impl Guest {
    /// `name` is that of no other test.
    fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    fn start_with(name: &str, args: &[&str]) -> Self {
        let dir = TempDir::new(&format!("agent-{name}"));
        let socket = dir.join("vsock");
        let vsock = format!("cid=3,uds={}", socket.display());
        let image = format!("file={},ro", guest_file("rootfs.erofs").display());
        let initrd = guest_file("agent.cpio");
        let initrd = initrd.to_str().unwrap();
        let mut all = vec!["--initrd", initrd, "--pmem", &image, "--vsock", &vsock];
        all.extend(args);
        let vm = Vm::start(&all);
        let until = Instant::now() + patience();
        let (client, hello) = Client::connect_until(&socket, until, || true).unwrap();
        Self {
            client,
            hello,
            vm: Mutex::new(vm),
            socket,
            _dir: dir,
        }
    }

    /// A container whose root is the busybox image under a tmpfs, with all three streams or a
    /// terminal, up to where it can be started.
    fn create(&self, id: &str, spec: &Value) -> Result<Process<'_>, ClientError> {
        self.create_on(id, spec, rootfs(), Vec::new())
    }

    /// As [`Guest::create`], with another root and with storages.
    fn create_on(
        &self,
        id: &str,
        spec: &Value,
        rootfs: api::Rootfs,
        storages: Vec<api::Storage>,
    ) -> Result<Process<'_>, ClientError> {
        let process = self.process(id, "", spec["process"]["terminal"] == true);
        let mut request = CreateRequest::new();
        request.id = id.to_owned();
        request.spec = spec.to_string().into_bytes();
        request.streams = Some(process.announced.clone()).into();
        request.rootfs = Some(rootfs).into();
        request.storages = storages;
        request.size = Some(size(30, 90)).into();
        self.client.create(request)?;
        Ok(process)
    }

    /// Makes and starts one.
    fn run(&self, id: &str, spec: &Value) -> Process<'_> {
        let process = self.create(id, spec).unwrap();
        self.start_it(id).unwrap();
        process
    }

    fn start_it(&self, id: &str) -> Result<Empty, ClientError> {
        let mut request = ContainerRequest::new();
        request.id = id.to_owned();
        self.client.start(request)
    }

    /// One more process.
    fn exec(&self, id: &str, exec: &str, process: &Value) -> Result<Process<'_>, ClientError> {
        let streams = self.process(id, exec, process["terminal"] == true);
        let mut request = ExecRequest::new();
        request.id = id.to_owned();
        request.exec = exec.to_owned();
        request.process = process.to_string().into_bytes();
        request.streams = Some(streams.announced.clone()).into();
        self.client.exec(request)?;
        Ok(streams)
    }

    /// The streams of a process that is to be.
    fn process(&self, id: &str, exec: &str, terminal: bool) -> Process<'_> {
        let mut announced = Streams::new();
        announced.token = format!("{id}/{exec}");
        (announced.stdin, announced.stdout, announced.stderr) = (true, true, !terminal);
        let stream = |name| self.client.stream(name, &announced.token).unwrap();
        Process {
            guest: self,
            id: id.to_owned(),
            exec: exec.to_owned(),
            stdin: stream(Name::Stdin),
            stdout: stream(Name::Stdout),
            stderr: (!terminal).then(|| stream(Name::Stderr)),
            announced,
        }
    }

    fn signal(&self, id: &str, signal: i32, all: bool) -> Result<Empty, ClientError> {
        let mut request = SignalRequest::new();
        request.id = id.to_owned();
        request.signal = signal.unsigned_abs();
        request.all = all;
        self.client.signal(request)
    }

    fn delete(&self, id: &str) -> Result<Empty, ClientError> {
        let mut request = ProcessRequest::new();
        request.id = id.to_owned();
        self.client.delete(request)
    }

    fn event(&self, after: u64) -> Event {
        let mut request = NextEventRequest::new();
        request.after = after;
        self.client.next_event(request).unwrap()
    }

    /// Runs a shell script in a container of its own, which it then deletes; gives its output.
    fn script(&self, id: &str, mut spec: Value, script: &str) -> String {
        spec["process"]["args"] = json!(["sh", "-c", script]);
        let mut process = self.run(id, &spec);
        let output = process.output();
        assert_eq!(process.wait().exit_code, 0, "{output}");
        self.delete(id).unwrap();
        output
    }

    /// The end of it all.
    fn power_off(self) {
        let mut request = PoweroffRequest::new();
        request.grace_ms = 2000;
        // The machine may be gone before the answer.
        let _ = self.client.poweroff(request);
        self.vm.into_inner().unwrap().end().expect(0);
    }
}

/// A process in a guest, and the host's ends of its streams.
struct Process<'a> {
    guest: &'a Guest,
    id: String,
    exec: String,
    stdin: UnixStream,
    stdout: UnixStream,
    stderr: Option<UnixStream>,
    announced: Streams,
}

impl Process<'_> {
    fn name(&self) -> ProcessRequest {
        let mut request = ProcessRequest::new();
        request.id = self.id.clone();
        request.exec = self.exec.clone();
        request
    }

    fn wait(&self) -> WaitResponse {
        self.guest.client.wait(self.name()).unwrap()
    }

    /// All that it prints until its end, on standard error too.
    fn output(&mut self) -> String {
        let mut bytes = Vec::new();
        self.stdout.read_to_end(&mut bytes).unwrap();
        if let Some(stderr) = &mut self.stderr {
            stderr.read_to_end(&mut bytes).unwrap();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads what it prints up to `text`.
    fn read_until(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        let mut byte = [0];
        while !all.ends_with(text.as_bytes()) {
            let count = self.stdout.read(&mut byte).unwrap();
            let found = String::from_utf8_lossy(&all);
            assert!(count == 1, "no {text:?} before the end: {found}");
            all.extend(byte);
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

fn rootfs() -> api::Rootfs {
    let mut overlay = api::Overlay::new();
    overlay.lower.push("/dev/pmem0".to_owned());
    overlay.upper = Some(api::overlay::Upper::Tmpfs(api::Tmpfs::new()));
    let mut rootfs = api::Rootfs::new();
    rootfs.kind = Some(api::rootfs::Kind::Overlay(overlay));
    rootfs
}

fn size(rows: u32, columns: u32) -> Size {
    let mut size = Size::new();
    (size.rows, size.columns) = (rows, columns);
    size
}

/// What Docker gives containers.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

fn process(args: &[&str]) -> Value {
    json!({
        "args": args,
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "capabilities": {
            "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
        },
    })
}

/// A configuration as engines write it.
fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                           {"type": "cgroup"}, {"type": "network"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/nothing"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        },
    })
}

/// If it fails, a container does not run, or its exit code, output or input is not what it says.
#[test]
fn containers_run_and_end() {
    let guest = Guest::start("run");
    let hello = &guest.hello;
    println!(
        "started {} us, ready {} us",
        hello.started_us, hello.ready_us
    );
    assert!(!hello.kernel.is_empty());
    for (number, (args, code, signal)) in [
        (&["true"][..], 0, 0),
        (&["sh", "-c", "exit 42"], 42, 0),
        (
            &["sh", "-c", "kill -9 $$; sleep 5 & kill -9 -1; exit 3"],
            3,
            0,
        ),
        (&["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"], 143, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("end{number}");
        let end = guest.run(&id, &spec(args)).wait();
        assert_eq!((end.exit_code, end.signal), (code, signal), "{args:?}");
        guest.delete(&id).unwrap();
    }
    // Standard input to its end, and each output where it belongs.
    let mut cat = guest.run("cat", &spec(&["sh", "-c", "cat; echo apart >&2"]));
    let text = "line\n".repeat(100_000);
    let (mut stdin, sent) = (cat.stdin.try_clone().unwrap(), text.clone());
    let writer = thread::spawn(move || {
        stdin.write_all(sent.as_bytes()).unwrap();
        stdin.shutdown(Shutdown::Write).unwrap();
    });
    let (mut found, mut errors) = (String::new(), String::new());
    cat.stdout.read_to_string(&mut found).unwrap();
    cat.stderr
        .as_mut()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    writer.join().unwrap();
    assert_eq!(cat.wait().exit_code, 0);
    assert!(found == text, "{} bytes", found.len());
    assert_eq!(errors, "apart\n");
    guest.delete("cat").unwrap();
    // By the protocol instead of the stream's end.
    let mut cat = guest.run("close", &spec(&["cat"]));
    cat.stdin.write_all(b"x\n").unwrap();
    assert_eq!(cat.read_until("x\n"), "x\n");
    guest.client.close_stdin(cat.name()).unwrap();
    assert_eq!((cat.output().as_str(), cat.wait().exit_code), ("", 0));
    // By signals.
    let mut sleeping = guest.run(
        "sleep",
        &spec(&[
            "sh",
            "-c",
            "trap 'exit 7' USR1; echo up; while :; do sleep 1; done",
        ]),
    );
    sleeping.read_until("up\n");
    guest.signal("sleep", libc::SIGUSR1, true).unwrap();
    assert_eq!(sleeping.wait().exit_code, 7);
    let killed = guest.run("kill", &spec(&["sleep", "1000"]));
    guest.signal("kill", libc::SIGKILL, false).unwrap();
    let end = killed.wait();
    assert_eq!((end.exit_code, end.signal, end.oom), (137, 9, false));
    assert!(guest.signal("kill", libc::SIGKILL, false).is_err());
    guest.power_off();
}

/// If it fails, a terminal has the wrong size, is not a terminal, or Ctrl-C does not arrive.
#[test]
fn terminals_resize_and_control() {
    let guest = Guest::start("tty");
    let mut all = spec(&["sh"]);
    all["process"]["terminal"] = json!(true);
    let mut shell = guest.run("shell", &all);
    let say = |text: &str, shell: &mut Process<'_>, wanted: &str| {
        shell.stdin.write_all(text.as_bytes()).unwrap();
        shell.read_until(wanted)
    };
    say("tty; stty size\n", &mut shell, "/dev/pts/0\r\n30 90\r\n");
    let mut request = ResizeRequest::new();
    request.id = "shell".to_owned();
    request.size = Some(size(55, 166)).into();
    guest.client.resize(request.clone()).unwrap();
    say("stty size\n", &mut shell, "55 166\r\n");
    say("echo console >/dev/console\n", &mut shell, "console\r\n");
    say("sleep 1000\n", &mut shell, "sleep 1000\r\n");
    thread::sleep(Duration::from_millis(300));
    say("\x03", &mut shell, "^C");
    say("echo $?; exit 9\n", &mut shell, "130\r\n");
    shell.output();
    assert_eq!(shell.wait().exit_code, 9);
    assert!(guest.client.resize(request).is_err() || shell.wait().exit_code == 9);
    guest.power_off();
}

/// If it fails, processes that join a container are not in it, many at once get lost, or their exit
/// codes are mixed up.
#[test]
fn processes_join_a_container() {
    let guest = Guest::start("exec");
    let mut main = guest.run("main", &spec(&["sh", "-c", "echo up; exec sleep 1000"]));
    main.read_until("up\n");
    let mut inside = process(&[
        "sh",
        "-c",
        "hostname; cat /proc/1/cmdline | tr '\\0' ' '; id -u; pwd",
    ]);
    inside["user"] = json!({"uid": 1000, "gid": 1000});
    inside["cwd"] = json!("/tmp");
    let mut one = guest.exec("main", "one", &inside).unwrap();
    assert_eq!(one.output(), "box\nsleep 1000 1000\n/tmp\n");
    assert_eq!(one.wait().exit_code, 0);
    let mut terminal = process(&["sh", "-c", "tty; echo $0"]);
    terminal["terminal"] = json!(true);
    let mut other = guest.exec("main", "tty", &terminal).unwrap();
    assert!(other.output().starts_with("/dev/pts/"));
    thread::scope(|scope| {
        for number in 0..20 {
            let guest = &guest;
            scope.spawn(move || {
                let script = format!("read line; echo $line; exit {number}");
                let exec = format!("many{number}");
                let mut one = guest
                    .exec("main", &exec, &process(&["sh", "-c", &script]))
                    .unwrap();
                one.stdin.write_all(format!("{exec}\n").as_bytes()).unwrap();
                assert_eq!(one.output(), format!("{exec}\n"));
                assert_eq!(one.wait().exit_code, number);
                guest.client.delete(one.name()).unwrap();
            });
        }
    });
    // What is not there, and what is no program.
    let refuse = |exec: &str, args: &[&str]| match guest.exec("main", exec, &process(args)) {
        Err(error) => error,
        Ok(_) => panic!("{args:?} ran"),
    };
    let error = refuse("none", &["no-such-program"]);
    assert!(
        error.is_no_such_program() && error.to_string().contains("no-such-program"),
        "{error}"
    );
    assert!(refuse("passwd", &["/etc/passwd"]).is_not_executable());
    assert!(
        refuse("one", &["true"])
            .to_string()
            .contains("exists already")
    );
    let mut request = ContainerRequest::new();
    request.id = "main".to_owned();
    let processes = guest.client.pids(request.clone()).unwrap().processes;
    assert!(
        processes.iter().any(|one| one.command == ["sleep", "1000"]),
        "{processes:?}"
    );
    // Frozen, nobody joins.
    guest.client.pause(request.clone()).unwrap();
    assert!(
        refuse("frozen", &["true"])
            .to_string()
            .contains("is paused")
    );
    guest.client.resume(request).unwrap();
    assert!(
        guest
            .delete("main")
            .unwrap_err()
            .to_string()
            .contains("still running")
    );
    guest.signal("main", libc::SIGKILL, true).unwrap();
    assert_eq!(main.wait().signal, 9);
    guest.delete("main").unwrap();
    assert!(guest.client.wait(main.name()).unwrap_err().is_not_found());
    guest.power_off();
}

/// If it fails, a container is not the user, or may do more or less, than its configuration says.
#[test]
fn containers_are_what_their_configuration_says() {
    let guest = Guest::start("limits");
    let output = guest.script(
        "plain",
        spec(&[]),
        r#"hostname; grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|Seccomp:|NoNewPrivs' /proc/self/status
        echo "pid $$"; ls /proc/keys /dev; wc -c </proc/keys; echo x >/proc/sys/kernel/hostname
        mknod /tmp/d b 254 0 && head -c 1 /tmp/d; cat /proc/1/cgroup; ls / | head -1; umask
        grep -c . /proc/1/mountinfo; ls /sys/firmware | wc -l; touch /written && echo wrote"#,
    );
    for part in [
        "box\n",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t0",
        "pid 1\n",
        "0::/\n",
        "0022\n",
        "wrote\n",
        "Read-only file system",
        "Operation not permitted",
    ] {
        assert!(output.contains(part), "no {part:?} in {output}");
    }

    let mut strict = spec(&[]);
    let part = &mut strict["process"];
    part["user"] = json!({"uid": 65534, "gid": 7, "additionalGids": [8, 9], "umask": 0o77});
    part["capabilities"] = json!({"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]});
    part["noNewPrivileges"] = json!(true);
    part["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
    part["oomScoreAdj"] = json!(333);
    part["cwd"] = json!("/made/here");
    strict["root"]["readonly"] = json!(true);
    strict["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "1234"});
    strict["linux"]["resources"]["memory"] = json!({"limit": 64 << 20, "swap": 64 << 20});
    strict["linux"]["resources"]["pids"] = json!({"limit": 20});
    strict["linux"]["resources"]["cpu"] = json!({"quota": 50000, "period": 100000, "shares": 512});
    strict["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
    let mounts = strict["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({"destination": "/scratch/deep", "type": "tmpfs", "source": "tmpfs",
        "options": ["size=4m", "mode=1777", "noexec"]}),
    );
    mounts.push(
        json!({"destination": "/usr/bin", "type": "tmpfs", "source": "tmpfs",
        "options": ["tmpcopyup", "ro"]}),
    );
    let output = guest.script(
        "strict",
        strict,
        r#"id; umask; pwd; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; echo $HOME
        grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp:' /proc/self/status
        cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni
        cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max
        mkdir /scratch/deep/x; sync; echo "sync $?"; touch /x; ls /usr/bin | wc -l; touch /usr/bin/x
        cp /bin/busybox /scratch/deep/true; echo ok >/scratch/deep/y; cat /scratch/deep/y
        true | true; exit 0"#,
    );
    for part in [
        "uid=65534(nobody) gid=7 groups=8,9",
        "0077\n/made/here\n77\n99\n333\n/\n",
        "CapEff:\t0000000000000020",
        "CapBnd:\t0000000000000020",
        "CapAmb:\t0000000000000020",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "1\n1234\n67108864\n20\n50000 100000\n",
        "sync 159",
        "Operation not supported",
        "/x: Read-only file system",
        "/usr/bin/x: Read-only file system",
        "\nok\n",
    ] {
        assert!(output.contains(part), "no {part:?} in {output}");
    }
    guest.power_off();
}

/// If it fails, a container that wants too much memory is not stopped, or nobody learns of it.
#[test]
fn too_much_memory_is_an_event() {
    let guest = Guest::start("oom");
    let mut greedy = spec(&["sh", "-c", "tail /dev/zero; echo tail $?; exit 5"]);
    greedy["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let mut one = guest.run("greedy", &greedy);
    assert!(one.output().contains("tail 137"));
    let end = one.wait();
    assert_eq!((end.exit_code, end.oom), (5, true));
    let first = guest.event(0);
    assert!(
        matches!(first.kind, Some(api::event::Kind::Oom(_))) && first.id == "greedy",
        "{first:?}"
    );
    let second = guest.event(first.sequence);
    let Some(api::event::Kind::Exit(exit)) = &second.kind else {
        panic!("{second:?}")
    };
    assert_eq!((exit.exit_code, second.exec.as_str()), (5, ""));
    guest.delete("greedy").unwrap();

    let mut main = guest.run("main", &spec(&["sh", "-c", "echo up; exec sleep 1000"]));
    main.read_until("up\n");
    let mut update = UpdateRequest::new();
    update.id = "main".to_owned();
    update.resources = br#"{"memory":{"limit":33554432},"pids":{"limit":7}}"#.to_vec();
    guest.client.update(update).unwrap();
    let mut request = ContainerRequest::new();
    request.id = "main".to_owned();
    let stats = guest.client.stats(request).unwrap();
    assert_eq!(
        (stats.memory_limit, stats.pids_limit, stats.pids),
        (32 << 20, 7, 1)
    );
    assert!(
        stats.memory > 0 && stats.guest_memory > 100 << 20,
        "{stats:?}"
    );
    assert!(stats.cpu_stat["usage_usec"] > 0 && stats.memory_stat.contains_key("anon"));
    guest.power_off();
}

/// If it fails, files are lost on their way in or out of a container.
#[test]
fn files_are_copied_in_and_out() {
    let guest = Guest::start("copy");
    let mut main = guest.run("main", &spec(&["sh", "-c", "echo up; exec sleep 1000"]));
    main.read_until("up\n");
    let mut request = CopyRequest::new();
    request.id = "main".to_owned();
    request.path = "/etc".to_owned();
    request.token = "out".to_owned();
    let mut stream = guest.client.stream(Name::Archive, "out").unwrap();
    let archive = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut archive = Vec::new();
            stream.read_to_end(&mut archive).unwrap();
            archive
        });
        guest.client.copy_out(request.clone()).unwrap();
        reader.join().unwrap()
    });
    assert_eq!(archive.len() % 512, 0);
    request.path = "/tmp".to_owned();
    request.token = "in".to_owned();
    let mut stream = guest.client.stream(Name::Archive, "in").unwrap();
    let sender = thread::spawn(move || stream.write_all(&archive).unwrap());
    guest.client.copy_in(request.clone()).unwrap();
    sender.join().unwrap();
    let compare = process(&[
        "sh",
        "-c",
        "cmp /etc/passwd /tmp/etc/passwd && ls -ln /tmp/etc/passwd",
    ]);
    let mut one = guest.exec("main", "compare", &compare).unwrap();
    let output = one.output();
    assert!(output.starts_with("-rw-r--r--    1 0        0"), "{output}");
    assert_eq!(one.wait().exit_code, 0);
    request.path = "etc".to_owned();
    assert!(guest.client.copy_out(request.clone()).is_err());
    guest.power_off();
}

/// What of the share `data` is mounted in the guest, and where.
fn share(target: &str, path: &str, readonly: bool) -> api::Storage {
    let mut share = api::Share::new();
    (share.tag, share.path) = ("data".to_owned(), path.to_owned());
    let mut storage = api::Storage::new();
    storage.target = format!("{STORAGE}/{target}");
    storage.readonly = readonly;
    storage.kind = Some(api::storage::Kind::Share(share));
    storage
}

/// If it fails, a volume is not there, shows more than it should or can be written when it must not;
/// or what a container wrote to its disk is lost with the VM.
#[test]
fn volumes_and_disks_are_mounted() {
    let dir = TempDir::new("agent-volumes");
    let shared = dir.join("shared");
    std::fs::create_dir_all(shared.join("sub")).unwrap();
    std::fs::write(shared.join("sub/inner"), "inner\n").unwrap();
    std::fs::write(shared.join("single"), "single\n").unwrap();
    std::fs::write(shared.join("secret"), "secret\n").unwrap();
    std::os::unix::fs::symlink("/etc", shared.join("link")).unwrap();
    let disk = dir.join("upper.ext4");
    host(&format!(
        "truncate -s 32M {0}; mke2fs -q -F -t ext4 {0}",
        disk.display()
    ));
    let disk = format!("path={},id=upper", disk.display());
    let fs = format!("tag=data,path={}", shared.display());
    for round in 0..2 {
        let guest = Guest::start_with(&format!("vol{round}"), &["--disk", &disk, "--fs", &fs]);
        let mut overlay = api::Overlay::new();
        overlay.lower.push("/dev/pmem0".to_owned());
        overlay.upper = Some(api::overlay::Upper::Disk("serial=upper".to_owned()));
        let mut root = api::Rootfs::new();
        root.kind = Some(api::rootfs::Kind::Overlay(overlay));
        let script = r#"cat /kept 2>/dev/null; echo kept >/kept; cat /sub/inner /single; ls /sub /
            echo more >/sub/more; echo x >/single; cat /etc/hosts; ls -d /root/.x"#;
        let mut all = spec(&["sh", "-c", script]);
        for (source, target) in [("sub", "/sub"), ("single", "/single")] {
            all["mounts"].as_array_mut().unwrap().push(json!({"destination": target,
                "type": "bind", "source": format!("{STORAGE}/{source}"), "options": ["rbind", "rw"]}));
        }
        let storages = vec![share("sub", "sub", false), share("single", "/single", true)];
        let mut one = guest
            .create_on("disk", &all, root.clone(), storages)
            .unwrap();
        guest.start_it("disk").unwrap();
        let output = one.output();
        assert_eq!(output.starts_with("kept\n"), round == 1, "{output}");
        assert!(
            output.contains("inner\nsingle\n") && !output.contains("secret"),
            "{output}"
        );
        assert!(
            output.contains("can't create /single: Read-only file system"),
            "{output}"
        );
        assert_eq!(
            std::fs::read_to_string(shared.join("sub/more")).unwrap(),
            "more\n"
        );
        one.wait();
        guest.delete("disk").unwrap();
        // A link in a share leads nowhere else.
        let outside = vec![share("out", "link/passwd", false)];
        assert!(guest.create_on("out", &all, root, outside).is_err());
        guest.power_off();
    }
}

/// If it fails, a container with a user namespace has none, or does not start.
#[test]
fn root_in_a_user_namespace_is_nobody_outside() {
    let guest = Guest::start("userns");
    let mut mapped = spec(&[]);
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    mapped["linux"]["uidMappings"] = map.clone();
    mapped["linux"]["gidMappings"] = map;
    mapped["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    // What a user namespace may not mount itself.
    mapped["mounts"].as_array_mut().unwrap().retain(|mount| {
        !["/sys", "/sys/fs/cgroup"].contains(&mount["destination"].as_str().unwrap())
    });
    mapped["linux"]["maskedPaths"] = json!([]);
    mapped["process"]["args"] = json!([
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map; echo up; exec sleep 1000"
    ]);
    let mut main = guest.run("main", &mapped);
    let output = main.read_until("up\n");
    assert!(
        output.starts_with("0\n") && output.contains("100000      65536"),
        "{output}"
    );
    let mut request = ContainerRequest::new();
    request.id = "main".to_owned();
    let processes = guest.client.pids(request).unwrap().processes;
    assert_eq!(processes[0].uid, 100_000);
    let mut one = guest
        .exec(
            "main",
            "one",
            &process(&["sh", "-c", "id -u; cat /proc/1/comm"]),
        )
        .unwrap();
    assert_eq!(one.output(), "0\nsleep\n");
    guest.power_off();
}

/// If it fails, one bad request ends the agent, and with it the VM.
#[test]
fn bad_requests_are_refused_by_name() {
    let guest = Guest::start("bad");
    let refuse = |id: &str, spec: &Value| match guest.create(id, spec) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{spec} was accepted"),
    };
    for (path, value, part) in [
        ("/process", json!(null), "spec.process"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!(["a\0b"]), "process.args"),
        ("/process/cwd", json!("here"), "process.cwd"),
        ("/process/user/uid", json!("root"), "spec"),
        (
            "/process/capabilities/bounding",
            json!(["CAP_ALL"]),
            "CAP_ALL",
        ),
        (
            "/process/rlimits",
            json!([{"type": "X", "soft": 1, "hard": 1}]),
            "process.rlimits: X",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 1}]),
            "RLIMIT_NOFILE",
        ),
        ("/process/apparmorProfile", json!("x"), "apparmorProfile"),
        ("/mounts/0/destination", json!("proc"), "mount on proc"),
        ("/mounts/0/type", json!("nofs"), "mount nofs on /proc"),
        ("/mounts/0/options", json!(["bind"]), "/proc"),
        (
            "/linux/namespaces",
            json!([{"type": "pid", "path": "/proc/1/ns/pid"}]),
            "namespaces",
        ),
        ("/linux/namespaces", json!([{"type": "moon"}]), "moon"),
        ("/linux/sysctl", json!({"no.such": "1"}), "no.such"),
        ("/linux/sysctl", json!({"../../x": "1"}), "../../x"),
        ("/linux/seccomp", json!({"defaultAction": "X"}), "seccomp"),
        (
            "/linux/devices",
            json!([{"type": "q", "path": "/dev/q"}]),
            "/dev/q",
        ),
        (
            "/linux/resources",
            json!({"unified": {"../x.y": "1"}}),
            "../x.y",
        ),
        ("/linux/resources", json!({"memory": {"limit": 1}}), ""),
        ("/linux/maskedPaths/0", json!(5), "spec"),
    ] {
        let mut bad = spec(&["true"]);
        match path.rsplit_once('/').unwrap() {
            (parent, key) if bad.pointer(path).is_none() => {
                bad.pointer_mut(parent).unwrap()[key] = value.clone();
            }
            _ => *bad.pointer_mut(path).unwrap() = value.clone(),
        }
        let error = refuse("bad", &bad);
        println!("{path}: {error}");
        assert!(error.contains(part), "{path} {value}: {error}");
    }
    assert!(refuse("", &spec(&["true"])).contains("id"));
    assert!(refuse("../x", &spec(&["true"])).contains("../x"));
    assert!(guest.start_it("none").unwrap_err().is_not_found());
    assert!(guest.signal("none", 9, false).unwrap_err().is_not_found());
    // Not even protobuf, or ttrpc. What comes back, if anything, is the end of the connection.
    let malformed = [0, 0, 0, 4, 0, 0, 0, 1, 1, 0, 255, 255, 255, 255];
    let long = "x".repeat(1000);
    for (port, bytes) in [
        (CONTROL_PORT, &b"GET / HTTP/1.0\r\n\r\n"[..]),
        (CONTROL_PORT, &malformed),
        (CONTROL_PORT, &[255; 64]),
        (STREAM_PORT, b"what\n"),
        (STREAM_PORT, b"stdin \n"),
        (STREAM_PORT, b"tty x\n"),
        (STREAM_PORT, long.as_bytes()),
    ] {
        let mut stream = UnixStream::connect(&guest.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).unwrap();
        }
        stream.write_all(bytes).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        let end = stream.read_to_end(&mut Vec::new());
        println!("{port} {end:?}");
    }
    // It is as well as before.
    let end = guest.run("good", &spec(&["true"])).wait();
    assert_eq!(end.exit_code, 0);
    guest.power_off();
}
