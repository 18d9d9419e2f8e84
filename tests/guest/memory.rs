//! Memory that comes back from a guest, and memory that is there from the start.

use std::fs;
use std::time::{Duration, Instant};

use crate::harness::{TempDir, Vm, host, wait_until};

/// A guest that fills 200 MiB and frees them again, each after a line from us. What it needs for
/// that itself, it has touched before.
const FILL_AND_FREE: &str = "
    mount -t tmpfs -o size=210m full /mnt
    echo ready; read line
    dd if=/dev/zero of=/mnt/full bs=1M count=200 2>/dev/null || exit 1
    echo full; read line
    rm /mnt/full; echo freed; read line";

/// MiB of the monitor's memory that are resident.
fn resident(vm: &Vm) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() / 1024
}

/// How long it takes until `condition` holds.
#[track_caller]
fn seconds_until(what: &str, condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    wait_until(what, condition);
    start.elapsed()
}

/// If it fails, memory that a guest used once is lost to the host until the guest's end.
#[test]
fn freed_memory_comes_back() {
    let dir = TempDir::new("freed");
    let mut vm = Vm::script(&dir, "--memory 256M --balloon", FILL_AND_FREE);
    vm.wait_for("ready");
    let before = resident(&vm);
    vm.type_text("\n");
    vm.wait_for("full");
    let full = resident(&vm);
    // 200 MiB were filled, while some 20 that the boot left empty may have come back.
    assert!(full >= before + 120, "{before} MiB, then {full} MiB");
    vm.type_text("\n");
    vm.wait_for("freed");
    let time = seconds_until("memory comes back", || resident(&vm) <= before + 20);
    let after = resident(&vm);
    println!("{before} MiB, {full} MiB full, {after} MiB {time:?} after it was freed");
    vm.type_text("\n");
    vm.end().expect(0);
}

/// If it fails, a guest whose kernel is too old to report what is free keeps it.
#[test]
fn memory_comes_back_by_hints() {
    let dir = TempDir::new("hinted");
    let args = "--memory 256M --balloon reporting=off,hinting=2";
    let mut vm = Vm::script(&dir, args, FILL_AND_FREE);
    vm.wait_for("ready");
    let before = resident(&vm);
    vm.type_text("\n");
    vm.wait_for("full");
    assert!(resident(&vm) >= before + 150);
    vm.type_text("\n");
    vm.wait_for("freed");
    let time = seconds_until("memory comes back", || resident(&vm) <= before + 20);
    println!("{before} MiB again {time:?} after it was freed");
    vm.type_text("\n");
    vm.end().expect(0);
}

/// Explicit huge pages of the host that nobody uses.
fn free_huge_pages() -> u64 {
    host("awk '/HugePages_Free/ {print $2}' /proc/meminfo")
        .trim()
        .parse()
        .unwrap()
}

/// If it fails, explicit huge pages do not come back, or come back although nobody asked for it.
#[test]
fn huge_pages_come_back_where_they_are_asked_back() {
    host("sysctl -qw vm.nr_hugepages=128");
    let dir = TempDir::new("freed-huge");
    let args = "--memory 256M --hugepages 2M --balloon";
    let mut vm = Vm::script(&dir, args, FILL_AND_FREE);
    vm.wait_for("ready");
    vm.type_text("\n");
    vm.wait_for("full");
    let full = free_huge_pages();
    vm.type_text("\n");
    vm.wait_for("freed");
    let time = seconds_until("huge pages come back", || free_huge_pages() >= full + 90);
    println!(
        "{full} free huge pages, then {} after {time:?}",
        free_huge_pages()
    );
    vm.type_text("\n");
    vm.end().expect(0);
    host("sysctl -qw vm.nr_hugepages=0");
}

/// If it fails, memory that was to be there from the start is not, or does not stay.
#[test]
fn prefaulted_memory_is_there_and_stays() {
    let dir = TempDir::new("prefault");
    let script = "echo ready; read line";
    let mut vm = Vm::script(&dir, "--memory 128M,prefault=on", script);
    vm.wait_for("ready");
    std::thread::sleep(Duration::from_secs(4));
    assert!(resident(&vm) >= 128, "{} MiB", resident(&vm));
    vm.type_text("\n");
    vm.end().expect(0);
    let mut vm = Vm::script(&dir, "--memory 128M,prefault=off", script);
    vm.wait_for("ready");
    assert!(resident(&vm) < 100, "{} MiB", resident(&vm));
}

/// If it fails, the guest does not give what it is asked for, dies for want of memory that it could
/// have back, or nobody hears how it is off.
#[test]
fn the_balloon_is_filled_and_gives_way() {
    let dir = TempDir::new("balloon");
    let args = "--memory 128M --log-level info --balloon size=40M,deflate_on_oom,stats=1";
    let script = "
        echo ready; read line
        head -c 75m /dev/zero | tail -n 1 | wc -c
        echo alive";
    let mut vm = Vm::script(&dir, args, script);
    vm.wait_for("ready");
    vm.wait_for_log("in the balloon 40960K");
    vm.wait_for_log("the guest's memory: ");
    vm.type_text("\n");
    vm.wait_for("78643200");
    vm.wait_for("alive");
    vm.end().expect(0);
}

/// If it fails, huge pages of which the guest's boot left most empty stay with it, or something is lost
/// when they are split.
#[test]
fn what_the_boot_left_empty_comes_back() {
    let dir = TempDir::new("sparse");
    let args = "--memory 578M --balloon --log-level debug";
    let script = "echo ready; read line; cat /etc/passwd >/dev/null && echo alive; read line";
    let mut vm = Vm::script(&dir, args, script);
    vm.wait_for("ready");
    // Some two seconds after the boot, and once more.
    for _ in 0..2 {
        vm.wait_for_log("sparse huge pages are split");
    }
    let split = host(&format!(
        "grep -c '^VmFlags:.* nh' /proc/{}/smaps",
        vm.pid()
    ));
    let split: u32 = split.trim().parse().unwrap();
    println!("{} MiB, {split} mappings of small pages", resident(&vm));
    assert!(split >= 3, "{split}");
    vm.type_text("\n");
    vm.wait_for("alive");
    vm.type_text("\n");
    vm.end().expect(0);
}

/// If it fails, memory for which the guest's kernel has made no structures yet is missing when it is
/// needed, or is not told; or a large guest costs the host more than a small one from the start.
#[test]
fn memory_is_there_when_it_is_needed() {
    let dir = TempDir::new("lazy");
    let script = "
        mount -t tmpfs -o size=450m full /mnt
        awk '/MemTotal|MemFree|MemAvailable/ {print $1 ($2 > 460000)}' /proc/meminfo
        echo ready; read line
        dd if=/dev/zero of=/mnt/full bs=1M count=400 2>/dev/null || exit 1
        wc -c </mnt/full; rm /mnt/full
        dd if=/dev/zero of=/mnt/full bs=1M count=440 2>/dev/null || exit 1
        awk '/MemFree/ {print $1 ($2 < 80000)}' /proc/meminfo
        echo full; read line";
    let mut vm = Vm::script(&dir, "--memory 512M", script);
    for known in ["MemTotal:1", "MemFree:1", "MemAvailable:1"] {
        vm.wait_for(known);
    }
    vm.wait_for("ready");
    let small = resident(&vm);
    assert!(small < 48, "{small} MiB");
    vm.type_text("\n");
    vm.wait_for("419430400");
    vm.wait_for("MemFree:1");
    vm.wait_for("full");
    vm.type_text("\n");
    vm.end().expect(0);
}
