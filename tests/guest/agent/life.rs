//! Containers and their processes: run, entered, refused.

use super::*;

/// If it fails, a container does not run, or its exit code, output or input is not what it says.
#[test]
fn containers_run_and_end() {
    let guest = Guest::start("run");
    let hello = &guest.hello;
    println!(
        "started {} us, ready {} us",
        hello.started_us, hello.ready_us
    );
    assert!(!hello.kernel.is_empty());
    for (number, (args, code, signal)) in [
        (&["true"][..], 0, 0),
        (&["sh", "-c", "exit 42"], 42, 0),
        (
            &["sh", "-c", "kill -9 $$; sleep 5 & kill -9 -1; exit 3"],
            3,
            0,
        ),
        (&["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"], 143, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("end{number}");
        let end = guest.run(&id, &spec(args)).wait();
        assert_eq!((end.exit_code, end.signal), (code, signal), "{args:?}");
        guest.delete(&id).unwrap();
    }
    // Standard input to its end, and each output where it belongs.
    let mut cat = guest.run("cat", &spec(&["sh", "-c", "cat; echo apart >&2"]));
    let text = "line\n".repeat(100_000);
    let (mut stdin, sent) = (cat.stdin.try_clone().unwrap(), text.clone());
    let writer = thread::spawn(move || {
        stdin.write_all(sent.as_bytes()).unwrap();
        stdin.shutdown(Shutdown::Write).unwrap();
    });
    let (mut found, mut errors) = (String::new(), String::new());
    cat.stdout.read_to_string(&mut found).unwrap();
    cat.stderr
        .as_mut()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    writer.join().unwrap();
    assert_eq!(cat.wait().exit_code, 0);
    assert!(found == text, "{} bytes", found.len());
    assert_eq!(errors, "apart\n");
    guest.delete("cat").unwrap();
    // By the protocol instead of the stream's end.
    let mut cat = guest.run("close", &spec(&["cat"]));
    cat.stdin.write_all(b"x\n").unwrap();
    assert_eq!(cat.read_until("x\n"), "x\n");
    guest.client.close_stdin(cat.name()).unwrap();
    assert_eq!((cat.output().as_str(), cat.wait().exit_code), ("", 0));
    // By signals.
    let mut sleeping = guest.run(
        "sleep",
        &spec(&[
            "sh",
            "-c",
            "trap 'exit 7' USR1; echo up; while :; do sleep 1; done",
        ]),
    );
    sleeping.read_until("up\n");
    guest.signal("sleep", libc::SIGUSR1, true).unwrap();
    assert_eq!(sleeping.wait().exit_code, 7);
    let killed = guest.run("kill", &spec(&["sleep", "1000"]));
    guest.signal("kill", libc::SIGKILL, false).unwrap();
    let end = killed.wait();
    assert_eq!((end.exit_code, end.signal, end.oom), (137, 9, false));
    assert!(guest.signal("kill", libc::SIGKILL, false).is_err());
    guest.power_off();
}

/// If it fails, a terminal has the wrong size, is not a terminal, or Ctrl-C does not arrive.
#[test]
fn terminals_resize_and_control() {
    let guest = Guest::start("tty");
    let mut all = spec(&["sh"]);
    all["process"]["terminal"] = json!(true);
    let mut shell = guest.run("shell", &all);
    let say = |text: &str, shell: &mut Process<'_>, wanted: &str| {
        shell.stdin.write_all(text.as_bytes()).unwrap();
        shell.read_until(wanted)
    };
    say("tty; stty size\n", &mut shell, "/dev/pts/0\r\n30 90\r\n");
    let mut request = ResizeRequest::new();
    request.id = "shell".to_owned();
    request.size = Some(size(55, 166)).into();
    guest.client.resize(request.clone()).unwrap();
    say("stty size\n", &mut shell, "55 166\r\n");
    say("echo console >/dev/console\n", &mut shell, "console\r\n");
    say("sleep 1000\n", &mut shell, "sleep 1000\r\n");
    thread::sleep(Duration::from_millis(300));
    say("\x03", &mut shell, "^C");
    say("echo $?; exit 9\n", &mut shell, "130\r\n");
    shell.output();
    assert_eq!(shell.wait().exit_code, 9);
    assert!(guest.client.resize(request).is_err() || shell.wait().exit_code == 9);
    guest.power_off();
}

