//! virtio-pmem in a guest: images that guests share, roots on them, flushes, and the host's troubles.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::block::Loop;
use crate::harness::{TempDir, Vm, guest_file, host, script_disk};

/// A guest with its root on pmem, that runs `script` in its shell.
fn boot_from(dir: &TempDir, image: &str, args: &str, shell: &str, script: &str) -> Vm {
    let root = format!("{},pmem,ro", guest_file(image).display());
    let disk = format!("path={},ro", script_disk(dir, script).display());
    let command = format!("quiet -- {shell} /dev/vda");
    let mut all = vec!["--rootfs", &root, "--disk", &disk, "--cmdline", &command];
    all.extend(args.split_whitespace());
    Vm::start(&all)
}

/// If it fails, no guest starts from pmem; or one does, but with its files in its own memory.
#[test]
fn guests_boot_from_pmem() {
    let script = r#"
        echo "root $(grep ' / ' /proc/mounts | cut -d ' ' -f 1,3,4)."
        find / -xdev -type f -exec cat {} + >/dev/null
        grep -E '^(MemTotal|Cached)' /proc/meminfo
        touch /x 2>/dev/null && echo "the root was written"
        exit 0"#;
    for (name, image, shell, kind) in [
        ("busybox", "rootfs.erofs", "sh", "erofs"),
        ("erofs", "debian.erofs", "bash", "erofs"),
        ("ext4", "debian.ext4", "bash", "ext4"),
    ] {
        let dir = TempDir::new(&format!("pmem-{name}"));
        let mut vm = boot_from(&dir, image, "--memory 128M", shell, script);
        vm.wait_for("root ");
        vm.wait_for(".");
        let console = vm.console_so_far();
        let (_, root) = console.rsplit_once("root ").unwrap();
        assert!(root.contains(kind) && root.contains("dax=always"), "{root}");
        let end = vm.end().expect(0);
        let cached = meminfo(&end.console, "Cached");
        assert!(cached < 16 << 10, "{name}: {}", end.console);
        assert!(!end.console.contains("was written"), "{}", end.console);
    }
}

/// A line of /proc/meminfo, in KiB.
fn meminfo(text: &str, field: &str) -> u64 {
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .unwrap_or_else(|| panic!("no {field}: {text}"))
        .parse()
        .unwrap()
}

/// The host's /proc/meminfo, in KiB.
fn host_memory(field: &str) -> u64 {
    meminfo(&fs::read_to_string("/proc/meminfo").unwrap(), field)
}

/// A directory on an ext4 of its own, so that its files are in the page cache only when read.
struct Mount(PathBuf);

