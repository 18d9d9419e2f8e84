//! Containers that mean harm to whoever looks at them.

use std::fs;

use serde_json::Value;

use crate::container::{Engine, said};
use crate::harness::wait_until;

/// If it fails, a container that prints without end fills the host's disk, `logs` loses its last lines,
/// or nobody finds out why a VM fails.
#[test]
fn what_a_container_prints_has_a_bound() {
    let engine = Engine::new("bounds");
    let script = "seq 5000; echo the end";
    let id = engine.script(
        "run -d --name loud --log-opt max-size=10k --log-opt max-file=3 busybox",
        script,
    );
    // Follows from file to file, to the end.
    let followed = engine.text("logs -f loud");
    assert!(followed.ends_with("5000\nthe end"), "{followed}");
    let kept = engine.text("logs loud");
    assert!(kept.ends_with("4999\n5000\nthe end"), "{kept}");
    assert!(!kept.starts_with("1\n"), "{kept}");
    assert_eq!(engine.text("logs -n 2 loud"), "5000\nthe end");
    let dir = engine.path(&format!("data/containers/{id}"));
    for (name, is_there) in [("", true), (".1", true), (".2", true), (".3", false)] {
        let file = fs::metadata(format!("{dir}/container.log{name}"));
        assert_eq!(file.is_ok(), is_there, "{name}");
        assert!(file.map_or(0, |file| file.len()) <= 10 << 10, "{name}");
    }
    // The kernel's last words.
    let panic = "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger; sleep 10000";
    let id = engine.script("run -d --privileged busybox", panic);
    let log = |name| engine.path(&format!("run/{}/{name}", &id[..16]));
    wait_until("the console's log", || {
        let text = fs::read(log("console.log")).unwrap();
        String::from_utf8_lossy(&text).contains("Call Trace")
    });
    assert!(fs::exists(log("monitor.log")).unwrap());

    let settings = engine.path("settings.json");
    fs::write(&settings, r#"{"log-opts": {"max-size": "1m"}}"#).unwrap();
    let create = |options: &[&str]| {
        let mut command = engine.command(&[&["create"], options, &["busybox"]].concat());
        command.env("COFFERDAM_SETTINGS", &settings);
        command.output().unwrap()
    };
    let id = said("create", &create(&["--log-opt", "max-file=2"]));
    let config = "{{json .HostConfig.LogConfig.Config}}";
    let shown = engine.command(&["inspect", "-f", config, &id]).output();
    let config = said("inspect", &shown.unwrap());
    assert_eq!(config, r#"{"max-file":"2","max-size":"1m"}"#);
    fs::write(&settings, r#"{"log-opts": {"max-size": "much"}}"#).unwrap();
    let refused = create(&[]);
    assert_eq!(refused.status.code(), Some(1));
}

/// If it fails, whoever looks at a hostile container gives it his terminal.
#[test]
fn names_of_a_container_reach_no_terminal() {
    let engine = Engine::new("escapes");
    let script = "touch '/\x1b[2J\u{9b}'; sleep 10000; : '\x1b[31m\u{9b}'";
    engine.script("run -d --name evil busybox", script);
    let shown = |line: &str| {
        let output = engine.run(line);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        let harmful = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(harmful), "{line}: {text:?}");
        text
    };
    wait_until("the file is there", || {
        shown("diff evil").contains("A /\\x1b[2J\\u{9b}")
    });
    assert!(shown("top evil").contains(": '\\x1b[31m\\u{9b}'"));
    assert!(shown("ps --no-trunc").contains(": '\\x1b[31m\\u{9b}'"));
    let inspected: Value = serde_json::from_str(&shown("inspect evil")).unwrap();
    assert_eq!(inspected[0]["Args"][1], script);
    for line in [
        "exec evil /\x1b[2J",
        "cp evil:/\x1b[2J\u{9b}x /tmp",
        "rm \x1b[2J",
    ] {
        assert!(shown(line).contains("\\x1b[2J"), "{line:?}");
    }
}