/// If it fails, processes that join a container are not in it, many at once get lost, or their exit
/// codes are mixed up.
#[test]
fn processes_join_a_container() {
    let guest = Guest::start("exec");
    let mut main = guest.run("main", &spec(&["sh", "-c", "echo up; exec sleep 1000"]));
    main.read_until("up\n");
    let mut inside = process(&[
        "sh",
        "-c",
        "hostname; cat /proc/1/cmdline | tr '\\0' ' '; id -u; pwd",
    ]);
    inside["user"] = json!({"uid": 1000, "gid": 1000});
    inside["cwd"] = json!("/tmp");
    let mut one = guest.exec("main", "one", &inside).unwrap();
    assert_eq!(one.output(), "box\nsleep 1000 1000\n/tmp\n");
    assert_eq!(one.wait().exit_code, 0);
    let mut terminal = process(&["sh", "-c", "tty; echo $0"]);
    terminal["terminal"] = json!(true);
    let mut other = guest.exec("main", "tty", &terminal).unwrap();
    assert!(other.output().starts_with("/dev/pts/"));
    thread::scope(|scope| {
        for number in 0..20 {
            let guest = &guest;
            scope.spawn(move || {
                let script = format!("read line; echo $line; exit {number}");
                let exec = format!("many{number}");
                let mut one = guest
                    .exec("main", &exec, &process(&["sh", "-c", &script]))
                    .unwrap();
                one.stdin.write_all(format!("{exec}\n").as_bytes()).unwrap();
                assert_eq!(one.output(), format!("{exec}\n"));
                assert_eq!(one.wait().exit_code, number);
                guest.client.delete(one.name()).unwrap();
            });
        }
    });
    // What is not there, and what is no program.
    let refuse = |exec: &str, args: &[&str]| match guest.exec("main", exec, &process(args)) {
        Err(error) => error,
        Ok(_) => panic!("{args:?} ran"),
    };
    let error = refuse("none", &["no-such-program"]);
    assert!(
        error.is_no_such_program() && error.to_string().contains("no-such-program"),
        "{error}"
    );
    assert!(refuse("passwd", &["/etc/passwd"]).is_not_executable());
    assert!(
        refuse("one", &["true"])
            .to_string()
            .contains("exists already")
    );
    let mut request = ContainerRequest::new();
    request.id = "main".to_owned();
    let processes = guest.client.pids(request.clone()).unwrap().processes;
    assert!(
        processes.iter().any(|one| one.command == ["sleep", "1000"]),
        "{processes:?}"
    );
    // Frozen, nobody joins.
    guest.client.pause(request.clone()).unwrap();
    assert!(
        refuse("frozen", &["true"])
            .to_string()
            .contains("is paused")
    );
    guest.client.resume(request).unwrap();
    assert!(
        guest
            .delete("main")
            .unwrap_err()
            .to_string()
            .contains("still running")
    );
    guest.signal("main", libc::SIGKILL, true).unwrap();
    assert_eq!(main.wait().signal, 9);
    guest.delete("main").unwrap();
    assert!(guest.client.wait(main.name()).unwrap_err().is_not_found());
    guest.power_off();
}

