//! A monitor whose guest has a few instructions: it starts, talks, and ends in every way there is.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use super::harness::{
    Dir, HALT, Running, boot, eventually, finish, has_kvm, kernel, out, program, signal,
};

/// Ports of the monitor's own devices, and the first serial port.
const SERIAL: u16 = 0x3f8;
const I8042: u16 = 0x64;
const PVPANIC: u16 = 0x505;
const SLEEP: u16 = 0x600;
const BOOT_TIMER: u16 = 0x604;
const STATUS: u16 = 0x605;
/// Sleep type 5, and sleep enable.
const POWER_OFF: u8 = 0x34;

/// A kernel that writes to ports, and then halts.
fn writes(ports: &[(u16, u8)]) -> Vec<u8> {
    let mut code: Vec<u8> = ports
        .iter()
        .flat_map(|&(port, value)| out(port, value))
        .collect();
    code.extend(HALT);
    kernel(&code)
}

/// A kernel that says `text`, and then powers off.
fn says(text: &str) -> Vec<u8> {
    let mut ports: Vec<_> = text.bytes().map(|byte| (SERIAL, byte)).collect();
    ports.push((SLEEP, POWER_OFF));
    writes(&ports)
}

/// The names of a monitor's own threads; KVM may add some of the kernel's.
fn threads(vm: &Running) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", vm.id())) else {
        return Vec::new();
    };
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    let names = tasks.flatten().filter_map(|task| name(task).ok());
    let names = names.map(|name| name.trim().to_owned());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with("kvm")).collect();
    names.sort();
    names
}

/// Waits until the vCPUs have their threads, named after them, and there is no other but the main
/// loop's.
#[track_caller]
pub(super) fn wait_for_vcpus(vm: &Running, count: usize) {
    let mut wanted: Vec<_> = (0..count).map(|id| format!("vcpu{id}")).collect();
    wanted.insert(0, "cofferdam".into());
    assert!(eventually(|| threads(vm) == wanted), "{:?}", threads(vm));
}

/// If it fails, scripts that go by our exit code take one end of a VM for another.
#[test]
fn each_end_has_its_exit_code() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    for (ports, code) in [
        (&[(SLEEP, POWER_OFF)][..], 0),
        (&[(STATUS, 42), (SLEEP, POWER_OFF)], 42),
        (&[(STATUS, 42), (STATUS, 0), (SLEEP, POWER_OFF)], 0),
        (&[(I8042, 0xfe)], 80),
        (&[(STATUS, 42), (I8042, 0xfe)], 80),
        (&[(PVPANIC, 1)], 81),
        (&[(PVPANIC, 1), (I8042, 0xfe)], 81),
    ] {
        dir.write("kernel", &writes(ports));
        let end = finish(boot(&dir, "kernel", "")).expect(code);
        assert_eq!(
            (end.stdout.as_str(), end.stderr.as_str()),
            ("", ""),
            "{ports:x?}"
        );
    }
}

/// If it fails, a guest that dies of a triple fault is a VM that hangs.
#[test]
fn a_triple_fault_ends_the_vm() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    // lidt [rip + 2]; ud2; ten zeros: an interrupt table without a single gate.
    let mut code = vec![0x0f, 0x01, 0x1d, 2, 0, 0, 0, 0x0f, 0x0b];
    code.extend([0; 10]);
    dir.write("kernel", &kernel(&code));
    finish(boot(&dir, "kernel", "")).expect(82);
}

/// If it fails, what the guest says is lost, or lands elsewhere.
#[test]
fn the_console_is_where_it_was_asked_for() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    dir.write("kernel", &says("hello\nworld"));
    let end = finish(boot(&dir, "kernel", "")).expect(0);
    assert_eq!(end.stdout, "hello\nworld");
    let end = finish(boot(&dir, "kernel", "--console off")).expect(0);
    assert_eq!(end.stdout, "");
    let file = dir.write("out", b"what was there before");
    finish(boot(&dir, "kernel", &format!("--console file={file}"))).expect(0);
    assert_eq!(fs::read_to_string(file).unwrap(), "hello\nworld");
    let end = finish(boot(&dir, "kernel", "--console pty")).expect(0);
    assert!(
        end.stderr.contains("the console is at /dev/pts/"),
        "{end:?}"
    );
}

/// If it fails, the console's socket drops what was said before somebody listened, or its file
/// stays behind.
#[test]
fn a_console_socket_is_gone_at_the_end() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    let mut ports: Vec<_> = b"hello".map(|byte| (SERIAL, byte)).to_vec();
    ports.push((BOOT_TIMER, 123));
    dir.write("kernel", &writes(&ports));
    let path = dir.join("console");
    for number in [libc::SIGTERM, libc::SIGKILL, libc::SIGINT] {
        let args = format!("--grace 0 --console socket={}", path.display());
        let vm = boot(&dir, "kernel", &args);
        let mut client = None;
        assert!(eventually(|| {
            client = UnixStream::connect(&path).ok();
            client.is_some()
        }));
        let mut said = [0; 5];
        client.unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
        signal(&vm, number);
        let end = finish(vm);
        // A killed monitor leaves the file; the next one takes its place.
        let was_killed = number == libc::SIGKILL;
        assert_eq!(end.code, (!was_killed).then_some(128 + number));
        assert_eq!(path.exists(), was_killed);
    }
}

