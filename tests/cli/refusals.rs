//! What cannot be is refused: in one or two lines that name the thing, the cause and the way out,
//! with the right exit code, and with nothing left behind.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FlockOperation, fcntl_lock};

use super::harness::{
    Dir, PROGRAM, Run, Running, boot, finish, has_kvm, is_root, kernel, kernel_of, program, run,
    signal, skip, start,
};

/// If it fails, a slip on the command line is met by silence, a riddle or a VM that was not asked
/// for.
#[test]
fn bad_options_are_usage_errors() {
    for (args, parts) in [
        ("--bogus", &["'--bogus'", "--help"][..]),
        ("--krenel x", &["'--krenel'", "'--kernel'"]),
        ("stray", &["'stray'"]),
        ("--cpus 0", &["'--cpus", "1..=32"]),
        ("--cpus 33", &["'--cpus", "1..=32"]),
        ("--cpus 300", &["'300'", "1..=32"]),
        ("--cpus many", &["'many'", "'--cpus"]),
        ("--cpus 1 --cpus 2", &["'--cpus", "multiple times"]),
        ("--kernel a --kernel b", &["'--kernel", "multiple times"]),
        ("--kernel", &["'--kernel", "value"]),
        ("--memory 12", &["memory: 12M", "at least 32M"]),
        ("--memory 1T", &["'1T'", "'--memory", "512M or 2G"]),
        (
            "--memory 99999999999999999999G",
            &["'--memory", "more than any host"],
        ),
        ("--hugepages 1G", &["'1G'", "'--hugepages", "2M"]),
        ("--memory 33M --hugepages 2M", &["33M", "multiple of 2M"]),
        (
            "--disk data.img",
            &["'--disk", "unknown field `data.img`", "`path`"],
        ),
        ("--disk ro", &["'--disk", "missing field `path`"]),
        ("--disk path=", &["'--disk", "path=:"]),
        (
            "--disk path=a,ro=maybe",
            &["'--disk", "ro=maybe", "on or off"],
        ),
        (
            "--disk path=a,cache=none",
            &["'--disk", "`none`", "`writeback`"],
        ),
        ("--disk path=a,path=b", &["'--disk", "path is given twice"]),
        (
            "--disk path=a,id=123456789012345678901",
            &["disk a", "21 bytes", "room for 20"],
        ),
        ("--rootfs ,ro", &["'--rootfs", "empty"]),
        ("--rootfs a --rootfs b", &["'--rootfs", "multiple times"]),
        ("--rootfs a,pmem,id=x", &["'--rootfs", "unknown field `id`"]),
        ("--rootfs a,pmem=maybe", &["'--rootfs", "on or off"]),
        ("--pmem ro", &["'--pmem", "missing field `file`"]),
        (
            "--pmem path=a",
            &["'--pmem", "unknown field `path`", "`file`"],
        ),
        ("--net mtu=1500", &["net:", "tap=NAME, fd=N or passt"]),
        ("--net tap=t,fd=3", &["net:", "tap=NAME, fd=N or passt"]),
        ("--net tap=t,passt", &["net:", "tap=NAME, fd=N or passt"]),
        ("--net passt,publish=80", &["publish:", "8080:80", "\"80\""]),
        ("--net tap=t,publish=80:80", &["net: publish is for passt"]),
        ("--net passt,mtu=70", &["net: passt", "1280 to 65520"]),
        (
            "--net tap=t,mac=zz",
            &["net:", "\"zz\"", "02:00:00:12:34:56"],
        ),
        (
            "--net tap=t,mac=01:00:5e:00:00:01",
            &["net:", "01:00:5e:00:00:01", "02"],
        ),
        ("--vsock cid=3", &["'--vsock", "missing field `uds`"]),
        ("--vsock cid=2,uds=v", &["vsock:", "cid", "2", "3 to"]),
        ("--vsock cid=3,uds=", &["'--vsock", "uds=:"]),
        ("--net tap=t,mtu=20", &["net:", "MTU 20", "68 to 65535"]),
        (
            "--net tap=t,mtu=70000",
            &["'--net", "MTU 70000", "68 to 65535"],
        ),
        ("--net tap=t,mtu=big", &["'--net", "mtu=big", "number"]),
        ("--fs tag=t", &["fs t", "path=DIRECTORY or socket=PATH"]),
        ("--fs path=/", &["fs", "1 to 36 bytes"]),
        (
            "--fs tag=t,path=/ --fs tag=t,path=/,name=n",
            &["fs t", "must each have a name"],
        ),
        ("--fs tag=t,path=/ --pages map", &["fs", "--pages copy"]),
        ("--console tty", &["'tty'", "'--console", "stdio, off, pty"]),
        ("--console file=", &["'--console", "empty"]),
        ("--grace soon", &["'soon'", "'--grace"]),
        ("--log-level loud", &["'loud'", "'--log-level", "debug"]),
        (
            "--log-file /nonexistent/log",
            &["/nonexistent/log", "No such file"],
        ),
        (
            "--cpu-template /nonexistent.json",
            &["CPU template", "/nonexistent.json"],
        ),
        (
            "--config /nonexistent.json",
            &["configuration", "/nonexistent.json", "No such file"],
        ),
    ] {
        let dir = Dir::new();
        finish(boot_with(&dir, args)).refused(2, parts);
    }
    run(&["boto"]).refused(2, &["'boto'", "'boot'"]);
    run(&["completions", "tcsh"]).refused(2, &["'tcsh'", "bash"]);
    assert_eq!(run(&[]).expect(2).stdout, "");
}

