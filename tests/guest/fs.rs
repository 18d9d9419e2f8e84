//! Shared directories in a Debian guest: work in them, what stays outside, and a file-system
//! process that dies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::{TempDir, Vm, guest_file, host, patience, program, script_args, wait_until};

/// A file system of the host's own with all that files can have: a memory file system has no user
/// attributes.
struct Volume {
    path: PathBuf,
}

impl Volume {
    fn new(dir: &TempDir) -> Self {
        Self::of_size(dir, "256M")
    }

    fn of_size(dir: &TempDir, size: &str) -> Self {
        let path = dir.join("volume");
        host(&format!(
            "truncate -s {size} {0}.img; mkfs.ext4 -q {0}.img; mkdir {0}; mount -o loop {0}.img {0}",
            path.display()
        ));
        Self { path }
    }

    fn dir(&self, name: &str) -> String {
        let path = self.path.join(name);
        fs::create_dir(&path).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        host(&format!("umount {}", self.path.display()));
    }
}

/// If it fails, builds, checkouts and clean-ups in a shared directory go wrong, or what a file is
/// besides its content is lost on the way.
#[test]
fn a_source_tree_is_worked_on() {
    let dir = TempDir::new("fs-tree");
    let volume = Volume::new(&dir);
    let (shared, other) = (volume.dir("shared"), volume.dir("other"));
    host(&format!(
        r#"mkdir {shared}/tree; cd {shared}/tree
        for d in $(seq 10); do
            mkdir -p dir$d/sub
            for f in $(seq 20); do
                echo "int value_$f = $d;" >dir$d/file$f.c; head -c $((f * d * 10)) /dev/urandom >dir$d/sub/blob$f
            done
            ln -s ../dir1/file1.c dir$d/link; ln dir$d/file1.c dir$d/hard
        done
        find . -type f | sort | xargs sha256sum >../sums
        cd ..; tar cf tree.tar tree; rm -r tree; echo read-only >{other}/file"#
    ));
    let args = format!(
        "--memory 512M --fs tag=data,path={shared},suid \
         --fs tag=both,path={shared},name=rw --fs tag=both,path={other},name=ro,ro"
    );
    let script = r#"
        set -e
        mount -t virtiofs data /mnt; cd /mnt
        tar xf tree.tar; cd tree; sha256sum --quiet -c ../sums; echo unpacked
        [ "$(readlink dir7/link)" = ../dir1/file1.c ]; cmp dir7/link dir1/file1.c
        [ dir7/file1.c -ef dir7/hard ]
        export HOME=/tmp; git config --global user.email a@b; git config --global user.name a
        git init -q; git add .; git commit -qm all; [ -z "$(git status --porcelain)" ]
        echo more >>dir3/file3.c; [ "$(git status --porcelain)" = " M dir3/file3.c" ]
        git checkout -q dir3/file3.c; git fsck --no-progress; echo committed
        cd ..; mkdir kept; cp -a tree/dir2 kept/; rm -rf tree; [ ! -e tree ]; echo removed
        touch owned; chown 1234:5678 owned; chmod 4751 owned; touch -d 2001-02-03T04:05:06Z owned
        setfattr -n user.colour -v blue owned
        [ "$(stat -c %u:%g:%a:%Y owned)" = 1234:5678:4751:981173106 ]
        chmod 777 .; setpriv --reuid 1000 --regid 1000 --clear-groups touch users
        dd if=/dev/zero of=sparse bs=1 count=1 seek=10M status=none; sync sparse
        dd if=sparse of=/dev/null bs=1M iflag=direct status=none
        mkdir /tmp/both; mount -t virtiofs both /tmp/both; cd /tmp/both
        [ "$(cat ro/file)" = read-only ]; [ -e rw/owned ]
        ! touch ro/x 2>/dev/null; ! touch x 2>/dev/null; ! rm ro/file 2>/dev/null; echo x >rw/x
        cd /; umount -R /tmp/both; umount /mnt; echo unmounted"#;
    let mut vm = Vm::debian(&dir, &args, script);
    for word in ["unpacked", "committed", "removed", "unmounted"] {
        vm.wait_for(word);
    }
    let end = vm.end().expect(0);
    assert!(!end.log.contains("WARN"), "{}", end.log);
    host(&format!(
        r#"cd {shared}; [ "$(stat -c %u:%g:%a:%Y owned)" = 1234:5678:4751:981173106 ]
        [ "$(stat -c %u:%g users)" = 1000:1000 ]
        [ "$(getfattr --only-values -n user.colour owned)" = blue ]
        [ "$(stat -c %s sparse)" = 10485761 ]; [ -e kept/dir2/file1.c ]; [ ! -e tree ]; [ -e x ]
        [ -e {other}/file ]"#
    ));
}