/// If it fails, a container that wants too much memory is not stopped, or nobody learns of it.
#[test]
fn too_much_memory_is_an_event() {
    let guest = Guest::start("oom");
    let mut greedy = spec(&["sh", "-c", "tail /dev/zero; echo tail $?; exit 5"]);
    greedy["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let mut one = guest.run("greedy", &greedy);
    assert!(one.output().contains("tail 137"));
    let end = one.wait();
    assert_eq!((end.exit_code, end.oom), (5, true));
    let first = guest.event(0);
    assert!(
        matches!(first.kind, Some(api::event::Kind::Oom(_))) && first.id == "greedy",
        "{first:?}"
    );
    let second = guest.event(first.sequence);
    let Some(api::event::Kind::Exit(exit)) = &second.kind else {
        panic!("{second:?}")
    };
    assert_eq!((exit.exit_code, second.exec.as_str()), (5, ""));
    guest.delete("greedy").unwrap();

    let mut main = guest.run("main", &spec(&["sh", "-c", "echo up; exec sleep 1000"]));
    main.read_until("up\n");
    let mut update = UpdateRequest::new();
    update.id = "main".to_owned();
    update.resources = br#"{"memory":{"limit":33554432},"pids":{"limit":7}}"#.to_vec();
    guest.client.update(update).unwrap();
    let mut request = ContainerRequest::new();
    request.id = "main".to_owned();
    let stats = guest.client.stats(request).unwrap();
    assert_eq!(
        (stats.memory_limit, stats.pids_limit, stats.pids),
        (32 << 20, 7, 1)
    );
    assert!(
        stats.memory > 0 && stats.guest_memory > 100 << 20,
        "{stats:?}"
    );
    assert!(stats.cpu_stat["usage_usec"] > 0 && stats.memory_stat.contains_key("anon"));
    guest.power_off();
}

/// If it fails, one bad request ends the agent, and with it the VM.
#[test]
fn bad_requests_are_refused_by_name() {
    let guest = Guest::start("bad");
    let refuse = |id: &str, spec: &Value| match guest.create(id, spec) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{spec} was accepted"),
    };
    for (path, value, part) in [
        ("/process", json!(null), "spec.process"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!(["a\0b"]), "process.args"),
        ("/process/cwd", json!("here"), "process.cwd"),
        ("/process/user/uid", json!("root"), "spec"),
        (
            "/process/capabilities/bounding",
            json!(["CAP_ALL"]),
            "CAP_ALL",
        ),
        (
            "/process/rlimits",
            json!([{"type": "X", "soft": 1, "hard": 1}]),
            "process.rlimits: X",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 1}]),
            "RLIMIT_NOFILE",
        ),
        ("/process/apparmorProfile", json!("x"), "apparmorProfile"),
        ("/mounts/0/destination", json!("proc"), "mount on proc"),
        ("/mounts/0/type", json!("nofs"), "mount nofs on /proc"),
        ("/mounts/0/options", json!(["bind"]), "/proc"),
        (
            "/linux/namespaces",
            json!([{"type": "pid", "path": "/proc/1/ns/pid"}]),
            "namespaces",
        ),
        ("/linux/namespaces", json!([{"type": "moon"}]), "moon"),
        ("/linux/sysctl", json!({"no.such": "1"}), "no.such"),
        ("/linux/sysctl", json!({"../../x": "1"}), "../../x"),
        ("/linux/seccomp", json!({"defaultAction": "X"}), "seccomp"),
        (
            "/linux/devices",
            json!([{"type": "q", "path": "/dev/q"}]),
            "/dev/q",
        ),
        (
            "/linux/resources",
            json!({"unified": {"../x.y": "1"}}),
            "../x.y",
        ),
        ("/linux/resources", json!({"memory": {"limit": 1}}), ""),
        ("/linux/maskedPaths/0", json!(5), "spec"),
    ] {
        let mut bad = spec(&["true"]);
        match path.rsplit_once('/').unwrap() {
            (parent, key) if bad.pointer(path).is_none() => {
                bad.pointer_mut(parent).unwrap()[key] = value.clone();
            }
            _ => *bad.pointer_mut(path).unwrap() = value.clone(),
        }
        let error = refuse("bad", &bad);
        println!("{path}: {error}");
        assert!(error.contains(part), "{path} {value}: {error}");
    }
    assert!(refuse("", &spec(&["true"])).contains("id"));
    assert!(refuse("../x", &spec(&["true"])).contains("../x"));
    assert!(guest.start_it("none").unwrap_err().is_not_found());
    assert!(guest.signal("none", 9, false).unwrap_err().is_not_found());
    // Not even protobuf, or ttrpc. What comes back, if anything, is the end of the connection.
    let malformed = [0, 0, 0, 4, 0, 0, 0, 1, 1, 0, 255, 255, 255, 255];
    let long = "x".repeat(1000);
    for (port, bytes) in [
        (CONTROL_PORT, &b"GET / HTTP/1.0\r\n\r\n"[..]),
        (CONTROL_PORT, &malformed),
        (CONTROL_PORT, &[255; 64]),
        (STREAM_PORT, b"what\n"),
        (STREAM_PORT, b"stdin \n"),
        (STREAM_PORT, b"tty x\n"),
        (STREAM_PORT, long.as_bytes()),
    ] {
        let mut stream = UnixStream::connect(&guest.socket).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        stream
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).unwrap();
        }
        stream.write_all(bytes).unwrap();
        let _ = stream.shutdown(Shutdown::Write);
        let end = stream.read_to_end(&mut Vec::new());
        println!("{port} {end:?}");
    }
    // It is as well as before.
    let end = guest.run("good", &spec(&["true"])).wait();
    assert_eq!(end.exit_code, 0);
    guest.power_off();
}
