//! Terminals that come and go: attached, detached, attached again; and what is left when they are gone.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::container::{Engine, code};
use crate::harness::{Vm, host, wait_until};
use crate::terminal::Terminal;

/// Docker's keys to leave a container.
const DETACH: &str = "\x10\x11";

/// A client on a terminal of its own.
pub fn client(command: Command) -> Vm {
    let terminal = Terminal::new();
    terminal.resize(24, 80);
    terminal.run(command)
}

/// Types a sum, and waits until the shell has done it: its echo is not the answer.
#[track_caller]
pub fn calculates(client: &mut Vm, first: u32, second: u32) {
    client.type_text(&format!("echo =$(({first}+{second}))=\r"));
    client.wait_for(&format!("={}=", first + second));
}

/// Leaves the container running.
#[track_caller]
pub fn leave(mut client: Vm) {
    client.type_text(DETACH);
    client.end().expect(0);
}

fn on_terminal(engine: &Engine, line: &str) -> Vm {
    let args: Vec<&str> = line.split_whitespace().collect();
    client(engine.command(&args))
}

/// How many descriptors and threads a process has.
fn held(pid: &str) -> [usize; 2] {
    ["fd", "task"].map(|what| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count())
}

/// If it fails, who has left a container cannot come back, or finds it deaf and mute; or several cannot
/// be there at once.
#[test]
fn a_terminal_is_left_and_come_back_to() {
    let engine = Engine::new("attach");
    engine.text("run -dit --name one --network none busybox sh");
    for round in 0..3 {
        let mut client = on_terminal(&engine, "attach one");
        // What it showed before, without a word of ours.
        client.wait_for("/ # ");
        calculates(&mut client, 10, round);
        leave(client);
    }
    let [mut first, mut second] = [(); 2].map(|()| on_terminal(&engine, "attach one"));
    first.wait_for("/ # ");
    second.wait_for("/ # ");
    calculates(&mut first, 20, 1);
    second.wait_for("=21=");
    calculates(&mut second, 30, 1);
    first.wait_for("=31=");
    leave(first);
    calculates(&mut second, 40, 1);
    // One that is killed is no end of the others' input either.
    drop(on_terminal(&engine, "attach one"));
    calculates(&mut second, 50, 1);
    second.type_text("exit 6\r");
    second.end().expect(6);

    let mut client = on_terminal(&engine, "run -it --name two --network none busybox sh");
    client.wait_for("/ # ");
    calculates(&mut client, 60, 1);
    leave(client);
    assert_eq!(engine.text("ps --format {{.Names}}"), "two");
    let mut client = on_terminal(&engine, "attach two");
    calculates(&mut client, 70, 1);
    leave(client);

    // What runs in a terminal that nobody looks at goes on, however much it writes.
    let mut client = on_terminal(&engine, "exec -it two sh");
    client.wait_for("/ # ");
    client.type_text("i=0; while [ $i -lt 3000 ]; do echo line $i of many that nobody reads; i=$((i+1)); done; touch /done\r");
    client.wait_for("line 10 of");
    leave(client);
    wait_until("the end of what was left", || {
        code(&engine.run("exec two test -e /done")) == 0
    });
    engine.text("rm -f one two");
}

/// If it fails, each who attaches and goes takes descriptors and threads of the shim along; or the input
/// of a container without a terminal ends with that of a client, or never.
#[test]
fn clients_come_and_go() {
    let engine = Engine::new("clients");
    engine.text("run -di --name cat --network none busybox cat");
    let shim = engine.text("inspect -f {{.Cofferdam.Shim}} cat");
    let attached = |text: &str| {
        let mut child = engine
            .command(&["attach", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(format!("{text}\n").as_bytes())
            .unwrap();
        let logs = || engine.text("logs cat");
        wait_until(text, || logs().contains(text));
        child.kill().unwrap();
        child.wait().unwrap();
    };
    attached("first");
    wait_until("quiet", || held(&shim) == held(&shim));
    let before = held(&shim);
    for text in ["second", "third", "fourth", "fifth"] {
        attached(text);
    }
    // The container says nothing, by which the shim might find out that somebody is gone.
    wait_until("all to be let go", || {
        let now = held(&shim);
        now[0] <= before[0] && now[1] <= before[1]
    });
    assert_eq!(engine.text("inspect -f {{.Config.StdinOnce}} cat"), "false");
    engine.text("rm -f cat");
}

/// If it fails, a shim that has no descriptor left turns round and round, and never hears again that its
/// container is to stop.
#[test]
fn a_shim_without_descriptors_recovers() {
    let engine = Engine::new("starved");
    engine.text("run -d --name one --network none busybox sleep 1000");
    let shim = engine.text("inspect -f {{.Cofferdam.Shim}} one");
    let limit = |number: &str| host(&format!("prlimit --pid {shim} --nofile={number}:1048576"));
    let most: usize = fs::read_dir(format!("/proc/{shim}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .max()
        .unwrap();
    limit(&(most + 1).to_string());
    // All numbers below are taken by these, who say nothing.
    let socket = host(&format!("echo {}/run/*/shim.sock", engine.path("")));
    let clients: Vec<_> = (0..most + 3)
        .map(|_| std::os::unix::net::UnixStream::connect(socket.trim()).unwrap())
        .collect();
    wait_until("want of descriptors", || {
        fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count() > most
    });
    let ticks = || -> u64 {
        let stat = fs::read_to_string(format!("/proc/{shim}/stat")).unwrap();
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(std::time::Duration::from_secs(4));
    // It looks ten times a second; who turns round and round takes all of them.
    let used = ticks() - before;
    assert!(used < 200, "{used} ticks of 400");
    drop(clients);
    limit("1024");
    engine.text("stop -t 0 one");
    engine.text("rm one");
}
