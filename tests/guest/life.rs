//! How VMs end: each way has its exit code.

use crate::harness::{TempDir, Vm};

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
        let mut vm = Vm::script(&dir, "", "echo ready; sleep 60");
        vm.wait_for("ready");
        vm.signal(signal);
        vm.end().expect(0);
    }
}

/// If it fails, a guest that ignores its power button lives for ever.
#[test]
fn a_guest_that_stays_is_stopped_after_its_grace() {
    let dir = TempDir::new("grace");
    let stay = "killall -STOP acpid; echo ready; while :; do sleep 60; done";
    let mut vm = Vm::script(&dir, "--grace 1", stay);
    vm.wait_for("ready");
    vm.signal(libc::SIGTERM);
    vm.end().expect(84);

    let mut vm = Vm::script(&dir, "--grace 100", stay);
    vm.wait_for("ready");
    vm.signal(libc::SIGTERM);
    vm.signal(libc::SIGINT);
    vm.end().expect(128 + libc::SIGINT);
}