/// If it fails, a service manager waits for a guest that does not listen, or does not let it end.
#[test]
fn the_first_signal_asks_and_the_second_does_not() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    let vm = boot(&dir, "halt", "--grace 1");
    wait_for_vcpus(&vm, 1);
    let start = Instant::now();
    signal(&vm, libc::SIGTERM);
    finish(vm).expect(84);
    assert!(start.elapsed() >= Duration::from_secs(1));

    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let vm = boot(&dir, "halt", "--grace 1000 --log-level info");
        wait_for_vcpus(&vm, 1);
        signal(&vm, libc::SIGTERM);
        // Signals that wait become one; the first must have been taken.
        assert!(eventually(|| !is_pending(&vm)));
        signal(&vm, number);
        let end = finish(vm).expect(128 + number);
        assert!(end.stderr.contains("has 1000s to power off"), "{end:?}");
    }
}

/// Whether a signal waits for the process.
fn is_pending(vm: &Running) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.id())).unwrap();
    let pending = status
        .lines()
        .find_map(|line| line.strip_prefix("ShdPnd:"))
        .unwrap();
    u64::from_str_radix(pending.trim(), 16).unwrap() != 0
}

/// If it fails, the log is not where it should be, or does not say how long the boot took.
#[test]
fn the_log_says_how_long_the_boot_took() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    dir.write("kernel", &writes(&[(BOOT_TIMER, 123), (SLEEP, POWER_OFF)]));
    let log = dir.write("log", b"before\n");
    let args = format!("--log-level info --log-file {log}");
    let end = finish(boot(&dir, "kernel", &args)).expect(0);
    assert_eq!(end.stderr, "");
    let text = fs::read_to_string(log).unwrap();
    assert!(text.starts_with("before\n"), "{text}");
    for part in ["first KVM_RUN", "init runs", "the guest powered off"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

/// If it fails, a VM has other threads than its vCPUs and the main loop, or cannot be stopped with
/// all of them at rest.
#[test]
fn each_vcpu_has_a_thread_of_its_name() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    for count in [1, 2, 4] {
        let vm = boot(&dir, "halt", &format!("--grace 0 --cpus {count}"));
        wait_for_vcpus(&vm, count);
        signal(&vm, libc::SIGTERM);
        finish(vm).expect(143);
    }
    finish(boot(&dir, "off", "--cpus 32")).expect(0);
}

/// If it fails, a loop that starts VMs one after the other runs out of taps or disks.
#[test]
fn vms_one_after_the_other_leave_nothing_behind() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    let disk = dir.write("disk", &[0; 4096]);
    let can_tap = rustix::process::geteuid().is_root() && Path::new("/dev/net/tun").exists();
    let tap = format!("cfr{}", std::process::id());
    let mut args = format!(
        "--disk path={disk} --console socket={}",
        dir.path("console")
    );
    if can_tap {
        args += &format!(" --net tap={tap}");
    }
    dir.write("reset", &writes(&[(I8042, 0xfe)]));
    let before = dir.names();
    for _ in 0..5 {
        finish(boot(&dir, "reset", &args)).expect(80);
        assert_eq!(dir.names(), before);
        assert!(!Path::new("/sys/class/net").join(&tap).exists());
    }
}

/// If it fails, the user's terminal is of no use after a VM, or one that was not built.
#[test]
fn the_terminal_is_restored() {
    if !has_kvm() {
        return;
    }
    let dir = Dir::new();
    dir.write("kernel", &says("hello"));
    let leaf = "{\"cpuid_modifiers\": [{\"leaf\": \"0x3fffffff\", \"subleaf\": \"0x0\", \
                \"modifiers\": []}]}";
    let template = dir.write("cpu.json", leaf.as_bytes());
    for (kernel, args, signal_at, code) in [
        ("kernel", vec![], None, 0),
        ("kernel", vec!["--cpu-template", &template], None, 2),
        ("halt", vec!["--grace", "0"], Some(libc::SIGTERM), 143),
    ] {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        let before = tcgetattr(&terminal).unwrap();
        let mut command = program();
        command
            .args(["boot", "--kernel", &dir.path(kernel)])
            .args(args);
        command.stdin(terminal.try_clone().unwrap());
        command.stdout(terminal.try_clone().unwrap());
        let vm = Running::spawn(&mut command);
        if let Some(number) = signal_at {
            wait_for_vcpus(&vm, 1);
            let modes = tcgetattr(&terminal).unwrap().local_modes;
            assert!(
                !modes.contains(LocalModes::ICANON),
                "not raw while the VM runs"
            );
            signal(&vm, number);
        }
        finish(vm).expect(code);
        let after = tcgetattr(&terminal).unwrap();
        assert_eq!(format!("{before:?}"), format!("{after:?}"), "{kernel}");
    }
}