/// If it fails, a tree of more files than a process may open by default cannot be unpacked.
#[test]
fn there_are_many_files() {
    let dir = TempDir::new("fs-many");
    let volume = Volume::new(&dir);
    let args = format!("--fs tag=data,path={}", volume.dir("shared"));
    let script = r#"
        set -e
        mount -t virtiofs data /mnt; mkdir /mnt/many; cd /mnt/many
        seq 5000 | xargs touch; ls -l | wc -l; cd ..; rm -r many; [ ! -e many ]; echo removed"#;
    // 15,000 requests and their answers take longer than most tests wait, where the host is busy.
    let end = Vm::debian(&dir, &args, script)
        .end_within(4 * patience())
        .expect(0);
    assert!(end.console.contains("5001") && end.console.contains("removed"));
}

/// If it fails, what works for a few hundred files does not for a kernel's source tree. By hand, since it
/// takes its time in the lab and 10 GiB: `COFFERDAM_TEST_TREE` names a tar of one.
#[test]
#[ignore = "by hand: COFFERDAM_TEST_TREE names the tar of a source tree"]
fn a_whole_source_tree_is_unpacked_and_removed() {
    let tar = std::env::var("COFFERDAM_TEST_TREE").unwrap();
    let dir = TempDir::new("fs-whole-tree");
    let volume = Volume::of_size(&dir, "8G");
    let shared = volume.dir("shared");
    host(&format!(
        r#"cd {shared}; mkdir ../plain; tar xf {tar} -C ../plain
        (cd ../plain; find . -type f | sort | xargs -d '\n' sha256sum) >sums
        ln {tar} tree.tar 2>/dev/null || cp {tar} tree.tar; rm -r ../plain"#
    ));
    let args = format!("--memory 1G --fs tag=data,path={shared}");
    let script = r#"
        set -e
        mount -t virtiofs data /mnt; mkdir /mnt/tree; cd /mnt/tree
        tar xf ../tree.tar; echo unpacked; sha256sum --quiet -c ../sums; echo compared
        export HOME=/tmp; git config --global user.email a@b; git config --global user.name a
        # Files are what this is about, not the guest's CPU.
        git config --global core.compression 0
        top=$(ls); cd $top; git init -q; git add -f .; git commit -qm all
        [ -z "$(git status --porcelain)" ]; echo committed
        cd /mnt; find tree -type f | wc -l; rm -rf tree; [ ! -e tree ]; echo removed"#;
    let mut vm = Vm::debian(&dir, &args, script);
    for word in ["unpacked", "compared", "committed", "removed"] {
        vm.wait_for(word);
    }
    vm.end().expect(0);
}

/// If it fails, a driver that lets go of the device and takes it up again finds it dead, or with old
/// queues.
#[test]
fn a_driver_comes_and_goes() {
    let dir = TempDir::new("fs-rebind");
    let shared = dir.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "still here").unwrap();
    let args = format!("--fs tag=data,path={}", shared.display());
    let script = r#"
        set -e
        cd /sys/bus/virtio/drivers/virtiofs; device=$(echo virtio*)
        for i in 1 2 3 4 5; do
            mount -t virtiofs data /mnt; cat /mnt/file; echo $i >/mnt/$i; umount /mnt
            echo $device >unbind; echo $device >bind
        done"#;
    let end = Vm::script(&dir, &args, script).end().expect(0);
    assert_eq!(end.console.matches("still here").count(), 5);
    assert!(shared.join("5").exists());
}

/// If it fails, a guest reaches files of the host that nobody gave it.
#[test]
fn the_guest_stays_in_its_directory() {
    let dir = TempDir::new("fs-escape");
    let shared = dir.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(dir.join("secret"), "the-secret").unwrap();
    host(&format!(
        "cd {}; mkdir inner; ln -s {}/secret absolute; ln -s ../secret relative; ln -s / root; \
         ln -s /proc/self/root proc; mkdir a; echo mine >a/secret; ln -s .. b",
        shared.display(),
        dir.join("").display()
    ));
    // A directory and a link out of it trade places all the time.
    let swap = format!(
        "import os, time\nos.chdir({shared:?})\nwhile True:\n time.sleep(0.002)\n \
         os.rename('a','c'); os.rename('b','a'); os.rename('c','b')\n"
    );
    let mut swapper = Command::new("python3").args(["-c", &swap]).spawn().unwrap();
    let args = format!("--fs tag=data,path={}", shared.display());
    let script = r#"
        mount -t virtiofs data /mnt && cd /mnt || exit 1
        ls -la . inner/.. >/tmp/out 2>&1
        cat ../secret inner/../../secret absolute relative >>/tmp/out 2>&1
        cat root/proc/1/environ proc/../../secret >>/tmp/out 2>&1
        for i in $(seq 100); do cat a/secret b/secret; done >>/tmp/out 2>/dev/null
        mknod null c 1 3; ln absolute hard; cat hard >>/tmp/out 2>&1
        mount --bind / inner; mv root moved; ln -s ../../../../../../ up; ls up/ >>/tmp/out
        grep -c mine /tmp/out; grep the-secret /tmp/out && exit 2
        exit 0"#;
    let end = Vm::debian(&dir, &args, script).end();
    swapper.kill().unwrap();
    swapper.wait().unwrap();
    end.expect(0);
    assert_eq!(
        fs::read_to_string(dir.join("secret")).unwrap(),
        "the-secret"
    );
}

