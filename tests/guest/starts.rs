//! What goes wrong once in hundreds of starts; `make soak` has so many.

use crate::harness::{TempDir, Vm};

/// How many guests one test starts.
fn starts() -> usize {
    let count = std::env::var("COFFERDAM_TEST_STARTS").ok();
    count.map_or(4, |count| count.parse().unwrap())
}

/// Starts guests, each fourth of which prints what it can, and says how they ended otherwise than well.
#[track_caller]
fn start_many(name: &str, options: &str) {
    let dir = TempDir::new(name);
    let mut failed = Vec::new();
    for number in 1..=starts() {
        let script = match number % 4 {
            0 => {
                "i=0; while [ $i -lt 2000 ]; do echo line $i of many that a guest prints; i=$((i+1)); done; exit 5"
            }
            _ => "exit 5",
        };
        let end = Vm::script(&dir, options, script).end();
        let lines = end.console.matches(" of many that").count();
        let expected = if number % 4 == 0 { 2000 } else { 0 };
        if end.code != Some(5) || lines != expected {
            let console: Vec<_> = end.console.lines().rev().take(20).collect();
            failed.push(format!(
                "start {number}: {:?}, {lines} lines; log:\n{}\nconsole, last line first:\n{}",
                end.code,
                end.log,
                console.join("\n")
            ));
        }
    }
    let count = failed.len();
    assert!(
        failed.is_empty(),
        "{count} of {}:\n{}",
        starts(),
        failed.join("\n")
    );
}

/// If it fails, a guest dies now and then when it starts or prints, or what it prints is lost.
#[test]
fn guests_with_one_vcpu_start_and_print() {
    start_many("starts-1", "--cpus 1");
}

/// If it fails, as above, or vCPUs get in each other's way.
#[test]
fn guests_with_two_vcpus_start_and_print() {
    start_many("starts-2", "--cpus 2");
}

/// If it fails, as above, with a kernel whose pages are the file's.
#[test]
fn guests_with_mapped_pages_start_and_print() {
    start_many("starts-mapped", "--cpus 1 --pages map");
}

/// If it fails, as above, in guests that have hardly any memory.
#[test]
fn small_guests_start_and_print() {
    start_many("starts-small", "--cpus 1 --memory 64m");
}
