//! What the suites of the OCI runtime specification do, in our own words: the specification's lesser
//! known demands, and how runc is used by who has read its source.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{host, wait_until};
use crate::runc::{Runtime, code};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// The kinds of namespaces of a process that are also this one's.
fn shared_namespaces(pid: &Value) -> Vec<String> {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let of = |who: &str, kind: &str| fs::read_link(format!("/proc/{who}/ns/{kind}")).unwrap();
    let same = |kind: &&str| of("self", kind) == of(&pid.to_string(), kind);
    kinds
        .iter()
        .filter(|kind| same(kind))
        .map(|kind| (*kind).to_owned())
        .collect()
}

/// If it fails, who does not wait for `create` cannot start what it makes, a container whose process has
/// ended still runs for those who ask, or one that was killed cannot be deleted.
#[test]
fn callers_need_not_wait() {
    let runtime = Runtime::new("runc-suite-wait");
    let bundle = runtime.bundle("b", "echo out", |_| ());
    let mut create = runtime.command(&format!("create --bundle {bundle} one"));
    let create = create
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("its state", || runtime.run("state one").status.success());
    assert_eq!(runtime.state("one")["status"], "creating");
    runtime.text("start one");
    // Its ends are closed when the container's process has ended, not when the VM has.
    let end = create.wait_with_output().unwrap();
    assert_eq!(
        (end.stdout.as_slice(), end.stderr.as_slice()),
        (&b"out\n"[..], &b""[..])
    );
    sleep(Duration::from_millis(150));
    assert_eq!(runtime.state("one")["status"], "stopped");
    assert_eq!(code(&runtime.run("kill one 9")), 1);
    runtime.text("delete one");

    let bundle = runtime.bundle("long", "sleep 1000", |_| ());
    for started in [false, true] {
        runtime.create(&bundle, "one");
        if started {
            runtime.text("start one");
            assert_eq!(code(&runtime.run("delete one")), 1);
        }
        runtime.text("kill one 9");
        assert_eq!(runtime.state("one")["status"], "stopped");
        runtime.text("delete one");
    }
    runtime.nothing_is_left();
}

/// If it fails, a hook that fails does not end a container, others do not run that must, or a hook in
/// the container lacks its environment.
#[test]
fn hooks_fail() {
    let runtime = Runtime::new("runc-suite-hooks");
    let log = runtime.path("hooks");
    let hook = |word: &str, end: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", format!("echo {word} >>{log} || exit 9; exit {end}")]});
    let begun = |name: &str, change: &dyn Fn(&mut Value)| {
        let _ = fs::remove_file(&log);
        let bundle = runtime.bundle(name, "sleep 1000", |config| {
            config["hooks"]["poststop"] = json!([hook("stop1", "1"), hook("stop2", "0")]);
            change(config);
        });
        runtime.create(&bundle, "one");
        let end = runtime.run("start one");
        let status = runtime.state("one")["status"].clone();
        if status == "running" {
            runtime.text("kill one KILL");
        }
        runtime.text("delete one");
        (code(&end), status, fs::read_to_string(&log).unwrap())
    };
    // The hook's file is the host's, which is not there in the container.
    let (end, status, ran) = begun("in", &|config| {
        config["hooks"]["startContainer"] = json!([hook("never", "0")]);
        config["hooks"]["poststart"] = json!([hook("start", "0")]);
    });
    assert_eq!((end, status), (1, json!("stopped")));
    assert_eq!(ran, "start\nstop1\nstop2\n");
    let (end, status, ran) = begun("post", &|config| {
        let hooks = [("1", "0"), ("2", "1"), ("3", "0")];
        config["hooks"]["poststart"] = hooks.map(|(word, end)| hook(word, end)).to_vec().into();
    });
    assert_eq!((end, status), (1, json!("stopped")));
    assert_eq!(ran, "1\n2\nstop1\nstop2\n");
    let (end, status, _) = begun("env", &|config| {
        let test = |condition: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", condition]});
        config["process"]["env"]
            .as_array_mut()
            .unwrap()
            .push("ONE=two".into());
        let mut own = test("test \"$TWO\" = three && test -z \"$ONE\"");
        own["env"] = json!(["TWO=three"]);
        config["hooks"]["startContainer"] = json!([test("test \"$ONE\" = two"), own]);
    });
    assert_eq!((end, status), (0, json!("running")));
    runtime.nothing_is_left();
}

