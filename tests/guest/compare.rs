//! `cofferdam compare`: what it says of a process and of a VM is so.

use std::fs;

use crate::container::Engine;
use crate::harness::host;

/// A network for passt, which takes it after the host's default route; the lab has none.
const NETWORK: &str = "ip route show default | grep -q . || {
    ip link add compare0 type dummy && ip address add 10.75.0.2/24 dev compare0 &&
    ip link set compare0 up && ip route add default via 10.75.0.1; }";

/// Takes the network away again, for the tests that come after.
struct Network;

impl Network {
    fn make() -> Network {
        host(NETWORK);
        Network
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        host("ip link delete compare0 2>/dev/null || true");
    }
}

/// If it fails, the table that people choose by has figures that cannot be, or lacks some; or what is
/// done to containers for it harms the host, or stays.
#[test]
fn an_image_is_compared() {
    let engine = Engine::for_processes("compare");
    let _network = Network::make();
    let boot = host("cat /proc/sys/kernel/random/boot_id");
    let json = engine.text("compare --runs 1 --json busybox");
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let cell = |row: &str, column: &str| -> serde_json::Value {
        let rows = report["rows"].as_array().unwrap();
        let row = rows.iter().find(|found| found["id"] == row).unwrap();
        row["cells"][column].clone()
    };
    let number = |row: &str, column: &str| {
        let cell = cell(row, column);
        let number = cell["median"].as_f64().or(cell["value"].as_f64());
        number.unwrap_or_else(|| panic!("{row}, {column}: {cell}"))
    };

    let release = host("uname -r");
    for process in ["runc", "crun"] {
        let cell_of_kernel = cell("kernel", process);
        assert_eq!(cell_of_kernel["text"], release.trim(), "{cell_of_kernel}");
        assert_eq!(cell("own_kernel", process)["text"], "the host's");
        assert!(number("host_calls", process) > 200.0);
        assert!(number("host_proc", process) > 50.0);
        assert!(cell("passt", process)["not_measured"].is_string());
        assert!(number("bridge", process) > 0.0);
        let panic = &cell("panic", process)["not_measured"];
        assert_eq!(panic, "it would be the host's kernel");
    }
    assert_ne!(cell("kernel", "vm")["text"], release.trim());
    assert_eq!(cell("own_kernel", "vm")["text"], "its own");
    for reach in [
        "host_calls",
        "host_proc",
        "host_sys",
        "host_writable",
        "host_devices",
    ] {
        assert_eq!(number(reach, "vm"), 0.0, "{reach}");
    }
    let panic = cell("panic", "vm").to_string();
    assert!(panic.contains("the host runs on"), "{panic}");
    assert_eq!(host("cat /proc/sys/kernel/random/boot_id"), boot);

    for column in ["runc", "crun", "vm"] {
        let (first, whole) = (number("first_output", column), number("whole", column));
        assert!(1.0 < first && first <= whole, "{column}: {first}, {whole}");
        let work = [
            "cpu", "syscall", "process", "memory", "file", "write", "read",
        ];
        for row in work
            .into_iter()
            .chain(["calm", "fork_neighbour", "oom_neighbour", "disk"])
        {
            assert!(number(row, column) > 0.0, "{row}, {column}");
        }
        let oom = cell("oom", column).to_string();
        assert!(oom.contains("exit code 137"), "{column}: {oom}");
        assert!(
            cell("fork", column).to_string().contains("processes"),
            "{column}"
        );
    }
    assert!(number("panic_neighbour", "vm") > 0.0);
    assert!(number("bridge", "vm") > 0.0 && number("passt", "vm") > 0.0);
    let guest = number("guest", "vm");
    assert!((4.0..200.0).contains(&guest), "{guest}");
    assert!(number("processes", "vm") > guest);

    assert_eq!(engine.text("ps -aq"), "");
    let report = engine.path("report.json");
    fs::write(&report, &json).unwrap();
    let table = engine.text(&format!("compare --from {report}"));
    assert!(
        table.contains("VM (Cofferdam)") && table.contains(release.trim()),
        "{table}"
    );
}
