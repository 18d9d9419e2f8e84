//! Open files do not reach who has no business with them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::container::Engine;
use crate::harness::{TempDir, Vm, host, program, script_args};
use crate::runc::Runtime;

/// O_CLOEXEC, as /proc has a descriptor's flags.
const CLOSE_ON_EXEC: u32 = 0o200_0000;

/// A network with a way out that leads nowhere, for passt, and a descriptor that a careless parent left
/// open: then the command.
const WORLD: &str = r#"
ip link set lo up; ip link add up0 type dummy; ip link set up0 up
ip address add 10.88.0.2/24 dev up0; ip route add default via 10.88.0.1
ip tuntap add cofbare mode tap
exec 7</dev/null "$@"
"#;

/// Opens a tap as descriptor 9, then becomes the command.
const WITH_TAP: &str = "
import fcntl, os, struct, sys
tap = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'cofbare', 0x5002))
os.dup2(tap, 9); os.close(tap)
os.execvp(sys.argv[1], sys.argv[1:])
";

/// Says that all that a process has open, but its standard streams, closes when it executes a program.
#[track_caller]
fn all_close_on_exec(pid: &str) {
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
        let entry = entry.unwrap();
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        // It may be closed by now.
        let Ok(info) = fs::read_to_string(entry.path()) else {
            continue;
        };
        let flags = info
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap();
        let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
        let link = fs::read_link(format!("/proc/{pid}/fd/{number}"));
        assert!(
            number < 3 || flags & CLOSE_ON_EXEC != 0,
            "{number}: {link:?}"
        );
        count += 1;
    }
    assert!(count > 3, "{count}");
}

/// If it fails, passt, which speaks with the network, or another child gets the monitor's descriptors: the
/// guest's memory, its disks, KVM.
#[test]
fn children_of_the_monitor_get_none() {
    let dir = TempDir::new("descriptors");
    let list = dir.join("list");
    fs::create_dir(dir.join("bin")).unwrap();
    let passt = dir.join("bin/passt");
    // What a program of its own gets from it.
    let script = format!(
        "#!/bin/sh\nls -l /proc/self/fd >{}\nexec /usr/bin/passt \"$@\"\n",
        list.display()
    );
    fs::write(&passt, script).unwrap();
    fs::set_permissions(&passt, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.join("shared")).unwrap();
    fs::write(dir.join("disk"), [0; 4096]).unwrap();
    let options = format!(
        "--net passt --net fd=9 --fs tag=src,path={} --vsock cid=3,uds={} --balloon \
         --disk path={},queues=1,iothread=on",
        dir.join("shared").display(),
        dir.join("vsock").display(),
        dir.join("disk").display(),
    );
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "sh",
        "-ec",
        WORLD,
        "sh",
        "python3",
        "-c",
        WITH_TAP,
        program(),
        "boot",
    ]);
    command.args(script_args(&dir, &options, "sh", "echo ready; read line"));
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", dir.join("bin").display()));
    let mut vm = Vm::spawn(command);
    vm.wait_for("ready");
    let pid = vm.pid().to_string();
    all_close_on_exec(&pid);
    let listed = fs::read_to_string(&list).unwrap();
    // And the directory that is listed.
    let is_theirs = |line: &&str| line.contains(" -> ") && !line.contains("/proc/");
    let theirs: Vec<&str> = listed.lines().filter(is_theirs).collect();
    assert_eq!(theirs.len(), 3, "{listed}");
    // In its own network: other tests may have taps, too.
    let tap = host(&format!(
        "network=$(readlink /proc/{pid}/ns/net); for one in /proc/[0-9]*; do
        [ \"$(readlink $one/ns/net)\" = \"$network\" ] || continue
        ls -l $one/fd 2>/dev/null | grep -q /dev/net/tun && basename $one; done; :"
    ));
    assert!(tap.lines().eq([pid.as_str()]), "{tap}");
    vm.type_text("\n");
    vm.end().expect(0);
}

/// If it fails, a runtime, netavark or a monitor gets descriptors of the shim, or a container's process
/// those of the agent.
#[test]
fn children_of_a_shim_get_none() {
    let engine = Engine::new("descriptors-shim");
    engine.text("run -dit --name one --network none --health-cmd true busybox sh");
    for field in ["{{.Cofferdam.Shim}}", "{{.State.Pid}}"] {
        all_close_on_exec(&engine.text(&format!("inspect -f {field} one")));
    }
    // Those of the shell, and the directory that it lists.
    assert_eq!(
        engine.script("exec one", "echo /proc/self/fd/*"),
        "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3"
    );
    let said = engine.text("exec one ls /proc/1/fd");
    assert_eq!(
        said.split_whitespace()
            .filter(|fd| fd.len() == 1)
            .collect::<String>(),
        "012"
    );
    engine.text("rm -f one");

    let runtime = Runtime::new("descriptors-runc");
    let bundle = runtime.bundle(
        "one",
        "ls -l /proc/self/fd | grep -c ' -> '; sleep 1000",
        |_| {},
    );
    let open = fs::File::open("/dev/null").unwrap();
    // As an engine that leaves something open.
    let leaked = rustix::io::fcntl_dupfd_cloexec(&open, 20).unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    runtime.create(&bundle, "one");
    let pid = fs::read_to_string(runtime.path("one.pid")).unwrap();
    all_close_on_exec(pid.trim());
    let path = format!("/proc/{}/fd/20", pid.trim());
    let theirs = fs::read_link(path).unwrap_or_default();
    assert_ne!(theirs.to_str(), Some("/dev/null"));
    runtime.text("delete --force one");
}