/// If it fails, a container's limits do not hold for what its VM takes of the host, or one that the
/// kernel does not know is passed over.
#[test]
fn limits_are_on_the_host() {
    let runtime = Runtime::new("runc-suite-limits");
    let group = Path::new("/sys/fs/cgroup/runc-suite/limits");
    let read = |file: &str| {
        fs::read_to_string(group.join(file))
            .unwrap()
            .trim()
            .to_owned()
    };
    let bundle = |name: &str, resources: Value| {
        let script = "cd /sys/fs/cgroup; cat pids.max cpu.weight; sleep 1000";
        runtime.bundle(name, script, |config| {
            config["linux"]["cgroupsPath"] = "runc-suite/limits".into();
            config["linux"]["resources"] = resources;
        })
    };
    let device = host("cat /sys/block/*/dev | head -1");
    let (major, minor) = device.trim().split_once(':').unwrap();
    let number = |text: &str| text.parse::<u32>().unwrap();
    let (limit, swap) = (48 << 20, 64 << 20);
    let one = bundle(
        "one",
        json!({
            "memory": {"limit": limit, "swap": swap, "reservation": 16 << 20},
            "cpu": {"shares": 22000, "quota": 250_000, "period": 250_000},
            "pids": {"limit": 64},
            "blockIO": {"throttleReadBpsDevice":
                [{"major": number(major), "minor": number(minor), "rate": 102_400}]},
        }),
    );
    runtime.create(&one, "one");
    assert_eq!(read("cpu.weight"), "1204");
    assert_eq!(read("cpu.max"), "250000 250000");
    assert_eq!(read("memory.low"), (16 << 20).to_string());
    assert_eq!(read("memory.swap.max"), (swap - limit).to_string());
    assert!(read("memory.max").parse::<u64>().unwrap() > limit);
    assert!(read("io.max").contains(&format!("{major}:{minor} rbps=102400")));
    runtime.text("start one");
    wait_until("its limits", || runtime.printed("one") == "64\n1204\n");
    runtime.text("update --cpu-quota 50000 --cpu-share 100 one");
    assert_eq!(read("cpu.max"), "50000 250000");
    assert_eq!(read("cpu.weight"), "17");
    let inside = runtime.text("exec one cat /sys/fs/cgroup/cpu.weight");
    assert_eq!(inside, "17");
    runtime.text("delete --force one");
    let unified = json!({"cpu.max": "10000 100000", "cpu.weight": "42", "memory.low": "524288"});
    let two = bundle(
        "two",
        json!({"cpu": {"shares": 3333, "quota": 40000}, "unified": unified}),
    );
    runtime.create(&two, "one");
    assert_eq!(
        (read("cpu.max"), read("cpu.weight")),
        ("10000 100000".into(), "42".into())
    );
    runtime.text("delete one");
    for (name, bad) in [
        ("bad", json!({"unified": {"nonexistent.max": "1"}})),
        (
            "worse",
            json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}),
        ),
        (
            "worst",
            json!({"hugepageLimits": [{"pageSize": "2MB/../../x", "limit": 1}]}),
        ),
    ] {
        let bundle = bundle(name, bad);
        assert_eq!(
            code(&runtime.run(&format!("create --bundle {bundle} one"))),
            1
        );
        assert_eq!(code(&runtime.run("state one")), 1);
    }
    runtime.nothing_is_left();
}

