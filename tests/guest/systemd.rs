//! The OCI runtime where systemd is the host's first process, and engines have it divide the cgroups.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::{Child, Command, Stdio};

use crate::engines::Engine;
use crate::harness::{host, wait_until};
use crate::runc::Runtime;

/// Starts Debian's systemd, with D-Bus and nothing else, as the first process of a machine within the
/// machine: it has namespaces, a /run and a part of the cgroups of its own. Arguments: a directory below
/// /run, and the cgroup.
const BOOT: &str = r#"
dir=$1; cgroup=$2; new=$dir/new-run; units=$dir/units
mkdir -p "$new" "$units" "$dir/nothing" "$cgroup/test"
for unit in dbus.service dbus.socket sysinit.target basic.target sockets.target shutdown.target; do
    ln -s /lib/systemd/system/$unit "$units"
done
printf '[Unit]\nRequires=dbus.service\nAfter=dbus.service\n' >"$units/test.target"
# One by one: those that are there already keep none of the others away.
for controller in cpu cpuset io memory pids; do
    echo +$controller >/sys/fs/cgroup/cgroup.subtree_control || :
done
export dir cgroup new units
export inner='
    mount -t proc proc /proc
    umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
    echo 0 >/sys/fs/cgroup/cgroup.procs
    mount -t tmpfs tmpfs "$new"; mkdir "$new/${dir##*/}"; mount --rbind "$dir" "$new/${dir##*/}"
    mount --no-mtab --move "$new" /run
    exec env -i container=test PATH="$PATH" SYSTEMD_UNIT_PATH="$units" \
        SYSTEMD_GENERATOR_PATH="$dir/nothing" /lib/systemd/systemd --unit=test.target'
# Only systemd is in the cgroup that is its first: one with others in it is not divided.
echo 0 >"$cgroup/cgroup.procs"
unshare --cgroup sh -ec 'echo 0 >"$cgroup/test/cgroup.procs"
    exec unshare --pid --mount --fork --kill-child sh -ec "$inner"' &
echo 0 >/sys/fs/cgroup/cgroup.procs
echo $! >"$dir/unshare"
wait
"#;

/// Runs a command in that machine, in a cgroup that systemd leaves alone.
const ENTER: &str = r#"#!/bin/sh -e
echo 0 >CGROUP/test/cgroup.procs
exec nsenter -t PID -m -p -C -- "$@"
"#;

struct Systemd {
    child: Child,
    cgroup: String,
    /// A program that runs what it is given there.
    enter: String,
}

impl Systemd {
    fn boot(runtime: &Runtime) -> Self {
        let cgroup = format!("/sys/fs/cgroup/systemd-{}", std::process::id());
        let log = fs::File::create(runtime.path("systemd.log")).unwrap();
        let mut command = Command::new("sh");
        let dir = runtime.path("");
        command.args(["-ec", BOOT, "sh", dir.trim_end_matches('/'), &cgroup]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap());
        let child = command.stderr(log).spawn().unwrap();
        let (mut pid, unshare) = (String::new(), runtime.path("unshare"));
        wait_until("systemd", || {
            let script = format!("pgrep -P $(cat {unshare}) || :");
            pid = host(&script).trim().to_owned();
            let socket = format!("/proc/{pid}/root/run/dbus/system_bus_socket");
            fs::metadata(socket).is_ok_and(|about| about.file_type().is_socket())
        });
        let enter = runtime.path("enter");
        let text = ENTER.replace("PID", &pid).replace("CGROUP", &cgroup);
        fs::write(&enter, text).unwrap();
        fs::set_permissions(&enter, fs::Permissions::from_mode(0o755)).unwrap();
        let systemd = Self {
            child,
            cgroup,
            enter,
        };
        wait_until("D-Bus", || {
            systemd.sh("systemctl is-active test.target || :").trim() == "active"
        });
        systemd
    }

    fn sh(&self, script: &str) -> String {
        host(&format!("{} sh -ec '{script}'", self.enter))
    }

