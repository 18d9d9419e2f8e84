//! The serial console, wherever it leads.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::harness::{TempDir, Vm, patience, wait_until};
use crate::terminal::open_terminal;

/// If it fails, what is pasted into a guest arrives in part, twice or in another order.
#[test]
fn a_paste_of_64_kib_arrives_whole() {
    let dir = TempDir::new("paste");
    let script = r#"
        stty -echo; echo ready; cat >/tmp/got
        awk 'BEGIN { for (i = 0; i < 1024; i++) printf "%063d\n", i }' | cmp - /tmp/got"#;
    let mut vm = Vm::script(&dir, "", script);
    vm.wait_for("ready");
    let text: String = (0..1024).map(|i| format!("{i:063}\n")).collect();
    vm.type_text(&text);
    // Ctrl-d, the end of input for whoever reads a terminal.
    vm.type_text("\x04");
    vm.end().expect(0);
}

/// If it fails, a script on standard input is lost to the guest's boot, or its end stops the VM or
/// makes the monitor spin.
#[test]
fn input_may_come_early_and_end() {
    let mut vm = Vm::start(&[]);
    // Much sooner than the guest has a driver for its serial port.
    vm.type_text("echo got $((40 + 2))\n");
    vm.input = None;
    vm.wait_for("got 42");

    let spent = |pid: u32| -> u32 {
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        // User and system time in ticks of 10 ms: fields 14 and 15, where this begins at 3.
        let mut times = fields.split_whitespace().skip(11);
        (0..2)
            .map(|_| times.next().unwrap().parse::<u32>().unwrap())
            .sum()
    };
    let before = spent(vm.pid());
    thread::sleep(Duration::from_secs(2));
    let ticks = spent(vm.pid()) - before;
    assert!(
        ticks < 40,
        "the main loop spent {ticks} of 200 ticks on an idle guest"
    );
    vm.signal(libc::SIGTERM);
    vm.end().expect(0);
}

/// If it fails, `--console file=` loses output, or `--console off` is no VM without a serial port.
#[test]
fn into_a_file_or_nowhere() {
    let dir = TempDir::new("file");
    let path = dir.join("log");
    let end = Vm::script(
        &dir,
        &format!("--console file={}", path.display()),
        "uname -m",
    )
    .end();
    assert_eq!(end.expect(0).console, "");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("x86_64\r\n"), "{text:?}");

    let script = "[ ! -e /dev/ttyS0 ] || ! echo >/dev/ttyS0 && exit 9";
    Vm::script(&dir, "--console off", script).end().expect(9);
}

/// Reads until `text` has come.
fn read_until(stream: &mut impl Read, text: &str) {
    let mut got = String::new();
    let mut buffer = [0; 256];
    while !got.contains(text) {
        let count = stream.read(&mut buffer).unwrap_or(0);
        assert!(count > 0, "no {text:?} in {got:?}");
        got += &String::from_utf8_lossy(&buffer[..count]);
    }
}

/// If it fails, a console on a socket serves one client only, or none after the first, or loses
/// what the guest said in between, or leaves its file behind.
#[test]
fn on_a_socket_clients_come_and_go() {
    let dir = TempDir::new("socket");
    let path = dir.join("console");
    let vm = Vm::start(&["--console", &format!("socket={}", path.display())]);
    wait_until("the console's socket", || path.exists());
    let connect = || {
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(patience())).unwrap();
        client
    };

    let mut first = connect();
    first
        .write_all(b"echo one $((40 + 2)); sleep 1; echo two $((40 + 3))\n")
        .unwrap();
    read_until(&mut first, "one 42");
    drop(first);
    thread::sleep(Duration::from_secs(2));
    let mut second = connect();
    read_until(&mut second, "two 43");
    second.write_all(b"exit 6\n").unwrap();
    vm.end().expect(6);
    assert!(!path.exists());
}

/// If it fails, a console on a pseudo-terminal cannot be found or used, or not a second time.
#[test]
fn on_a_pty() {
    let mut vm = Vm::start(&["--console", "pty"]);
    vm.wait_for_log("/dev/pts/");
    vm.wait_for_log("\n");
    let log = vm.log_so_far();
    let (_, path) = log.split_once("the console is at ").unwrap();
    let path = Path::new(path.lines().next().unwrap());

    let mut terminal: File = open_terminal(path);
    terminal.write_all(b"echo one $((40 + 2))\n").unwrap();
    read_until(&mut terminal, "one 42");
    drop(terminal);
    let mut terminal = open_terminal(path);
    terminal.write_all(b"exit 6\n").unwrap();
    vm.end().expect(6);
}