/// If it fails, a container takes over somebody else's cgroup, with limits and all, or who deletes it kills
/// somebody else.
#[test]
fn a_cgroup_of_others_is_theirs() {
    let runtime = Runtime::new("runc-suite-others");
    let group = Path::new("/sys/fs/cgroup/runc-suite-others");
    let stranger = || {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        child
    };
    let end = |mut child: Child| {
        assert!(child.try_wait().unwrap().is_none(), "it was killed");
        child.kill().unwrap();
        child.wait().unwrap();
    };
    let bundle = runtime.bundle("b", "sleep 1000", |config| {
        config["linux"]["cgroupsPath"] = "/runc-suite-others".into();
    });
    let refused = |words: &str| {
        let made = runtime.run(&format!("create --bundle {bundle} one"));
        assert_eq!(code(&made), 1, "{made:?}");
        assert!(said(&made).contains(words), "{words}: {made:?}");
        assert_eq!(code(&runtime.run("state one")), 1);
        assert!(group.is_dir());
    };
    fs::create_dir(group).unwrap();
    let first = stranger();
    refused("container's cgroup is not empty: 1 process(es) found");
    end(first);
    fs::write(group.join("cgroup.freeze"), "1").unwrap();
    refused("container's cgroup unexpectedly frozen");
    fs::write(group.join("cgroup.freeze"), "0").unwrap();

    runtime.create(&bundle, "one");
    runtime.text("start one");
    // Nobody reads what it prints.
    let mut exec = runtime.command("exec one cat /dev/zero");
    let mut exec = exec.stdout(Stdio::piped()).spawn().unwrap();
    wait_until("its output", || {
        let mut byte = [0];
        exec.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1
    });
    let second = stranger();
    let deleted = runtime.run("delete --force one");
    assert_eq!(code(&deleted), 1, "{deleted:?}");
    assert!(
        said(&deleted).contains("not empty: 1 process(es)"),
        "{deleted:?}"
    );
    assert_eq!(runtime.state("one")["status"], "stopped");
    end(second);
    runtime.text("delete one");
    exec.wait().unwrap();
    assert!(!group.exists());
    runtime.nothing_is_left();
}

