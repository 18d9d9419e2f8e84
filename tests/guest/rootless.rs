//! Containers of a user who is not root, with access to /dev/kvm: by `cofferdam run`, and by Podman.

use std::path::Path;
use std::process::Command;

use crate::harness::{TempDir, guest_file, program};

/// Becomes a user with a home, a runtime directory, numbers for others, and a network that has one
/// interface with an address and nothing behind it. Arguments: a directory, that of the programs, that of
/// the guest's files, then the command.
const WORLD: &str = r#"
dir=$1; programs=$2; guest=$3; shift 3
ip link set lo up; ip link add up0 type dummy; ip link set up0 up
ip address add 10.88.0.2/24 dev up0; ip route add default via 10.88.0.1
mount -t tmpfs none /mnt; mknod -m 666 /mnt/kvm c 10 232; mount --bind /mnt/kvm /dev/kvm
# What is ours may lie where that user does not get to.
mkdir "$dir/bin" "$dir/guest" "$dir/home" /mnt/run
mount --bind "$programs" "$dir/bin"
for name in vmlinux agent.erofs; do
    touch "$dir/guest/$name"; mount --bind "$(readlink -f "$guest/$name")" "$dir/guest/$name"
done
cp /etc/passwd /etc/group /etc/subuid /etc/subgid "$dir"
echo "tester:x:1500:1500::$dir/home:/bin/sh" >>"$dir/passwd"; echo "tester:x:1500:" >>"$dir/group"
echo tester:300000:65536 | tee -a "$dir/subuid" >>"$dir/subgid"
for name in passwd group subuid subgid; do mount --bind "$dir/$name" /etc/$name; done
# Engines do not pass on what is in our environment.
printf '#!/bin/sh\nCOFFERDAM_GUEST=%s exec %s runc "$@"\n' "$dir/guest" "$dir/bin/cofferdam" >"$dir/cofferdam-runc"
mkdir -p "$dir/box/bin" "$dir/box/etc" "$dir/box/www"; cp /bin/busybox "$dir/box/bin"; echo page >"$dir/box/www/index.html"
for one in sh id ip cat ls touch chown httpd sleep; do ln -s busybox "$dir/box/bin/$one"; done
chmod a+rx "$dir" "$dir/cofferdam-runc"; chown 1500:1500 "$dir/home" /mnt/run
export USER=tester LOGNAME=tester HOME="$dir/home" XDG_RUNTIME_DIR=/mnt/run PATH="$dir/bin:$PATH" COFFERDAM_GUEST="$dir/guest" DIR="$dir"
unset COFFERDAM_DATA COFFERDAM_RUN
cd "$HOME"
exec setpriv --reuid 1500 --regid 1500 --clear-groups "$@"
"#;

/// Runs a script as that user; all that it does must succeed.
#[track_caller]
fn user(name: &str, script: &str) {
    let dir = TempDir::within("/run".as_ref(), name);
    let mut command = Command::new("unshare");
    // What it leaves mounted goes with the namespace.
    command.args(["--net", "--mount", "--pid", "--fork", "--mount-proc"]);
    command.args(["sh", "-ec", WORLD, "sh"]).arg(dir.join(""));
    command.arg(Path::new(program()).parent().unwrap());
    command.arg(guest_file("vmlinux").parent().unwrap());
    let output = command.args(["sh", "-exc", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// If it fails, container mode takes root for something that it says needs none.
#[test]
fn cofferdam_runs_for_a_user() {
    let script = r#"
mkdir src; echo of the host >src/f
test "$(cofferdam run --rm busybox id -u)" = 0
cofferdam run --rm -v "$PWD/src:/src" busybox sh -c 'cat /src/f; echo of the guest >/src/new' >out
grep -x 'of the host' out; grep -x 'of the guest' src/new; test -O src/new
cofferdam run -d --name web --network passt -p 8080:80 -v vol:/data busybox \
    sh -c 'mkdir /www; echo page >/www/index.html; echo started; trap "exit 9" TERM; httpd -f -h /www & wait'
for i in $(seq 100); do ! curl -s --max-time 5 http://127.0.0.1:8080/ >page || break; sleep 0.2; done
grep -x page page
cofferdam logs web | grep -x started
cofferdam exec -u 7:8 web id | grep 'uid=7 gid=8'
cofferdam exec web touch /data/x
cofferdam stop -t 30 web
test "$(cofferdam inspect -f '{{.State.ExitCode}}' web)" = 9
cofferdam start web; cofferdam kill web; cofferdam rm -f web
cofferdam volume rm vol
test -z "$(cofferdam ps -aq)"
! pgrep -x cofferdam
"#;
    user("rootless", script);
}

/// If it fails, Podman without root does not run containers by our runtime, or their files have other
/// owners than a plain container's.
#[test]
fn podman_runs_for_a_user() {
    let script = r#"
podman() {
    command podman --storage-driver vfs --events-backend file --cgroup-manager cgroupfs \
        --runtime "$DIR/cofferdam-runc" "$@"
}
tar -C "$DIR/box" -c . | podman import - box
test "$(podman run --rm --network none box id -u)" = 0
mkdir vol
podman run --rm --network none -v "$PWD/vol:/v" box sh -c 'touch /v/root /v/other; chown 7:8 /v/other'
test -O vol/root; test "$(stat -c %u:%g vol/other)" = 300006:300007
podman run --rm --network none --userns=keep-id -v "$PWD/vol:/v" box sh -c 'id; touch /v/kept' >out
grep 'uid=1500.* gid=1500' out; test -O vol/kept
podman run -d --name web --network slirp4netns:port_handler=slirp4netns -p 8080:80 box httpd -f -h /www
for i in $(seq 100); do ! curl -s --max-time 5 http://127.0.0.1:8080/ >page || break; sleep 0.2; done
grep -x page page
podman exec web id
podman stop -t 0 web
podman rm web
podman run --rm --network slirp4netns --userns=keep-id box ip addr show tap0 >out
grep 'inet 10\.0\.2\.100' out
! pgrep -x cofferdam
test -z "$(ls "$XDG_RUNTIME_DIR/cofferdam/oci" "$XDG_RUNTIME_DIR/cofferdam/runc" | grep -v :)"
"#;
    user("podman-rootless", script);
}