/// The kernel is named first only where the arguments do not name one.
fn boot_with(dir: &Dir, args: &str) -> Running {
    if args.contains("--kernel") {
        return start(program().arg("boot").args(args.split_whitespace()));
    }
    let mut command = program();
    command.args(["boot", "--kernel", &dir.path("off")]);
    start(command.args(args.split_whitespace()))
}

/// If it fails, a command line that the kernel would misread is passed on to it.
#[test]
fn a_command_line_that_no_kernel_reads_is_refused() {
    let dir = Dir::new();
    let kernel = dir.path("off");
    let with = |text: &str| run(&["boot", "--kernel", &kernel, "--cmdline", text]);
    with("quiet\nroot=/dev/sda").refused(2, &["cmdline", "'\\n' at byte 5"]);
    with("grüße").refused(2, &["cmdline", "'ü' at byte 2"]);
    if has_kvm() {
        with(&"x".repeat(5000)).refused(2, &["cmdline", "bytes", "at most", "--cmdline"]);
    }
}

/// If it fails, a mistake in a configuration file is ignored, or one has to guess where it is.
#[test]
fn bad_configuration_files_are_refused() {
    for (text, parts) in [
        ("", &["EOF"][..]),
        ("{", &["EOF", "line 1"]),
        (
            "{\"cpus\": {\"count\": 2,}}",
            &["trailing comma", "line 1 column 22"],
        ),
        ("7", &["not valid", "line 1"]),
        ("{\"kernel\": \"k\"}", &["unknown field `kernel`", "`boot`"]),
        (
            "{\"memory\": {\"sise\": \"1G\"}}",
            &["unknown field `sise`", "`size`"],
        ),
        ("{\"memory\": {\"size\": \"1T\"}}", &["512M or 2G"]),
        (
            "{\"memory\": {\"size\": 70000000000}}",
            &["more than any host", "line 1"],
        ),
        ("{\"memory\": {\"size\": 1.5}}", &["512 (MiB)", "line 1"]),
        ("{\"cpus\": {\"count\": 0}}", &["1 to 32", "not 0"]),
        (
            "{\"cpus\": {\"count\": 300}}",
            &["1 to 32", "not 300", "line 1"],
        ),
        (
            "{\"boot\": {\"kernel\": \"\"}}",
            &["kernel: the path is empty"],
        ),
        ("{\"disks\": [{\"ro\": true}]}", &["missing field `path`"]),
        (
            "{\"nets\": [{\"tap\": \"t\", \"mtu\": 70000}]}",
            &["MTU 70000", "68 to 65535"],
        ),
        ("{\"console\": \"tty\"}", &["stdio, off, pty"]),
    ] {
        let dir = Dir::new();
        let file = dir.write("vm.json", text.as_bytes());
        let said = run(&["boot", "--config", &file]);
        said.refused(2, &[parts, &["cofferdam: "]].concat());
    }
    let dir = Dir::new();
    run(&["boot", "--config", &dir.path("")]).refused(2, &["configuration", "directory"]);
}