/// If it fails, who looks for a bind in /proc/self/mountinfo finds none of its source's name; a container has
/// other clocks than it was to have; or one more process runs on other CPUs.
#[test]
fn names_clocks_and_cpus() {
    let runtime = Runtime::new("runc-suite-clocks");
    let [first, second, file] = ["a/etc", "b/etc", "b/a file"].map(|name| runtime.path(name));
    host(&format!("mkdir -p {first} {second}; echo x >'{file}'"));
    let binds = [
        ("/mnt/shared", &first, ["bind", "shared"]),
        ("/mnt/rslave", &first, ["rbind", "rslave"]),
        ("/mnt/other", &second, ["bind", "unbindable"]),
        ("/mnt/file", &file, ["bind", "ro"]),
    ];
    let with_clocks = |config: &mut Value| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "time"}));
        config["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 777, "nanosecs": 5},
            "boottime": {"secs": 1_000_000}});
    };
    let clocks = "cat /proc/self/timens_offsets /proc/uptime";
    let have_offsets = |text: &str| {
        let mut lines = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(lines.next().unwrap(), ["monotonic", "777", "5"], "{text}");
        assert_eq!(
            lines.next().unwrap(),
            ["boottime", "1000000", "0"],
            "{text}"
        );
        let uptime: f64 = lines.next().unwrap()[0].parse().unwrap();
        assert!((1e6..2e6).contains(&uptime), "{text}");
    };
    let cpus = "busybox grep Cpus_allowed_list /proc/self/status";
    let script = format!("{clocks}; cat /proc/self/mountinfo; {cpus}; sleep 1000");
    let bundle = runtime.bundle("b", &script, |config| {
        with_clocks(config);
        config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
        config["linux"]["resources"]["cpu"] = json!({"quota": 200_000, "period": 100_000});
        for (target, source, options) in binds {
            config["mounts"]
                .as_array_mut()
                .unwrap()
                .push(json!({"destination": target, "source": source, "options": options}));
        }
    });
    runtime.create(&bundle, "one");
    runtime.text("start one");
    wait_until("its output", || {
        runtime.printed("one").contains("Cpus_allowed_list")
    });
    let out = runtime.printed("one");
    have_offsets(&out);
    for (target, source, _) in binds {
        let name = source.rsplit('/').next().unwrap().replace(' ', "\\040");
        let line = out
            .lines()
            .find(|line| line.contains(&format!(" {target} ")));
        let root = line.unwrap().split(' ').nth(3).unwrap();
        assert!(root.ends_with(&format!("/{name}")), "{target}: {out}");
    }
    assert!(out.contains("Cpus_allowed_list:\t0-1\n"), "{out}");
    have_offsets(&said(&runtime.shell("exec one", clocks)));
    let exec = |affinity: Option<Value>| {
        let process = runtime.path("process.json");
        let mut json = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/",
            "args": ["/bin/sh", "-c", cpus]});
        if let Some(affinity) = affinity {
            json["execCPUAffinity"] = affinity;
        }
        fs::write(&process, json.to_string()).unwrap();
        said(&runtime.run(&format!("exec --process {process} one")))
    };
    assert!(exec(None).contains(":\t1\n"));
    assert!(exec(Some(json!({"initial": "1"}))).contains(":\t0-1\n"));
    assert!(exec(Some(json!({"final": "0"}))).contains(":\t0\n"));
    let none = exec(Some(json!({"final": "7"})));
    assert!(
        none.contains("execCPUAffinity to 7 of the guest's CPUs"),
        "{none}"
    );
    runtime.text("delete --force one");

    let users = runtime.bundle("users", clocks, |config| {
        with_clocks(config);
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 2000}]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    });
    have_offsets(&said(&runtime.run(&format!("run --bundle {users} one"))));
    let none = runtime.bundle("none", clocks, |config| {
        config["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1}});
    });
    let end = runtime.run(&format!("run --bundle {none} one"));
    assert!(said(&end).contains("there is no time namespace"), "{end:?}");
    runtime.nothing_is_left();
}

/// If it fails, the process that stands for a container has namespaces that were not asked for, or lacks
/// those that were; or a container with the host's network is none.
#[test]
fn namespaces_of_the_process() {
    let runtime = Runtime::new("runc-suite-ns");
    let bundle = runtime.bundle("own", "true", |_| ());
    runtime.create(&bundle, "one");
    assert_eq!(
        shared_namespaces(&runtime.state("one")["pid"]),
        ["pid", "user"]
    );
    runtime.text("delete one");
    let bundle = runtime.bundle("none", "ip addr", |config| {
        config["linux"]["namespaces"] = json!([]);
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
        config.as_object_mut().unwrap().remove("hostname");
    });
    for take_it_away in [true, false] {
        runtime.create(&bundle, "one");
        assert_eq!(shared_namespaces(&runtime.state("one")["pid"]).len(), 7);
        if take_it_away {
            host(&format!("umount -l {bundle}/rootfs"));
        } else {
            runtime.text("start one");
            runtime.wait_stopped("one");
            assert!(runtime.printed("one").contains("LOOPBACK"));
        }
        runtime.text("delete one");
        assert!(!host("cat /proc/mounts").contains(&bundle));
    }
    runtime.nothing_is_left();
}

/// If it fails, a container does not get an interface that it is to have, or without its addresses.
#[test]
fn interfaces_are_moved() {
    let runtime = Runtime::new("runc-suite-moved");
    host(
        "ip link add suite0 type veth peer name suite1; ip address add 10.78.0.1/24 dev suite0
         ip link set suite1 up",
    );
    let bundle = runtime.bundle("b", "ip address", |config| {
        config["linux"]["netDevices"] = json!({"suite0": {"name": "eth5"}});
    });
    let out = said(&runtime.run(&format!("run --bundle {bundle} one")));
    assert!(
        out.contains("eth5") && out.contains("10.78.0.1/24"),
        "{out}"
    );
    assert!(!host("ip link").contains("suite0"));
    // Its peer went with it, and so there is nothing to be moved any more.
    let end = runtime.run(&format!("create --bundle {bundle} one"));
    assert_eq!(code(&end), 1, "{end:?}");
    runtime.nothing_is_left();
}

