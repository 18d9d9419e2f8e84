//! Engines that are killed at some stage of a container's life, and what is left when they, or those who
//! start them again, have cleaned up.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::engines::{Engine, containerd, dockerd};
use crate::harness::{host, wait_until};
use crate::runc::Runtime;

/// Whether there is a process with these words in its command line.
fn is_there(pattern: &str) -> bool {
    let mut command = Command::new("pgrep");
    command.args(["-f", pattern]).stdout(Stdio::null());
    command.status().unwrap().success()
}

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null()).spawn().unwrap()
}

/// Removes what Podman forgets, with runc as with us: it asks no runtime to delete a container whose conmon
/// was killed.
fn sweep(runtime: &Runtime) {
    let run = |args: &[&str]| Command::new(&runtime.program).args(args).output().unwrap();
    let list = run(&["list", "--quiet"]);
    for id in String::from_utf8_lossy(&list.stdout).lines() {
        let end = run(&["delete", "--force", id]);
        assert!(end.status.success(), "{end:?}");
        let group = format!("/sys/fs/cgroup/libpod_parent/libpod-{id}");
        assert!(!std::fs::exists(group).unwrap());
    }
}

/// If it fails, a container of a Podman or a conmon that was killed lives on as a VM that nobody knows of, or
/// cannot be removed.
#[test]
fn podman_and_conmon_are_killed() {
    let podman = Engine::podman("podman-dies");
    let dir = podman.runtime.path("");
    let monitor = format!("boot --config {dir}");
    let conmon = format!("conmon.*{dir}");
    let engine = format!("^podman.*{dir}");
    let both = format!("{conmon}|{engine}");
    for (stage, victim) in [
        ("create", &engine),
        ("create", &conmon),
        ("create", &both),
        ("start", &engine),
        ("exec", &engine),
        ("exec", &conmon),
        ("delete", &engine),
    ] {
        let run = "run -d --name one --network none box sleep 1000";
        let exec = "exec one sleep 1000";
        let doing = match stage {
            "create" | "start" => podman.command(run),
            "exec" => {
                podman.text(run);
                podman.command(exec)
            }
            _ => {
                podman.text(run);
                podman.command("rm -f -t 0 one")
            }
        };
        let mut doing = spawn(doing);
        match stage {
            "create" => wait_until("a VM", || is_there(&monitor)),
            "exec" => wait_until("the exec", || is_there("runc exec-shim")),
            _ => {
                let call = format!("runc.* {stage} ");
                // It may be over before it is seen.
                let mut over = false;
                wait_until("the call", || {
                    over = doing.try_wait().unwrap().is_some();
                    over || is_there(&call)
                });
            }
        }
        let _ = Command::new("pkill").args(["-9", "-f", victim]).status();
        doing.wait().unwrap();
        wait_until("Podman's own clean-up", || !is_there("container cleanup"));
        let end = podman.run("rm -f -t 0 one");
        let known = end.status.success()
            || String::from_utf8_lossy(&end.stderr).contains("no such container");
        assert!(known, "{stage}, {victim}: {end:?}");
        wait_until("the end of the VM", || !is_there(&monitor));
        sweep(&podman.runtime);
        podman.runtime.nothing_is_left();
    }
}

/// If it fails, containerd cannot clean up after a shim of its that was killed, or after its own death.
#[test]
fn containerd_and_its_shim_are_killed() {
    let runtime = Runtime::new("ctr-dies");
    let (daemon, socket) = containerd(&runtime);
    let mut daemon = Some(daemon);
    let ctr = format!("ctr -a {socket}");
    let podman = Engine::podman_of(runtime, "", "cgroupfs");
    let runtime = &podman.runtime;
    let image = runtime.path("image.tar");
    podman.text(&format!("save -q -o {image} box"));
    host(&format!("{ctr} image import --snapshotter native {image}"));
    let run = format!(
        "run -d --snapshotter native --runc-binary {} docker.io/library/box:latest one sleep 1000",
        runtime.program
    );
    let name = host(&format!("{ctr} image ls -q"));
    let run = run.replace("docker.io/library/box:latest", name.trim());
    let monitor = format!("boot --config {}", runtime.path(""));
    for (stage, victim) in [
        ("create", "shim"),
        ("run", "shim"),
        ("exec", "shim"),
        ("run", "containerd"),
        ("exec", "containerd"),
    ] {
        let start = |line: &str| {
            let mut command = Command::new("ctr");
            command.args(["-a", &socket]).args(line.split_whitespace());
            spawn(command)
        };
        let mut doing = match stage {
            "create" => start(&run),
            "run" => {
                host(&format!("{ctr} {run}"));
                start("version")
            }
            _ => {
                host(&format!("{ctr} {run}"));
                start("task exec --exec-id more one sleep 1000")
            }
        };
        match stage {
            "create" => wait_until("a VM", || is_there(&monitor)),
            "exec" => wait_until("the exec", || is_there("runc exec-shim")),
            _ => {}
        }
        match victim {
            "shim" => {
                let shim = format!("containerd-shim.*{socket}");
                let killed = Command::new("pkill").args(["-9", "-f", &shim]).status();
                assert!(killed.unwrap().success(), "{stage}: no shim");
            }
            _ => {
                daemon.take().unwrap().kill();
                daemon = Some(containerd(runtime).0);
            }
        }
        // A client of a shim that is gone may wait for ever.
        thread::sleep(Duration::from_secs(1));
        let _ = doing.kill();
        doing.wait().unwrap();
        let _ = Command::new("sh")
            .args([
                "-c",
                &format!("timeout 60 {ctr} task rm -f one; timeout 60 {ctr} container rm one"),
            ])
            .output();
        wait_until("the end of the VM", || !is_there(&monitor));
        runtime.nothing_is_left();
        let list = host(&format!("{ctr} container ls -q; {ctr} task ls -q"));
        assert_eq!(list, "", "{stage}, {victim}");
        let state = "/run/containerd/runc/default/one";
        assert!(
            !std::fs::exists(state).unwrap(),
            "{stage}, {victim}: {state}"
        );
        assert!(!std::fs::exists("/sys/fs/cgroup/default/one").unwrap());
    }
}

/// If it fails, a container of a dockerd that was killed lives on as a VM that the next one does not end, or
/// cannot remove.
#[test]
fn dockerd_is_killed() {
    let runtime = Runtime::new("docker-dies");
    let (daemon, socket) = containerd(&runtime);
    let mut docker = Engine::docker(runtime, &socket, daemon);
    let monitor = format!("boot --config {}", docker.runtime.path(""));
    for stage in ["create", "exec"] {
        let run = "run -d --name one --network none box sleep 1000";
        let mut doing = if stage == "create" {
            let doing = spawn(docker.command(run));
            wait_until("a VM", || is_there(&monitor));
            doing
        } else {
            docker.text(run);
            let doing = spawn(docker.command("exec one sleep 1000"));
            wait_until("the exec", || is_there("runc exec-shim"));
            doing
        };
        docker.daemons.remove(0).kill();
        doing.wait().unwrap();
        let again = dockerd(&docker.runtime, &socket);
        docker.daemons.insert(0, again);
        wait_until("Docker", || docker.run("version").status.success());
        let end = docker.run("rm -f one");
        assert!(end.status.success(), "{stage}: {end:?}");
        wait_until("the end of the VM", || !is_there(&monitor));
        docker.runtime.nothing_is_left();
    }
}
