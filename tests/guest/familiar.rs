//! What Docker's users type from habit: it is there, and does what they expect.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::container::{Engine, code, said};

/// If it fails, a command or an option that everybody knows from Docker is missing, or does something else.
#[test]
fn what_is_known_from_docker_is_here() {
    let engine = Engine::new("familiar");
    let id = engine.script(
        "run -d --name one -m 128m -v kept:/data --network none busybox",
        "echo early; sleep 3; echo late; while [ ! -e /data/end ]; do sleep 1; done; rm /data/end; exit 3",
    );

    // Names and lists.
    engine.text("rename one web");
    assert_eq!(code(&engine.run("rename web a/b")), 1);
    assert_eq!(engine.text("ps --format {{.Names}}"), "web");
    let table = said(
        "ps",
        &engine
            .command(&[
                "container",
                "ls",
                "--format",
                "table {{.Names}}\t{{.State}}",
            ])
            .output()
            .unwrap(),
    );
    assert_eq!(table, "NAMES   STATE\nweb     running");

    // What is known of each kind of thing.
    assert_eq!(engine.text("inspect -f {{.Id}} web"), id);
    assert_eq!(
        engine.text("inspect -f {{range.Mounts}}{{.Name}}{{end}} web"),
        "kept"
    );
    let of_image = engine.text("inspect --type image -f {{range.Config.Cmd}}{{.}}{{end}} busybox");
    assert_eq!(of_image, "sh");
    assert_eq!(engine.text("inspect -f {{.Name}} kept"), "kept");
    assert_eq!(code(&engine.run("inspect nobody")), 1);
    assert_eq!(code(&engine.run("container inspect kept")), 1);
    assert_eq!(
        engine
            .text("images --filter reference=busy* -q")
            .lines()
            .count(),
        1
    );
    assert_eq!(engine.text("images --filter dangling=true -q"), "");

    // Logs by time.
    crate::harness::wait_until("the container to print all", || {
        engine.text("logs web").contains("late")
    });
    let lines = engine.text("logs -t web");
    let time = |line: &str| line.split(' ').next().unwrap().to_owned();
    let late = lines.lines().find(|line| line.ends_with("late")).unwrap();
    let since = engine.text(&format!("logs --since {} web", time(late)));
    assert_eq!(since, "late");
    assert_eq!(engine.text("logs --since 1h web"), "early\nlate");
    assert_eq!(engine.text("logs --until 2020-01-01 web"), "");
    let early = lines.lines().find(|line| line.ends_with("early")).unwrap();
    let until = engine.text(&format!("logs --until {} web", time(early)));
    assert_eq!(until, "early");

    // Limits, while it runs.
    let limit = || {
        engine.script(
            "exec web",
            "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max",
        )
    };
    engine.text("update -m 64m --pids-limit 50 --cpus 0.5 web");
    assert_eq!(limit(), format!("{}\n50", 64 << 20));
    let more = engine.run("update -m 1g web");
    assert_eq!(code(&more), 1);
    // What was taken away the VM still has.
    engine.text("update -m 100m web");
    engine.text("update -m 64m web");
    engine.text("restart -t 0 web");
    assert_eq!(limit(), format!("{}\n50", 64 << 20));
    assert_eq!(
        engine.text("inspect -f {{.HostConfig.NanoCpus}} web"),
        "500000000"
    );
    // Read when it is to be started again, not when it was made.
    engine.text("update --restart on-failure:1 web");
    engine.text("exec web touch /data/end");
    crate::harness::wait_until("the container to be started again", || {
        engine.text("inspect -f {{.RestartCount}}/{{.State.Status}} web") == "1/running"
    });

    // Its files.
    engine.script("exec web", "echo mine >/root-file; echo volume >/data/file");
    let mut export = engine.command(&["export", "web"]);
    let mut export = export.stdout(Stdio::piped()).spawn().unwrap();
    let names = Command::new("tar")
        .arg("t")
        .stdin(export.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(export.wait().unwrap().success());
    let names = said("tar", &names);
    assert!(
        names
            .lines()
            .any(|name| name.trim_start_matches("./") == "root-file"),
        "{names}"
    );

    // What there is in all.
    let info: Value = serde_json::from_str(&engine.text("info -f json")).unwrap();
    assert_eq!(
        (&info["Containers"], &info["ContainersRunning"]),
        (&1.into(), &1.into())
    );
    let df = engine.text("system df");
    assert!(
        df.lines()
            .any(|line| line.starts_with("Local Volumes   1       1")),
        "{df}"
    );
    assert!(
        engine
            .text("version -f {{.Client.Version}}")
            .starts_with('0')
    );
    let renamed =
        engine.text("events --since 1h --no-follow --filter event=rename --format {{.Name}}");
    assert_eq!(renamed, "web");

    // And its end.
    engine.text("container prune -f");
    assert_eq!(engine.text("ps -q").lines().count(), 1);
    engine.text("stop -t 0 web");
    crate::harness::wait_until("the container to end", || engine.text("ps -q").is_empty());
    engine.text("container prune -f");
    engine.text("volume prune -f");
    assert_eq!(engine.text("volume ls -q"), "kept");
    engine.text("volume prune -af");
    assert_eq!(engine.text("volume ls -q"), "");
    engine.text("system prune -af");
    assert_eq!(engine.text("images -q"), "");
}

/// If it fails, an option that Docker's users type does nothing, or stands in the way.
#[test]
fn options_known_from_docker_do_what_they_say() {
    let engine = Engine::new("familiar-options");
    let options = "--network none -m 64m --memory-swap 128m --cpu-shares 512 --cpuset-cpus 0 \
                   --platform linux/amd64 --annotation a=b --log-driver none";
    engine.script(
        &format!("run -d --name first -v shared:/data -v /etc:/host:ro {options} busybox"),
        "echo hidden; echo kept >/data/file; exec sleep 1000",
    );
    let weight = engine.script("exec first", "cat /sys/fs/cgroup/cpu.weight");
    // Docker's 512 of 1024 is this of the 100 that a cgroup has.
    assert_eq!(weight, "59");
    let pid = engine.text("inspect -f {{.State.Pid}} first");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    let logs = engine.run("logs first");
    let error = String::from_utf8_lossy(&logs.stderr).into_owned();
    assert!(
        code(&logs) == 1 && error.contains("--log-driver none"),
        "{error}"
    );
    let far = engine.run("run --rm --network none --cpuset-cpus 999 busybox true");
    let error = String::from_utf8_lossy(&far.stderr).into_owned();
    assert!(error.contains("this host has the CPUs"), "{error}");
    engine.text("rm -f first");

    engine.text("create --name second -v shared:/data -v /etc:/host:ro --network none busybox");
    let found = engine.script(
        "run --rm --volumes-from second:ro --network none busybox",
        "cat /data/file; test -e /host/passwd && echo host; touch /data/new 2>/dev/null || echo ro",
    );
    assert_eq!(found, "kept\nhost\nro");
}