/// If it fails, one more process has another environment or cgroup than was said, or cannot wait for a
/// frozen container.
#[test]
fn one_more_process() {
    let runtime = Runtime::new("runc-suite-exec");
    let bundle = runtime.bundle("b", "sleep 1000", |config| {
        config["process"]["env"]
            .as_array_mut()
            .unwrap()
            .push("A=spec".into());
    });
    runtime.create(&bundle, "one");
    runtime.text("start one");
    let env = runtime.text("exec --env A=cli --env B=cli one cat /proc/self/environ");
    let env: Vec<&str> = env.split('\0').collect();
    assert!(env.contains(&"A=cli") && env.contains(&"B=cli"), "{env:?}");
    assert!(!env.contains(&"A=spec"), "{env:?}");
    assert_eq!(
        runtime.text("exec --cgroup=/ one cat /proc/self/cgroup"),
        "0::/"
    );
    for bad in ["..", "nothing", "cpu:nothing", "waat:/"] {
        let end = runtime.run(&format!("exec --cgroup {bad} one true"));
        assert_eq!(code(&end), 255, "{bad}");
    }
    assert_eq!(runtime.text("exec --preserve-fds 100 one echo yes"), "yes");
    runtime.text("pause one");
    let frozen = runtime
        .command("exec --ignore-paused one echo thawed")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    sleep(Duration::from_secs(1));
    runtime.text("resume one");
    assert_eq!(said(&frozen.wait_with_output().unwrap()), "thawed\n");
    runtime.text("delete --force one");
    runtime.nothing_is_left();
}