impl Mount {
    fn new(dir: &TempDir, mib: u64) -> Self {
        let (image, at) = (dir.join("host.ext4"), dir.join("host"));
        host(&format!(
            "truncate -s {mib}M {0}; mke2fs -q -F -t ext4 -O ^has_journal {0}; mkdir {1}; mount -o loop {0} {1}",
            image.display(),
            at.display()
        ));
        Self(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        host(&format!("umount -l {}", self.0.display()));
    }
}

/// How many guests share an image, and its size in MiB.
const GUESTS: usize = 8;
const SIZE: usize = 200;

/// If it fails, each guest has a copy of an image, in its own memory or in the host's.
#[test]
fn eight_guests_share_one_image() {
    let dir = TempDir::new("pmem-shared");
    let mount = Mount::new(&dir, 240);
    let image = mount.0.join("image");
    {
        let tree = dir.join("tree");
        fs::create_dir(&tree).unwrap();
        let mut file = File::create(tree.join("file")).unwrap();
        for number in (0..=u8::MAX).take(SIZE) {
            file.write_all(&vec![number; 1 << 20]).unwrap();
        }
        host(&format!(
            "mkfs.erofs --quiet -E noinline_data {} {1}; rm -r {1}",
            image.display(),
            tree.display()
        ));
    }
    host("sync; echo 3 >/proc/sys/vm/drop_caches");
    let image_cached = || -> u64 {
        let text = host(&format!("fincore -n -b -o RES {}", image.display()));
        text.trim().parse().unwrap()
    };
    assert!(image_cached() < 8 << 20, "{}", image_cached());

    let script = r#"
        mount -t erofs -o ro,dax=always /dev/pmem0 /mnt
        cached() { while read -r name value unit; do
            [ $name = Cached: ] && echo $value; done </proc/meminfo; }
        before=$(cached); echo ready; read line
        dd if=/mnt/file of=/dev/null bs=1M 2>/tmp/dd; read count rest </tmp/dd
        grep -E '^(MemTotal|MemFree|Cached)' /proc/meminfo
        echo "read $count grown $(($(cached) - before))."
        read line"#;
    let mut guests: Vec<_> = (0..GUESTS)
        .map(|number| {
            let dir = TempDir::new(&format!("pmem-shared-{number}"));
            let args = format!("--memory 64M --pmem file={},ro", image.display());
            (Vm::script(&dir, &args, script), dir)
        })
        .collect();
    for (vm, _) in &mut guests {
        vm.wait_for("ready");
    }
    let before = (
        host_memory("Cached"),
        host_memory("AnonPages"),
        image_cached(),
    );
    let mut figures = Vec::new();
    for (vm, _) in &mut guests {
        vm.type_text("\n");
        vm.wait_for(&format!("read {SIZE}+0 grown "));
        vm.wait_for(".");
        let text = vm.console_so_far();
        let (_, grown) = text.trim_end_matches('.').rsplit_once(' ').unwrap();
        let grown: i64 = grown.parse().unwrap();
        assert!(grown < 2048, "{grown} KiB in the guest; {text}");
        figures.push((
            host_memory("Cached"),
            host_memory("AnonPages"),
            rss(vm.pid()),
        ));
    }
    println!(
        "before {before:?}, after each {figures:?}, image {}",
        image_cached()
    );
    // Other tests run beside this one, so the host's own figures are only printed. What each monitor
    // has for itself has no room for the image, and what it shares is the page cache's one copy.
    for (_, _, (own, shared)) in &figures {
        assert!(
            *own < 80 << 10 && *shared >= (SIZE as u64) << 10,
            "{figures:?}"
        );
    }
    assert!(image_cached() >= (SIZE as u64) << 20);
}

/// What the monitor has in memory, in KiB: anonymous, and of files.
fn rss(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    (meminfo(&status, "RssAnon"), meminfo(&status, "RssFile"))
}

/// An ext4 of 32 MiB in `dir`.
fn ext4(path: &Path) {
    host(&format!(
        "truncate -s 32M {0}; mke2fs -q -F -t ext4 -b 4096 {0}",
        path.display()
    ));
}

/// If it fails, what a guest wrote and synced is lost with its monitor.
#[test]
fn what_was_synced_outlives_the_monitor() {
    let dir = TempDir::new("pmem-kill");
    let image = dir.join("image");
    ext4(&image);
    let script = r#"
        mount -t ext4 -o dax /dev/pmem0 /mnt || exit 1
        grep /mnt /proc/mounts
        yes cofferdam | dd of=/mnt/file bs=64k count=64 iflag=fullblock conv=fsync 2>/dev/null
        echo "synced $(md5sum </mnt/file | cut -c 1-32)."; exec sleep 60"#;
    let mut vm = Vm::script(&dir, &format!("--pmem file={}", image.display()), script);
    vm.wait_for("dax=always");
    vm.wait_for("synced ");
    vm.wait_for(".");
    let console = vm.console_so_far();
    let (_, sum) = console.trim_end_matches('.').rsplit_once(' ').unwrap();
    vm.signal(libc::SIGKILL);
    assert_eq!(vm.end().code, None);
    let mount = dir.join("mount");
    let found = host(&format!(
        "mkdir {0}; mount -o loop {1} {0}; md5sum <{0}/file; umount {0}",
        mount.display(),
        image.display()
    ));
    assert_eq!(&found[..32], sum);
}

/// If it fails, a guest's flush does not reach the host's disk, or only at the guest's end.
#[test]
fn flushes_reach_the_disk() {
    let dir = TempDir::new("pmem-flush");
    let image = dir.join("image");
    ext4(&image);
    let device = Loop::new(&image);
    let script = "
        mount -t ext4 -o dax /dev/pmem0 /mnt || exit 1
        echo mounted; read line
        echo text >/mnt/file; sync; echo synced; exec sleep 60";
    let mut vm = Vm::script(&dir, &format!("--pmem file={}", device.0), script);
    vm.wait_for("mounted");
    let before = device.flushes();
    vm.type_text("\n");
    vm.wait_for("synced");
    assert!(device.flushes() > before);
}

/// If it fails, a guest writes to an image that others run from, or dies of trying.
#[test]
fn a_read_only_image_stays_as_it_is() {
    let dir = TempDir::new("pmem-ro");
    let image = dir.join("image");
    // Not a multiple of anything.
    fs::write(&image, vec![7; (2 << 20) + 5000]).unwrap();
    let script = r#"
        echo "sectors $(cat /sys/block/pmem0/size)."
        dd if=/dev/zero of=/dev/pmem0 bs=4k count=2 conv=fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        echo "first $(dd if=/dev/pmem0 bs=1 count=1 2>/dev/null | hexdump -e '1/1 "%d"')."
        echo "sevens $(dd if=/dev/pmem0 bs=1M count=4 2>/dev/null | tr -dc '\007' | wc -c)."
        dd if=/dev/pmem0 of=/dev/null bs=1M 2>/dev/null || echo "the end cannot be read""#;
    let mut vm = Vm::script(&dir, &format!("--pmem file={},ro", image.display()), script);
    vm.wait_for("sectors 8192.");
    vm.wait_for("first 7.");
    vm.wait_for(&format!("sevens {}.", (2 << 20) + 5000));
    let end = vm.end().expect(0);
    assert!(!end.console.contains("cannot be read"), "{}", end.console);
    assert!(end.log.contains("it is read-only"), "{}", end.log);
    assert_eq!(fs::read(&image).unwrap(), vec![7; (2 << 20) + 5000]);
}

/// If it fails, a file that the host cuts short under a guest makes the monitor crash or loop, or
/// nobody learns why the VM ended.
#[test]
fn a_truncated_image_ends_the_vm() {
    let dir = TempDir::new("pmem-cut");
    let image = dir.join("image");
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let script = "
        dd if=/dev/pmem0 of=/dev/null bs=1M count=8 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches
        echo ready; read line
        dd if=/dev/pmem0 of=/dev/null bs=1M count=8; echo alive";
    let mut vm = Vm::script(&dir, &format!("--pmem file={},ro", image.display()), script);
    vm.wait_for("ready");
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    vm.type_text("\n");
    let end = vm.end().expect(3);
    let path = image.display();
    let wanted = format!("the pmem file {path} was cut from 8388608 to 1048576 bytes");
    assert!(
        end.log.contains("no page for the guest's memory"),
        "{}",
        end.log
    );
    assert!(end.log.contains(&wanted), "{}", end.log);
}
