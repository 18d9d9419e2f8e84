//! Containers whose program is systemd.

use crate::container::Engine;
use crate::harness::{host, wait_until};

/// Makes a tar of the host's own systemd, as it was packaged, and of the libraries that it loads.
/// Argument: a directory, which gets it.
const IMAGE: &str = r#"
dir=$1; tree=$dir/tree
mkdir -p "$tree"; cd "$tree"
mkdir -p usr/bin usr/lib usr/lib64 usr/sbin dev etc proc root run sys tmp var/log
for name in bin lib lib64 sbin; do ln -s usr/$name $name; done
dpkg -L systemd | grep -v -e /share/doc -e /share/man -e /share/locale -e '^/[^/]*$' >"$dir/files"
while read -r file; do test -f "$file" -a -x "$file" && echo "$file"; done <"$dir/files" |
    xargs ldd 2>/dev/null | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^\s*\(\/lib64[^ ]*\) .*/\1/p' | sort -u |
    while read -r file; do echo "$file"; readlink -f "$file"; done >>"$dir/files"
sort -u "$dir/files" | tar -C / -c --no-recursion -T - 2>/dev/null | tar -x --keep-directory-symlink
cp /bin/busybox usr/bin; for name in sh cat mount; do ln -sf busybox usr/bin/$name; done
cp /etc/passwd /etc/group etc; : >etc/machine-id
tar -c . >"$dir/systemd.tar"
"#;

fn engine(name: &str) -> Engine {
    let engine = Engine::new(name);
    let dir = engine.path("image");
    host(&format!("mkdir {dir}; set -- {dir}; {IMAGE}"));
    engine.text(&format!("import {dir}/systemd.tar systemd"));
    engine
}

const PROGRAM: &str = "systemd /lib/systemd/systemd";

/// If it fails, systemd does not run in a container that has no terminal and is not privileged, does not end
/// when it is told to, or says nothing of all that in the log.
#[test]
fn systemd_runs_without_privileges_and_a_terminal() {
    let engine = engine("init");
    engine.text(&format!("run -d --name one --network none {PROGRAM}"));
    wait_until("its targets", || {
        engine.text("logs one").contains("multi-user.target")
    });
    // It has moved its processes to cgroups of its own.
    let cgroup = engine.text("exec one cat /proc/1/cgroup");
    assert_eq!(cgroup, "0::/init.scope");
    let state = "exec one systemctl is-active systemd-journald.service";
    assert_eq!(engine.text(state), "active");
    let mounts = engine.text("exec one mount");
    for (place, access) in [
        ("/run", "rw"),
        ("/tmp", "rw"),
        ("/sys/fs/cgroup", "rw"),
        ("/sys", "ro"),
    ] {
        let lines: Vec<_> = mounts.lines().collect();
        let is_it = |line: &&&str| line.contains(&format!(" on {place} type "));
        let line = lines.iter().find(is_it).unwrap();
        assert!(line.contains(&format!("({access},")), "{line}");
    }
    engine.text("stop -t 100 one");
    let logs = engine.text("logs one");
    assert!(logs.contains("Exiting container."), "{logs}");
    assert_eq!(engine.text("inspect --format {{.State.ExitCode}} one"), "0");
}

/// If it fails, nobody learns why systemd did not start.
#[test]
fn systemd_says_why_it_dies() {
    let engine = engine("init-dies");
    let run = "run -d --name one --network none --tmpfs /sys/fs/cgroup:ro";
    engine.text(&format!("{run} {PROGRAM}"));
    let status = || engine.text("inspect --format {{.State.Status}} one");
    wait_until("its end", || status() == "exited");
    let logs = engine.text("logs one");
    assert!(logs.contains("Failed to mount"), "{logs}");
    // Other programs are left alone.
    let script = "test ! -t 1 -a ! -e /dev/console; echo $?; mount | busybox grep /sys/fs/cgroup";
    let said = engine.script("run --rm --network none systemd", script);
    assert!(said.starts_with("0\n") && said.contains("(ro,"), "{said}");
}