/// If it fails, a process lacks the descriptors that its caller gave it, or has them the wrong way round.
#[test]
fn descriptors_are_passed_on() {
    let runtime = Runtime::new("runc-suite-fds");
    let script = "cat <&3; cat <&5; echo out >&4; ls /proc/self/fd; exec 4>&-; sleep 1000";
    let bundle = runtime.bundle("b", script, |_| ());
    let call = |line: &str| {
        let command = runtime.command(line);
        let args = command
            .get_args()
            .map(|arg| arg.to_str().unwrap().to_owned());
        [&runtime.program as &str]
            .into_iter()
            .map(str::to_owned)
            .chain(args)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let [file, output, all] = ["file", "output", "all"].map(|name| runtime.path(name));
    fs::write(&file, "from a file\n").unwrap();
    let create = call(&format!("create --preserve-fds 3 --bundle {bundle} one"));
    host(&format!(
        "echo from a pipe | {create} 3<{file} 4>{output} 5<&0 </dev/null >{all} 2>&1 || {{ cat {all} >&2; exit 1; }}"
    ));
    runtime.text("start one");
    wait_until("its descriptors", || {
        fs::read_to_string(&output).unwrap() == "out\n"
    });
    wait_until("its output", || {
        fs::read_to_string(&all).unwrap().ends_with("5\n6\n")
    });
    let printed = fs::read_to_string(&all).unwrap();
    assert_eq!(printed, "from a file\nfrom a pipe\n0\n1\n2\n3\n4\n5\n6\n");

    let exec = call("exec --preserve-fds 5 one sh -c");
    let said = host(&format!(
        "{exec} 'cat <&7; echo more >&6' 7<{file} 6>>{output}"
    ));
    assert_eq!(said, "from a file\n");
    wait_until("its words", || {
        fs::read_to_string(&output).unwrap() == "out\nmore\n"
    });
    let refused = host(&format!("{exec} true 2>&1 3<>{file} || echo $?"));
    assert!(
        refused.contains("open for reading and writing"),
        "{refused}"
    );
    assert!(refused.ends_with("255\n"), "{refused}");
    runtime.text("delete --force one");
    runtime.nothing_is_left();
}

/// If it fails, what is mounted below a volume has the volume's attributes or none of its own, or the
/// kernel's files are mounted where a link leads.
#[test]
fn mounts_below_mounts() {
    let runtime = Runtime::new("runc-suite-mounts");
    let volume = runtime.path("volume");
    host(&format!(
        "mkdir {volume}; mount -t tmpfs t {volume}; mkdir {volume}/below
         mount -t tmpfs t {volume}/below; touch {volume}/bar {volume}/below/bar
         mknod {volume}/below/null c 1 3; ln -s bar {volume}/below/link"
    ));
    let run = |name: &str, script: &str, options: &[&str]| {
        let bundle = runtime.bundle(name, script, |config| {
            config["root"]["readonly"] = true.into();
            config["mounts"].as_array_mut().unwrap().push(json!({
                "destination": "/mnt", "source": volume, "options": options}));
        });
        said(&runtime.run(&format!("run --bundle {bundle} one")))
    };
    let write = "echo x >/mnt/bar; echo x >/mnt/below/bar && echo written";
    let read_only = "can't create";
    let out = run("ro", write, &["rbind", "ro"]);
    assert!(
        out.contains(read_only) && out.contains("written\n"),
        "{out}"
    );
    let out = run("rro", write, &["rbind", "rro"]);
    assert_eq!(out.matches(read_only).count(), 2, "{out}");
    let script = "cat /mnt/below/null && echo device; cat /mnt/below/link && echo followed
                  cat /proc/self/mountinfo";
    let out = run("rdev", script, &["rbind", "rdev", "rnoatime"]);
    assert!(out.contains("device") && out.contains("followed"), "{out}");
    let line = out.lines().find(|line| line.contains(" /mnt/below "));
    assert!(line.unwrap().contains("noatime"), "{out}");
    let out = run("rnodev", script, &["rbind", "rnodev", "rnosymfollow"]);
    assert!(
        !out.contains("device\n") && !out.contains("followed"),
        "{out}"
    );
    host(&format!("umount {volume}/below {volume}"));

    let bundle = runtime.bundle("link", "true", |_| ());
    host(&format!(
        "cd {bundle}/rootfs; rmdir proc; ln -s {bundle}/rootfs/proc proc"
    ));
    let end = runtime.run(&format!("create --bundle {bundle} one"));
    assert!(
        said(&end).contains("must be mounted on ordinary directory"),
        "{end:?}"
    );
    runtime.nothing_is_left();
}

/// If it fails, a process has another priority than was said, a container lacks the nodes of devices that
/// only the host has, or one with users of its own cannot see /sys.
#[test]
fn priorities_devices_and_users() {
    let runtime = Runtime::new("runc-suite-process");
    let script = "busybox ionice; busybox cut -d' ' -f19,41 /proc/self/stat
                  ls -l /dev/test1 /dev/test2; cat /dev/test2
                  cat /proc/self/uid_map; ls -d /sys/kernel; cat /sys/fs/cgroup/cgroup.type";
    let bundle = runtime.bundle("b", script, |config| {
        config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 3});
        config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 1});
        let device = |path: &str, kind: &str, major: u32| {
            json!({"path": path, "type": kind, "major": major, "minor": 666, "fileMode": 432})
        };
        config["linux"]["devices"] =
            json!([device("/dev/test1", "c", 10), device("/dev/test2", "b", 8)]);
    });
    let out = said(&runtime.run(&format!("run --bundle {bundle} one")));
    for part in [
        "idle",
        "\n1 3\n",
        "crw-rw----",
        "10, 666",
        "brw-rw----",
        "No such device",
    ] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let users = runtime.bundle("users", script, |config| {
        config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 2000}]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    });
    let out = said(&runtime.run(&format!("run --bundle {users} one")));
    assert!(
        out.contains("1000       2000") && out.contains("/sys/kernel\ndomain"),
        "{out}"
    );
    runtime.nothing_is_left();
}