/// The process that serves, two steps below the monitor.
fn server(vm: &Vm) -> (u32, u32) {
    let child = |pid: u32| -> u32 {
        let children = format!("/proc/{pid}/task/{pid}/children");
        fs::read_to_string(children)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    let outer = child(vm.pid());
    (outer, child(outer))
}

/// If it fails, a file-system process that dies hangs the monitor or the guest, or is left behind.
#[test]
fn a_killed_process_is_an_io_error() {
    let dir = TempDir::new("fs-killed");
    let shared = dir.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), vec![7; 1 << 20]).unwrap();
    let args = format!("--cpus 2 --fs tag=data,path={}", shared.display());
    let script = r#"
        mount -t virtiofs data /mnt && cat /mnt/file >/dev/null || exit 1
        echo opened; read line
        (cat /mnt/file; cat /mnt/new; ls -l /mnt; mkdir /mnt/x) >/dev/null 2>/tmp/errors &
        sleep 2; echo waiting; wait; cat /tmp/errors
        [ $(grep -c 'Input/output error' /tmp/errors) -ge 4 ] || exit 2
        echo x >/mnt/new && exit 3
        umount -l /mnt
        echo alive"#;
    let mut vm = Vm::debian(&dir, &args, script);
    vm.wait_for("opened");
    let (outer, inner) = server(&vm);
    // First it says nothing any more, so that requests are under way when it dies.
    host(&format!("kill -STOP {inner}"));
    vm.type_text("\n");
    vm.wait_for("waiting");
    host(&format!("kill -KILL {inner}"));
    vm.wait_for("Input/output error");
    vm.wait_for("alive");
    wait_until("the processes' end", || {
        !Path::new(&format!("/proc/{inner}")).exists()
    });
    let end = vm.end().expect(0);
    assert_eq!(
        end.log.matches("the file-system process is gone").count(),
        1,
        "{}",
        end.log
    );
    assert!(!Path::new(&format!("/proc/{outer}")).exists());
}

/// A daemon that is not ours.
struct External(Child);

impl Drop for External {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// If it fails, a daemon of the user's choice cannot serve, or its death hangs the guest.
#[test]
fn another_daemon_is_attached() {
    let dir = TempDir::new("fs-external");
    let (shared, socket) = (dir.join("shared"), dir.join("socket"));
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "theirs").unwrap();
    let daemon = Command::new("/usr/lib/qemu/virtiofsd")
        .arg(format!("--socket-path={}", socket.display()))
        .args(["-o", &format!("source={}", shared.display())])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = External(daemon);
    wait_until("the daemon's socket", || socket.exists());
    let args = format!("--fs tag=data,socket={}", socket.display());
    let script = r#"
        mount -t virtiofs data /mnt && cd /mnt || exit 1
        cat file; echo guests >new; dd if=/dev/urandom of=big bs=1M count=8 status=none
        cp big copy && cmp big copy && echo copied; read line
        cat file && exit 2
        exit 0"#;
    let mut vm = Vm::debian(&dir, &args, script);
    vm.wait_for("theirs");
    vm.wait_for("copied");
    assert_eq!(fs::read_to_string(shared.join("new")).unwrap(), "guests\n");
    drop(daemon);
    vm.wait_for_log("is gone");
    vm.type_text("\n");
    vm.end().expect(0);
}

/// If it fails, users without rights on the host cannot share what is theirs.
#[test]
fn a_user_shares_a_directory() {
    let dir = TempDir::new("fs-user");
    let shared = dir.join("shared");
    fs::create_dir(&shared).unwrap();
    host(&format!(
        "chmod 777 {0}; chown -R 65534:65534 {0}; chmod 666 /dev/kvm",
        dir.join("").display()
    ));
    let script = r#"
        mount -t virtiofs data /mnt && cd /mnt || exit 1
        mkdir a && echo text >a/file && chown 1000:1000 a/file || exit 2
        stat -c 'owner %u:%g' a/file; exit 0"#;
    // Root's own may lie where nobody else may look.
    let copy = |name: &str| {
        let path = dir.join(name);
        fs::copy(guest_file(name), &path).unwrap();
        path.display().to_string()
    };
    let options = format!(
        "--kernel {} --rootfs {},ro --fs tag=data,path={}",
        copy("vmlinux"),
        copy("rootfs.ext4"),
        shared.display()
    );
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--",
        ])
        .args([program(), "boot"])
        .args(script_args(&dir, &options, "sh", script));
    let mut vm = Vm::spawn(command);
    vm.wait_for("owner 0:0");
    vm.end().expect(0);
    host(&format!(
        r#"[ "$(stat -c %u:%g {}/a/file)" = 65534:65534 ]"#,
        shared.display()
    ));
}
