//! Runs `cofferdam doctor` on the host at hand, whatever its KVM is.
// The helpers of a test fail like the test.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

const NO_RING_SWITCH: &str =
    "KVM here answers, but does not switch rings at SYSCALL: Linux guests cannot run";

fn doctor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cofferdam"))
        .arg("doctor")
        .args(args)
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn check<'a>(report: &'a Value, id: &str) -> &'a Value {
    report["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["id"] == id)
        .unwrap()
}

/// If this fails, the verdict is wrong for the KVM that is loaded: scripts would start VMs that
/// cannot run, or start none where they could; or a bad KVM makes the doctor hang.
#[test]
fn the_verdict_fits_the_kvm_at_hand() {
    let start = Instant::now();
    let output = doctor(&["--json"]);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "took {:?}",
        start.elapsed()
    );

    let report = json(&output);
    let guest = &check(&report, "test-guest")["detail"];
    let loaded = |module| Path::new("/sys/module").join(module).exists();
    if !Path::new("/dev/kvm").exists() {
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(guest, "not tried: no KVM");
    } else if loaded("kvm_amd") || loaded("kvm_intel") {
        assert_eq!(output.status.code(), Some(0), "{report:#}");
        assert_eq!(report["can_run_linux"], true);
    } else if loaded("kvm_pvm") {
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(guest, NO_RING_SWITCH);
    }
    assert_eq!(report["can_run_linux"], output.status.success());
}

/// If this fails, a program that reads the JSON by docs/doctor.md breaks.
#[test]
fn the_json_is_as_documented() {
    let report = json(&doctor(&["--json"]));
    assert_eq!(report["schema"], 1);
    assert!(report["elapsed_us"].is_u64());
    for check in report["checks"].as_array().unwrap() {
        assert!(
            check["id"].is_string() && check["what"].is_string(),
            "{check}"
        );
        assert!(
            check["detail"].is_string() && check["required"].is_boolean(),
            "{check}"
        );
        assert!(
            check["mend"].is_string() || check["mend"].is_null(),
            "{check}"
        );
        let state = check["state"].as_str().unwrap();
        assert!(["ok", "limited", "missing"].contains(&state), "{check}");
    }
}

/// If this fails, a host without KVM is not told so, or not with the exit code for it.
#[test]
fn without_kvm_it_says_so() {
    let output = doctor(&["--kvm", "/nonexistent/kvm"]);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.lines().next().unwrap();
    assert!(
        first.contains("missing") && first.contains("/nonexistent/kvm is not there"),
        "{text}"
    );
    assert!(
        text.ends_with("This host cannot run Linux guests.\n"),
        "{text}"
    );
}

/// If this fails, text in a pipe or a file has escape codes in it, or is not one line a check.
#[test]
fn text_in_a_pipe_is_plain_lines() {
    let checks = json(&doctor(&["--json"]))["checks"]
        .as_array()
        .unwrap()
        .len();
    let text = String::from_utf8(doctor(&[]).stdout).unwrap();
    assert!(!text.contains('\x1b'), "{text}");
    assert_eq!(text.lines().count(), checks + 1, "{text}");
}

/// If this fails, a script that asks before it starts a VM is told nothing, or too much.
#[test]
fn quiet_is_silent_or_one_line() {
    let output = doctor(&["--quiet", "--kvm", "/nonexistent/kvm"]);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.starts_with("KVM: /nonexistent/kvm is not there"),
        "{text}"
    );
    let output = doctor(&["--quiet"]);
    assert!(output.stderr.is_empty());
    assert_eq!(output.stdout.is_empty(), output.status.success());
    assert_eq!(doctor(&["--quiet", "--json"]).status.code(), Some(2));
}
