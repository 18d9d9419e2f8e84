//! Disks whose host side fails, changes or is limited while the guest runs.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::block::{Loop, image};
use crate::harness::{End, TempDir, Vm, host};

fn set_len(path: &Path, mib: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(mib << 20).unwrap();
}

/// How often the log tells of an I/O error on a disk.
fn complaints(end: &End, path: &Path) -> usize {
    let is_one = |line: &&str| line.contains("I/O error") && line.contains(path.to_str().unwrap());
    end.log.lines().filter(is_one).count()
}

/// A small file system, mounted as long as this lives.
struct Mount(std::path::PathBuf);

impl Mount {
    fn new(dir: &TempDir, name: &str, mount: &str) -> Self {
        let path = dir.join(name);
        host(&format!("mkdir {0}; mount {mount} {0}", path.display()));
        Self(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

/// If it fails, a disk of the host that is full or shrank kills the VM, or the guest takes for
/// written or read what was not, with either engine.
#[test]
fn full_and_truncated() {
    let dir = TempDir::new("trouble");
    let tmpfs = Mount::new(&dir, "tmpfs", "-t tmpfs -o size=4m small");
    let small = image(&dir, "small.ext4", 16);
    host(&format!("mkfs.ext4 -q -O ^has_journal {}", small.display()));
    let ext4 = Mount::new(&dir, "ext4", &format!("-o loop {}", small.display()));
    for (engine, full) in [("sync", &tmpfs), ("io_uring", &tmpfs), ("io_uring", &ext4)] {
        let full = full.0.join("full");
        File::create(&full).unwrap();
        set_len(&full, 64);
        let shrinks = image(&dir, "shrinks", 64);
        let args = format!(
            "--disk path={},engine={engine} --disk path={},engine={engine}",
            full.display(),
            shrinks.display()
        );
        let script = "
            dd if=/dev/zero of=/dev/vdc bs=1M count=24 oflag=direct && exit 1
            dd if=/dev/zero of=/dev/vdc bs=4k count=6144 conv=fsync && exit 2
            dd if=/dev/vdc of=/dev/null bs=1M count=16 iflag=direct || exit 3
            echo ready; read line
            dd if=/dev/vdd of=/dev/null bs=1M skip=60 count=1 iflag=direct && exit 4
            dd if=/dev/vdd of=/dev/null bs=1M count=16 iflag=direct || exit 5";
        let mut vm = Vm::script(&dir, &args, script);
        vm.wait_for("ready");
        set_len(&shrinks, 32);
        vm.type_text("\n");
        let end = vm.end().expect(0);
        // One in ten seconds, however many there were.
        assert!((1..10).contains(&complaints(&end, &full)), "{}", end.log);
        fs::remove_file(&full).unwrap();
    }
}

/// If it fails, a broken drive of the host breaks more than the requests that it cannot serve.
#[test]
fn broken_sectors() {
    let dir = TempDir::new("broken");
    let good = Loop::new(&image(&dir, "good", 32));
    host("modprobe -q dm_mod || true");
    // 16 MiB that work, 16 that do not, 16 that do.
    host(&format!(
        "printf '0 32768 linear {0} 0\\n32768 32768 error\\n65536 32768 linear {0} 32768\\n' | dmsetup create cofbroken",
        good.0
    ));
    let name = host("dmsetup info -c --noheadings -o blkdevname cofbroken");
    let path = Path::new("/dev").join(name.trim());
    for engine in ["sync", "io_uring"] {
        let args = format!("--disk path={},engine={engine}", path.display());
        let script = "
            dd if=/dev/vdc of=/dev/null bs=1M count=16 iflag=direct || exit 1
            dd if=/dev/vdc of=/dev/null bs=4k skip=4096 count=1 iflag=direct && exit 2
            dd if=/dev/vdc of=/dev/null bs=1M skip=16 count=4 iflag=direct && exit 3
            dd if=/dev/zero of=/dev/vdc bs=1M seek=20 count=1 conv=fsync && exit 4
            echo good | dd of=/dev/vdc bs=1M seek=40 conv=sync,fsync || exit 5
            dd if=/dev/vdc bs=1M skip=40 count=1 iflag=direct | grep -q good || exit 6";
        let end = Vm::script(&dir, &args, script).end().expect(0);
        assert!((1..10).contains(&complaints(&end, &path)), "{}", end.log);
    }
    host("dmsetup remove --retry cofbroken");
}

/// If it fails, a guest does not learn that its disk has grown, or loses it when it shrinks.
#[test]
fn growing() {
    let dir = TempDir::new("growing");
    let disk = image(&dir, "disk", 16);
    let script = r#"
        size=/sys/block/vdc/size
        [ $(cat $size) = 32768 ] || exit 1
        echo small
        while [ $(cat $size) = 32768 ]; do sleep 0.1; done
        echo "large $(cat $size)."
        echo end | dd of=/dev/vdc bs=512 seek=65535 conv=sync,fsync || exit 2
        echo written; read line
        echo 3 >/proc/sys/vm/drop_caches
        dd if=/dev/vdc of=/dev/null bs=512 skip=65535 count=1 && exit 3
        dd if=/dev/vdc of=/dev/null bs=1M count=8 iflag=direct || exit 4
        [ $(cat $size) = 65536 ] || exit 5"#;
    let args = format!("--disk path={}", disk.display());
    let mut vm = Vm::script(&dir, &args, script);
    vm.wait_for("small");
    set_len(&disk, 32);
    vm.signal(libc::SIGUSR1);
    vm.wait_for("large 65536.");
    vm.wait_for("written");
    set_len(&disk, 8);
    vm.signal(libc::SIGUSR1);
    vm.wait_for_log("it shrank from 65536 to 16384 sectors");
    vm.type_text("\n");
    vm.end().expect(0);
}

/// If it fails, a limit is not kept, or is tighter than it was set, or one direction's limit is the
/// other's, too.
#[test]
fn rate_limits() {
    let dir = TempDir::new("limits");
    let disk = image(&dir, "disk", 64);
    let args = format!(
        "--disk path={},rate_limit.read.bytes_per_second=4M,rate_limit.write.ops_per_second=50",
        disk.display()
    );
    let script = r#"
        run() {
            fio --name=$1 --filename=/dev/vdc --direct=1 --ioengine=libaio --iodepth=16 --time_based \
                --ramp_time=2 --runtime=8 --output-format=terse --terse-version=3 "${@:2}" >/tmp/$1
        }
        run read --rw=read --bs=64k & run write --rw=randwrite --bs=4k; wait
        echo "read $(cut -d ';' -f 7 /tmp/read) write $(cut -d ';' -f 49 /tmp/write)."
        dd if=/dev/vdc of=/dev/null bs=1M count=2 iflag=direct || exit 1"#;
    let mut vm = Vm::debian(&dir, &args, script);
    vm.wait_for("read ");
    vm.wait_for(".");
    let console = vm.console_so_far();
    let (_, text) = console.rsplit_once("read ").unwrap();
    let (read, write) = text.split_once(" write ").unwrap();
    let (read, write): (f64, f64) = (
        read.parse().unwrap(),
        write.trim_end_matches('.').parse().unwrap(),
    );
    eprintln!("read {read} KiB/s of 4096, {write} writes/s of 50");
    assert!((0.9..=1.1).contains(&(read / 4096.0)), "{read} KiB/s read");
    assert!(
        (0.9..=1.1).contains(&(write / 50.0)),
        "{write} writes in a second"
    );
    vm.end().expect(0);
}

/// If it fails, data that comes from the disk itself, not from the host's page cache, is not what
/// was written, or its requests are forgotten.
#[test]
fn cold_cache() {
    let dir = TempDir::new("cold");
    let image_of_ext4 = image(&dir, "ext4.img", 64);
    host(&format!("mkfs.ext4 -q {}", image_of_ext4.display()));
    let ext4 = Mount::new(
        &dir,
        "ext4",
        &format!("-o loop {}", image_of_ext4.display()),
    );
    let disk = ext4.0.join("disk");
    File::create(&disk).unwrap();
    set_len(&disk, 32);
    let script = r#"
        fio --name=verify --filename=/dev/vdc --rw=randrw --bsrange=4k-256k --size=24m --loops=3 \
            --ioengine=libaio --iodepth=32 --direct=1 --verify=crc32c --verify_fatal=1 --fsync=32 \
            --eta=never --output=/tmp/fio || { cat /tmp/fio; exit 1; }"#;
    let args = format!("--cpus 2 --disk path={},queues=2", disk.display());
    let vm = Vm::debian(&dir, &args, script);
    let is_running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Two minutes at most, should the test fail.
            for _ in 0..2400 {
                if !is_running.load(Ordering::Relaxed) {
                    break;
                }
                fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        });
        let end = vm.end();
        is_running.store(false, Ordering::Relaxed);
        assert_eq!(complaints(&end, &disk), 0, "{}", end.log);
        end.expect(0);
    });
}