/// If it fails, a CPU template is half read, or a VM starts without the mask it should have.
#[test]
fn bad_cpu_templates_are_refused() {
    if !has_kvm() {
        return;
    }
    let leaf = "{\"cpuid_modifiers\": [{\"leaf\": \"0x3fffffff\", \"subleaf\": \"0x0\", \
                \"modifiers\": []}]}";
    for (text, parts) in [
        (
            "{\"cpuid\": []}",
            &["CPU template", "unknown field `cpuid`"][..],
        ),
        (
            "{\"msr_modifiers\": [{\"addr\": \"x\", \"bitmap\": \"0b1\"}]}",
            &["\"x\" is no 32-bit"],
        ),
        (
            "{\"msr_modifiers\": [{\"addr\": \"0x1\", \"bitmap\": \"0b2\"}]}",
            &["no bitmap"],
        ),
        (leaf, &["0x3fffffff", "--cpu-template"]),
    ] {
        let dir = Dir::new();
        let file = dir.write("cpu.json", text.as_bytes());
        finish(boot(&dir, "off", &format!("--cpu-template {file}"))).refused(2, parts);
    }
}

/// If it fails, a file that is no kernel for us is booted, or what is wrong with it is a riddle.
#[test]
fn kernels_that_cannot_boot_are_refused() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    let whole = kernel(&[0x90; 4096]);
    let mut arm_image = vec![0; 4096];
    arm_image[56..60].copy_from_slice(b"ARM\x64");
    dir.write("empty", b"");
    dir.write("text", b"#!/bin/sh\necho no kernel\n");
    dir.write("short", &whole[..2000]);
    dir.write("head", &whole[..40]);
    dir.write("arm-image", &arm_image);
    dir.write("arm-elf", &kernel_of(183, &[0; 16], 16));
    dir.write("large", &kernel_of(62, &[0x90; 16], 64 << 20));
    let before = dir.names();
    for (name, parts) in [
        ("none", &["kernel", "No such file", "path"][..]),
        ("", &["directory", "--kernel"]),
        ("empty", &["empty", "--kernel"]),
        ("text", &["no kernel", "--kernel"]),
        ("short", &["truncated", "2000", "--kernel"]),
        ("head", &["--kernel"]),
        ("arm-image", &["ARM64", "x86-64"]),
        ("arm-elf", &["ARM64", "x86-64"]),
        ("large", &["80 MiB", "32 MiB", "--memory"]),
    ] {
        let path = dir.path(name);
        finish(boot(&dir, name, "")).refused(2, &[parts, &[path.as_str()]].concat());
    }
    finish(boot(&dir, "off", "--protocol pvh")).refused(2, &["PVH", "--protocol"]);
    assert_eq!(dir.names(), before);
}

/// If it fails, a guest starts without its initrd or with half of it.
#[test]
fn initrds_that_cannot_be_loaded_are_refused() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    dir.write("empty", b"");
    File::create(dir.join("large"))
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    for (name, parts) in [
        ("none", &["No such file"][..]),
        ("", &["directory", "--initrd"]),
        ("empty", &["empty", "--initrd"]),
        ("large", &["64 MiB", "--memory"]),
    ] {
        let path = dir.path(name);
        let all = [parts, &["initrd", &path]].concat();
        finish(boot(&dir, "off", &format!("--initrd {path}"))).refused(2, &all);
    }
}

/// If it fails, a typo makes a new disk, or a VM starts without one.
#[test]
fn disks_that_are_none_are_refused() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    dir.write("small", &[0; 511]);
    let before = dir.names();
    for (name, parts) in [
        ("none", &["does not exist", "truncate"][..]),
        ("", &["directory"]),
        ("small", &["511 bytes", "512"]),
    ] {
        let path = dir.path(name);
        let all = [parts, &["disk", &path]].concat();
        finish(boot(&dir, "off", &format!("--disk path={path}"))).refused(2, &all);
    }
    assert_eq!(dir.names(), before);
}

