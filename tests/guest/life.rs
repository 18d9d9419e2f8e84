//! How VMs end: each way has its exit code, and leaves the terminal as it was.

use crate::harness::{TempDir, Vm};
use crate::kernels::{NOT_EMULATED, RESET, STAY, TRIPLE_FAULT, kernel};
use crate::terminal::Terminal;

/// If it fails, `poweroff` does not end the process, or not with success.
#[test]
fn power_off_is_success() {
    let dir = TempDir::new("poweroff");
    Vm::script(&dir, "", "poweroff -f").end().expect(0);
}

/// If it fails, a command's exit status is lost on its way out of the guest.
#[test]
fn the_guests_status_is_ours() {
    let dir = TempDir::new("status");
    Vm::script(&dir, "", "exit 7").end().expect(7);
}

/// If it fails, a supervisor cannot tell a reboot from a power-off.
#[test]
fn a_reboot_has_its_code() {
    let dir = TempDir::new("reboot");
    Vm::script(&dir, "", "reboot -f").end().expect(80);
}

/// If it fails, a kernel panic looks like a reboot, or hangs.
#[test]
fn a_panic_has_its_code() {
    let dir = TempDir::new("panic");
    let end = Vm::script(&dir, "", "echo c >/proc/sysrq-trigger; sleep 60")
        .end()
        .expect(81);
    assert!(end.console.contains("Kernel panic"), "{}", end.console);
}

/// If it fails, a guest that can power off by its button is killed instead.
#[test]
fn a_signal_presses_the_power_button() {
    let dir = TempDir::new("button");
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // What is slow here is the emulated host; the grace must not run out for that.
        let mut vm = Vm::script(&dir, "--grace 60", "echo ready; exec sleep 60");
        vm.wait_for("ready");
        vm.signal(signal);
        vm.end().expect(0);
    }
}

/// Sends SIGTERM, and `second` when the first has arrived: of two that wait the kernel delivers the
/// lower number first, or only one if they are the same. Needs the log at level info.
pub fn two_signals(vm: &mut Vm, second: i32) {
    vm.signal(libc::SIGTERM);
    vm.wait_for_log("to power off");
    vm.signal(second);
}

/// Starts a kernel of a few instructions and waits until it runs.
fn start_tiny(dir: &TempDir, code: &[u8], options: &[&str]) -> Vm {
    let path = kernel(dir, "kernel", code);
    let mut args = vec![
        "--log-level",
        "info",
        "--memory",
        "64M",
        "--kernel",
        path.to_str().unwrap(),
    ];
    args.extend(options);
    let mut vm = Vm::start(&args);
    vm.wait_for("ready");
    vm
}

/// If it fails, a guest that does not react to its power button lives for ever, or a second signal
/// does not end it at once.
#[test]
fn a_guest_that_stays_is_stopped() {
    let dir = TempDir::new("stays");
    let start = |grace| start_tiny(&dir, STAY, &["--grace", grace]);

    let vm = start("1");
    vm.signal(libc::SIGTERM);
    vm.end().expect(84);

    let mut vm = start("100");
    two_signals(&mut vm, libc::SIGINT);
    vm.end().expect(128 + libc::SIGINT);

    let vm = start("0");
    vm.signal(libc::SIGHUP);
    vm.end().expect(128 + libc::SIGHUP);
}

/// If it fails, a guest whose exception handling is gone hangs, or looks like one that rebooted, or
/// leaves no trace of what it did last.
#[test]
fn a_triple_fault_has_its_code_and_says_where_it_was() {
    let dir = TempDir::new("triple");
    let end = start_tiny(&dir, TRIPLE_FAULT, &[]).end().expect(82);
    // Intel's CPUs keep their registers, AMD's lose them.
    let state = ["rip 00000000001000", "this CPU loses its registers"];
    assert!(
        state.iter().any(|text| end.log.contains(text)),
        "{}",
        end.log
    );
    // The end of the line that it wrote to its serial port.
    for text in [
        "vCPU 0 stopped: a triple fault",
        "last exits: ",
        "out 0x3f8/1",
    ] {
        assert!(end.log.contains(text), "{text} is not in {}", end.log);
    }
}

/// If it fails, a guest ended by KVM leaves no trace of where and at what.
#[test]
fn a_vcpu_error_says_where_it_was() {
    let dir = TempDir::new("vcpu");
    let end = start_tiny(&dir, NOT_EMULATED, &[]).end().expect(83);
    // "ready\n" and what precedes it are 22 bytes of code.
    let wanted = [
        "vCPU 0",
        "rip 0000000000100016",
        "code d9 04 25 00 00 00 10",
    ];
    for text in wanted {
        assert!(end.log.contains(text), "{text} is not in {}", end.log);
    }
}

/// If it fails, the user's shell is unusable after a VM that ended this way.
#[test]
fn the_terminal_is_restored() {
    let dir = TempDir::new("terminal");
    let check = |code: &[u8], grace, leave: fn(&mut Vm), expected| {
        let path = kernel(&dir, "kernel", code);
        let args = [
            "--log-level",
            "info",
            "--memory",
            "64M",
            "--grace",
            grace,
            "--kernel",
        ];
        let terminal = Terminal::new();
        let mut vm = terminal.start(&[&args[..], &[path.to_str().unwrap()]].concat());
        vm.wait_for("ready");
        // A guest that ends by itself may have done so already.
        if code == STAY {
            assert!(terminal.is_raw());
        }
        leave(&mut vm);
        vm.end().expect(expected);
        assert!(terminal.is_cooked(), "after exit code {expected}");
    };
    let nothing: fn(&mut Vm) = |_| {};
    check(RESET, "1", nothing, 80);
    check(NOT_EMULATED, "1", nothing, 83);
    check(STAY, "100", |vm| vm.type_text("\x01x"), 85);
    check(STAY, "1", |vm| vm.signal(libc::SIGTERM), 84);
    let twice = |vm: &mut Vm| two_signals(vm, libc::SIGTERM);
    check(STAY, "100", twice, 128 + libc::SIGTERM);
}