    /// The scopes that it knows.
    fn scopes(&self) -> Vec<String> {
        let list = self.sh("systemctl list-units --type scope --plain --no-legend --no-pager");
        let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
        list.lines().filter_map(name).collect()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let script = format!(
            "echo 1 >{0}/cgroup.kill; while test -d {0}; do find {0} -depth -type d -exec rmdir {{}} +; done",
            self.cgroup
        );
        let mut command = Command::new("timeout");
        command.args(["20", "sh", "-c", &script]);
        let _ = command.stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

/// If it fails, systemd does not know the scopes of containers, which engines and `systemctl` look for, or
/// limits them otherwise than was said; or they stay when their containers are gone.
#[test]
fn systemd_has_the_scopes_of_containers() {
    let runtime = Runtime::new("systemd");
    let systemd = Systemd::boot(&runtime);
    let podman = Engine::podman_of(runtime, &systemd.enter, "systemd");
    let id = podman.text("run -d --name one --network none -m 128m --cpus 0.5 box sleep 1000");
    let unit = format!("libpod-{id}.scope");
    assert!(systemd.scopes().contains(&unit), "{:?}", systemd.scopes());
    let shown = systemd.sh(&format!("systemctl show {unit}"));
    let group = format!("/machine.slice/{unit}");
    for line in [
        &format!("ControlGroup={group}"),
        "Slice=machine.slice",
        "Delegate=yes",
        "DefaultDependencies=no",
        "CollectMode=inactive-or-failed",
        "CPUQuotaPerSecUSec=500ms",
        "TasksMax=4096",
    ] {
        assert!(shown.lines().any(|one| one == line), "{line}: {shown}");
    }
    let file = |name: &str| systemd.sh(&format!("cat /sys/fs/cgroup{group}/{name}"));
    assert_eq!(file("cpu.max"), "50000 100000\n");
    // The VM's 128 MiB and its kernel's share, and what serves it.
    let memory: u64 = file("memory.max").trim().parse().unwrap();
    assert!((256 << 20..400 << 20).contains(&memory), "{memory}");
    assert!(shown.contains(&format!("MemoryMax={memory}\n")));
    // The guest is in it.
    let memory: u64 = file("memory.current").trim().parse().unwrap();
    assert!(memory > 16 << 20, "{memory}");
    // The same name again, as soon as the scope before is gone.
    podman.text("restart -t 0 one");
    assert!(systemd.scopes().contains(&unit), "{:?}", systemd.scopes());
    podman.text("rm -f -t 0 one");
    podman.runs();
    podman.manages();
    podman.runtime.nothing_is_left();
    wait_until("the end of all scopes", || {
        systemd.scopes() == ["init.scope"]
    });
}

/// If it fails, engines that have systemd's driver cannot run containers where another init is the first
/// process, or nobody says that systemd does not know of them.
#[test]
fn without_systemd_there_is_a_cgroup_all_the_same() {
    let runtime = Runtime::new("no-systemd");
    let bundle = runtime.bundle("b", "cat /proc/self/cgroup", |config| {
        config["linux"]["cgroupsPath"] = "nosystemd.slice:test:one".into();
        let own = "/sys/fs/cgroup/nosystemd.slice/test-one.scope/cgroup.procs";
        config["hooks"]["createRuntime"] = serde_json::json!([
            {"path": "/bin/sh", "args": ["sh", "-c", format!("grep . {own} >&2")]}]);
    });
    let end = runtime.run(&format!("--systemd-cgroup run --bundle {bundle} one"));
    assert!(end.status.success(), "{end:?}");
    let warning = "the cgroup is made without systemd: systemd is not this host's first process";
    assert!(runtime.log().contains(warning), "{}", runtime.log());
    let slice = "/sys/fs/cgroup/nosystemd.slice";
    assert!(!fs::exists(format!("{slice}/test-one.scope")).unwrap());
    fs::remove_dir(slice).unwrap();
    runtime.nothing_is_left();
}
