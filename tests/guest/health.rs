//! What containers say of themselves, and what the host makes sure of.

use std::fs;

use crate::container::{Engine, code};
use crate::harness::{host, wait_until};

/// If it fails, nobody learns that a container is unwell, or it is called so when it is not.
#[test]
fn a_container_is_asked_whether_it_is_well() {
    let engine = Engine::new("health");
    let line = "run -d --name one --network none --health-interval 300ms --health-retries 2 \
                --health-timeout 60s --health-cmd";
    let mut args: Vec<&str> = line.split_whitespace().collect();
    args.extend(["echo asked; test ! -e /bad", "busybox", "sleep", "1000"]);
    assert_eq!(code(&engine.command(&args).output().unwrap()), 0);
    let status = || engine.text("inspect -f {{.State.Health.Status}} one");
    wait_until("health", || status() == "healthy");
    assert!(engine.text("ps").contains("(healthy)"));
    engine.text("exec one touch /bad");
    wait_until("sickness", || status() == "unhealthy");
    let log = engine.text("inspect one").replace(char::is_whitespace, "");
    assert!(
        log.contains("asked") && log.contains("\"ExitCode\":1"),
        "{log}"
    );
    engine.text("exec one rm /bad");
    wait_until("health", || status() == "healthy");
    let events = engine.text("events --no-follow --since 2020-01-01T00:00:00Z");
    assert_eq!(
        events.matches("health_status: healthy").count(),
        2,
        "{events}"
    );
    assert_eq!(
        events.matches("health_status: unhealthy").count(),
        1,
        "{events}"
    );
    assert_eq!(engine.text("ps -q --filter health=unhealthy"), "");
    engine.text("rm -f one");
}

/// If it fails, what health checks and `exec` leave in the background holds threads and descriptors of the
/// shim or the monitor, more each time, until nobody can stop the container; or `exec` never ends.
#[test]
fn what_is_left_in_the_background_holds_nothing() {
    let engine = Engine::new("background");
    let line = "run -d --name one --network none --health-interval 300ms --health-timeout 60s --health-cmd";
    let mut args: Vec<&str> = line.split_whitespace().collect();
    // One that never writes again, and one that does not stop.
    let check = "echo asked; sleep 1000 & while :; do echo x; sleep 1; done & exit 0";
    args.extend([check, "busybox", "sleep", "1000"]);
    assert_eq!(code(&engine.command(&args).output().unwrap()), 0);
    let processes = ["{{.Cofferdam.Shim}}", "{{.State.Pid}}"]
        .map(|field| engine.text(&format!("inspect -f {field} one")));
    let held = || {
        let count = |path: String| fs::read_dir(path).unwrap().count();
        let both = processes
            .iter()
            .flat_map(|pid| ["fd", "task"].map(|what| (pid, what)));
        both.map(|(pid, what)| count(format!("/proc/{pid}/{what}")))
            .collect::<Vec<_>>()
    };
    let left = || engine.text("top one").matches("sleep 1000").count() - 1;
    let background = |count: usize| wait_until("checks", || left() >= count);
    background(3);
    let log = engine.text("inspect one");
    assert!(log.contains("asked"), "{log}");
    let before = held();
    background(11);
    // A check and its streams may be under way: eight more have left nothing.
    let is_bounded = |now: Vec<usize>| {
        now.iter()
            .zip(&before)
            .all(|(now, before)| *now <= before + 6)
    };
    wait_until("descriptors to be let go", || is_bounded(held()));
    for _ in 0..3 {
        let said = engine.script("exec one", "echo said; sleep 1000 & exit 0");
        assert_eq!(said, "said");
    }
    wait_until("descriptors to be let go", || is_bounded(held()));
    engine.text("stop -t 0 one");
    engine.text("rm one");
}

/// If it fails, a VM takes more of the host than its container may, or leaves a cgroup behind.
#[test]
fn the_host_limits_a_vm() {
    let engine = Engine::new("limits");
    engine.text("run -d --name one -m 64m --cpus 0.5 --network none busybox sleep 1000");
    let group = engine.text("inspect -f {{.Cofferdam.Cgroup}} one");
    let read = |file: &str| fs::read_to_string(format!("{group}/{file}")).unwrap();
    let monitor = engine.text("inspect -f {{.State.Pid}} one");
    assert!(read("cgroup.procs").lines().any(|pid| pid == monitor));
    assert_eq!(read("cpu.max"), "50000 100000\n");
    let memory: u64 = read("memory.max").trim().parse().unwrap();
    assert!((192 << 20..300 << 20).contains(&memory), "{memory}");
    engine.text("kill one");
    wait_until("the cgroup's end", || !fs::exists(&group).unwrap());
    engine.text("start one");
    let shim = engine.text("inspect -f {{.Cofferdam.Shim}} one");
    host(&format!("kill -9 {shim}"));
    engine.text("rm -f one");
    assert!(!fs::exists(&group).unwrap());
}

/// If it fails, an option of Docker's is not what it says, or what a VM cannot have is promised.
#[test]
fn further_options_arrive() {
    let engine = Engine::new("further");
    let (labels, profile) = (engine.path("labels"), engine.path("profile"));
    fs::write(&labels, "# none\nfrom=file\n").unwrap();
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
        {"names": ["uname"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_CHOWN"]}}]}"#;
    fs::write(&profile, text).unwrap();
    let disks = ["data", "only"].map(|name| {
        let disk = engine.path(&format!("{name}.img"));
        host(&format!(
            "truncate -s 1M {disk}; echo {name}-content | dd of={disk} conv=notrunc"
        ));
        let node = host(&format!("losetup -f --show {disk}"));
        (disk, node.trim().to_owned())
    });
    let [(disk, node), (_, only)] = &disks;
    let line = format!(
        "run --name one --network none --label-file {labels} --security-opt seccomp={profile} \
         --device {node}:/dev/data --device {only}:/dev/only:r --device /dev/fuse --group-add 77 \
         --domainname lan --pull never busybox"
    );
    let said = engine.script(
        &line,
        "head -n 1 /dev/data; head -n 1 /dev/only; mkdir /x 2>&1; uname; id -G; cat /proc/sys/kernel/domainname
         ls -l /dev/fuse | cut -c1; ! echo x 2>/dev/null >/dev/only && echo new >/dev/data; sync",
    );
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[2].contains("'/x'") && lines[2].contains("ot supported"),
        "{said}"
    );
    assert_eq!(lines[..2], ["data-content", "only-content"], "{said}");
    assert_eq!(lines[3..], ["Linux", "0 77", "lan", "c"], "{said}");
    assert!(host(&format!("head -c 4 {disk}")).starts_with("new"));
    host(&format!("losetup -d {node} {only}"));
    assert_eq!(
        engine.text("inspect -f {{.Config.Labels.from}} one"),
        "file"
    );
    for refused in [
        "--device /dev/zero",
        "--device /dev/nothing",
        "--pull never no-such-image",
        "--health-retries 2",
        "-p 1-3:1-2",
    ] {
        let end = engine.run(&format!("run --rm --network none {refused} busybox true"));
        assert_eq!(code(&end), 125, "{refused}: {end:?}");
    }
}