/// If it fails, a file that cannot be mapped, or in which writes would be lost, becomes memory of a
/// guest; or the user is not told what to do about it.
#[test]
fn files_that_cannot_be_pmem_are_refused() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    let odd = dir.write("odd", &[0; 4096]);
    let empty = dir.write("empty", &[]);
    let refused = |options: &str, code, parts: &[&str]| {
        finish(boot(&dir, "off", &format!("--pmem file={options}"))).refused(code, parts);
    };
    refused(&odd, 2, &[&odd, "4096 bytes", "2 MiB", "truncate -s %2M"]);
    refused(&empty, 2, &[&empty, "empty"]);
    refused("/nonexistent,ro", 2, &["/nonexistent", "No such file"]);
    refused("/dev/null", 2, &["/dev/null", "no image file"]);
    refused(
        &format!("{odd},ro --disk path={odd}"),
        3,
        &[&odd, "another device of this VM"],
    );
    finish(boot(&dir, "off", &format!("--pmem file={odd},ro"))).expect(0);
}

/// If it fails, two VMs write to one file system and destroy it.
#[test]
fn a_disk_in_use_is_refused() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    let disk = dir.write("disk", &[0; 4096]);
    let args = format!("--disk path={disk}");
    let first = boot(&dir, "halt", &format!("{args} --grace 0 --console pty"));
    // It has its disks before it says where its console is made; wait for the lock itself.
    let path = Path::new(&disk);
    assert!(super::harness::eventually(|| !can_lock(path)));
    let pid = format!("(pid {})", first.id());
    finish(boot(&dir, "off", &args)).refused(3, &["disk", &disk, "in use", &pid, "ro"]);
    // Before its vCPUs run, a signal may end it as it ends any program.
    super::life::wait_for_vcpus(&first, 1);
    signal(&first, libc::SIGTERM);
    finish(first).expect(143);
    finish(boot(&dir, "off", &args)).expect(0);

    let ours = File::options().read(true).write(true).open(path).unwrap();
    fcntl_lock(&ours, FlockOperation::NonBlockingLockExclusive).unwrap();
    let pid = format!("(pid {})", std::process::id());
    finish(boot(&dir, "off", &args)).refused(3, &["disk", &disk, "in use", &pid]);
    drop(ours);
    finish(boot(&dir, "off", &format!("{args} {args}"))).refused(3, &["another device of this VM"]);
}

fn can_lock(path: &Path) -> bool {
    let file = File::options().read(true).write(true).open(path).unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// If it fails, who shares what is not there, or nobody serves, gets a riddle or a guest without it.
#[test]
fn directories_that_cannot_be_shared_are_refused() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    dir.write("kernel", &kernel(&[0x90; 4096]));
    let file = dir.write("file", b"text");
    for (option, parts) in [
        (
            "path=/nonexistent",
            &["fs t", "/nonexistent", "No such file", "path="][..],
        ),
        (&format!("path={file}"), &["fs t", &file, "Not a directory"]),
        (
            "socket=/nonexistent",
            &["fs t", "/nonexistent", "No such file", "daemon"],
        ),
    ] {
        let option = format!("--fs tag=t,{option}");
        finish(boot(&dir, "kernel", &option)).refused(2, parts);
    }
}

/// If it fails, taps are named that cannot be, or a missing one is a riddle.
#[test]
fn taps_that_cannot_be_had_are_refused() {
    if !has_kvm() || !is_root() || !Path::new("/dev/net/tun").exists() {
        return;
    }
    let dir = Dir::new();
    let long = "--net tap=a-name-that-is-too-long";
    finish(boot(&dir, "off", long)).refused(2, &["a-name-that-is-too-long", "15 bytes"]);
    finish(boot(&dir, "off", "--net tap=lo")).refused(2, &["lo is not a tap"]);
    finish(boot(&dir, "off", "--net fd=99")).refused(2, &["file descriptor 99"]);
    finish(boot(&dir, "off", "--net fd=0")).refused(2, &["file descriptor 0 is not a tap"]);

    let tap = format!("cfn{}", std::process::id());
    let args = ["--bounding-set=-net_admin", PROGRAM, "boot", "--kernel"];
    let mut command = Command::new("setpriv");
    command.args(args).arg(dir.join("off"));
    command.args(["--net", &format!("tap={tap}")]);
    if !has_tool("setpriv") {
        return skip("no setpriv");
    }
    let said = finish(start(&mut command));
    said.refused(
        3,
        &["no permission", &tap, "ip tuntap add", "CAP_NET_ADMIN"],
    );
    assert!(!Path::new("/sys/class/net").join(tap).exists());
}

fn has_tool(name: &str) -> bool {
    Command::new(name).arg("--version").output().is_ok()
}

/// If it fails, a VM that fails late leaves a tap, a socket or a lock on the host.
#[test]
fn what_fails_late_leaves_nothing_behind() {
    if !has_kvm() || !is_root() || !Path::new("/dev/net/tun").exists() {
        return;
    }
    let dir = Dir::new();
    let disk = dir.write("disk", &[0; 4096]);
    let template = "{\"msr_modifiers\": [{\"addr\": \"0xfffffff0\", \"bitmap\": \"0b1\"}]}";
    let template = dir.write("cpu.json", template.as_bytes());
    let before = dir.names();
    let tap = format!("cfl{}", std::process::id());
    let socket = dir.path("console");
    let args = format!(
        "--console socket={socket} --disk path={disk} --net tap={tap} --cpu-template {template}"
    );
    // vCPUs are made last, and none has such an MSR.
    let said = finish(boot(&dir, "off", &args));
    assert_ne!(said.code, Some(0), "{said:?}");
    assert!(said.stderr.contains("0xfffffff0"), "{said:?}");
    assert_eq!(dir.names(), before);
    assert!(!Path::new("/sys/class/net").join(tap).exists());
    assert!(can_lock(Path::new(&disk)));
}

/// If it fails, a console that cannot be is made somewhere else, or takes what is not its own.
#[test]
fn consoles_that_cannot_be_are_refused() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    let file = dir.write("file", b"precious");
    let listener = std::os::unix::net::UnixListener::bind(dir.join("busy")).unwrap();
    for (args, code, parts) in [
        (
            "file=/nonexistent/o".to_owned(),
            2,
            &["/nonexistent/o", "No such file"][..],
        ),
        (
            "socket=/nonexistent/s".to_owned(),
            2,
            &["/nonexistent/s", "No such file"],
        ),
        (format!("socket={file}"), 3, &["remove what is there"]),
        (
            format!("socket={}", dir.path("busy")),
            3,
            &["remove what is there"],
        ),
    ] {
        finish(boot(&dir, "off", &format!("--console {args}"))).refused(code, parts);
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    drop(listener);
}

/// If it fails, a host without KVM is a riddle.
#[test]
fn without_kvm_it_says_so() {
    if !is_root() {
        return;
    }
    let dir = Dir::new();
    let script = "mount -t tmpfs none /dev && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args([
        "--mount", "sh", "-c", script, "sh", PROGRAM, "boot", "--kernel",
    ]);
    let said = finish(start(command.arg(dir.join("off"))));
    if said.stderr.contains("unshare:") || said.stderr.contains("mount:") {
        return skip(&said.stderr);
    }
    said.refused(3, &["/dev/kvm is not there", "modprobe", "doctor"]);
}

/// If it fails, a user who is not in the group cannot find out.
#[test]
fn without_permission_on_kvm_it_says_so() {
    if !has_kvm() || !is_root() {
        return;
    }
    if fs::metadata("/dev/kvm").unwrap().permissions().mode() & 0o006 != 0 {
        return skip("everyone may use KVM here");
    }
    // Where it was built, others may not look.
    let dir = Dir::new();
    let copy = dir.join("program");
    fs::copy(PROGRAM, &copy).unwrap();
    let nobody = |args: &[&str]| -> Run {
        let mut command = Command::new(&copy);
        finish(start(command.uid(65534).gid(65534).args(args)))
    };
    let kernel = dir.path("off");
    let said = nobody(&["boot", "--kernel", &kernel]);
    said.refused(3, &["permission", "/dev/kvm", "usermod -aG kvm"]);
    let doctor = nobody(&["doctor", "--quiet"]).expect(3);
    assert!(doctor.stdout.contains("permission"), "{doctor:?}");

    fs::set_permissions(&kernel, fs::Permissions::from_mode(0o600)).unwrap();
    let said = nobody(&["boot", "--kernel", &kernel]);
    said.refused(2, &["kernel", &kernel, "Permission denied"]);
}

/// If it fails, whoever has no default guest does not learn how to get one.
#[test]
fn without_a_default_guest_it_says_how_to_get_one() {
    let dir = Dir::new();
    let place = dir.path("guest");
    let mut command = program();
    let said = finish(start(command.arg("boot").env("COFFERDAM_GUEST", &place)));
    said.refused(2, &["no default guest", &place, "make setup", "--kernel"]);
}
