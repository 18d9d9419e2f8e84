//! virtio-blk in a guest, on images and devices of the host.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::harness::{TempDir, Vm, host};
use crate::kernels::{STAY, kernel};
use crate::life::two_signals;

/// An image of `size` MiB without any content.
pub fn image(dir: &TempDir, name: &str, size: u64) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(size << 20).unwrap();
    path
}

/// Bytes that a file takes up.
fn used(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// If it fails, guests see disks in another order, without serial number, or with another mode or
/// number of queues, or the queues have no threads; or what guests discard stays on the host's disk.
#[test]
fn disks_are_as_configured() {
    let dir = TempDir::new("disks");
    let (data, shared) = (image(&dir, "data", 64), image(&dir, "shared", 8));
    let args = format!(
        "--cpus 2 --disk path={},id=data-1,queues=2 --disk path={},ro,id=twenty-bytes-of-text,iothread=on",
        data.display(),
        shared.display()
    );
    let script = r#"
        cd /sys/block
        echo "data $(cat vdc/serial) $(cat vdc/ro) $(cat vdc/size)."
        echo "queues $(ls vdc/mq | wc -l)."
        echo "shared $(cat vdd/serial) $(cat vdd/ro) $(cat vdd/size)."
        echo x 2>/dev/null >/dev/vdd && echo "vdd was written"
        dd if=/dev/urandom of=/dev/vdc bs=1M count=16 seek=8 conv=fsync 2>/dev/null
        echo written; read line
        blkdiscard /dev/vdc && echo discarded"#;
    let mut vm = Vm::script(&dir, &args, script);
    vm.wait_for("data data-1 0 131072.");
    vm.wait_for("queues 2.");
    let workers = host(&format!("grep -h block /proc/{}/task/*/comm", vm.pid()));
    assert_eq!(workers.lines().count(), 3, "{workers}");
    vm.wait_for("shared twenty-bytes-of-text 1 16384.");
    vm.wait_for("written");
    assert!(used(&data) >= 16 << 20, "{} bytes", used(&data));
    vm.type_text("\n");
    vm.wait_for("discarded");
    assert_eq!(used(&data), 0);
    let end = vm.end().expect(0);
    assert!(!end.console.contains("vdd was written"), "{}", end.console);
}

/// If it fails, two VMs write to one disk, and destroy what is on it; or cannot share one that
/// neither writes.
#[test]
fn a_disk_has_one_writer() {
    let dir = TempDir::new("writers");
    let disk = image(&dir, "disk", 8);
    let kernel = kernel(&dir, "kernel", STAY);
    let start = |mode| {
        let disk = format!("path={}{mode}", disk.display());
        Vm::start(&[
            "--memory",
            "64M",
            "--kernel",
            kernel.to_str().unwrap(),
            "--disk",
            &disk,
        ])
    };
    let refused = |vm: Vm| {
        let end = vm.end().expect(3);
        let wanted = format!("the disk {} is in use", disk.display());
        assert!(end.log.contains(&wanted), "{}", end.log);
    };
    let mut writer = start("");
    writer.wait_for("ready");
    refused(start(""));
    refused(start(",ro"));
    drop(writer);

    let (mut one, mut two) = (start(",ro"), start(",ro"));
    one.wait_for("ready");
    two.wait_for("ready");
    refused(start(""));
}

/// A block device of the host.
pub struct Loop(pub String);

impl Loop {
    pub fn new(image: &Path) -> Self {
        Self(
            host(&format!("losetup -f --show {}", image.display()))
                .trim()
                .to_owned(),
        )
    }

    /// How often its cache was flushed.
    pub fn flushes(&self) -> u64 {
        let name = self.0.strip_prefix("/dev/").unwrap();
        let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        stat.split_whitespace().nth(15).unwrap().parse().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        host(&format!("losetup -d {}", self.0));
    }
}

/// If it fails, block devices cannot be disks, a guest's flush does not reach them (or does where
/// it was declined), or what a guest wrote is not flushed when its monitor is told to stop at once.
#[test]
fn flushes_reach_a_block_device() {
    let dir = TempDir::new("loop");
    let images = [image(&dir, "writeback", 16), image(&dir, "unsafe", 16)];
    let [safe, hasty] = images.each_ref().map(|path| Loop::new(path));
    let args = format!(
        "--log-level info --disk path={} --disk path={},cache=unsafe",
        safe.0, hasty.0
    );
    let script = "
        for disk in vdc vdd; do
            echo synced | dd of=/dev/$disk bs=512 conv=sync,fsync
        done
        echo flushed; read line
        for disk in vdc vdd; do
            echo direct | dd of=/dev/$disk bs=512 seek=1 conv=sync oflag=direct
        done
        echo written; exec sleep 60";
    let before = [safe.flushes(), hasty.flushes()];
    let mut vm = Vm::script(&dir, &args, script);
    vm.wait_for("flushed");
    let synced = safe.flushes();
    assert!(synced > before[0]);
    vm.type_text("\n");
    vm.wait_for("written");
    two_signals(&mut vm, libc::SIGTERM);
    vm.end().expect(128 + libc::SIGTERM);
    assert!(safe.flushes() > synced);
    assert_eq!(hasty.flushes(), before[1]);
    for disk in [&safe, &hasty] {
        let content = fs::read(&disk.0).unwrap();
        assert!(content.starts_with(b"synced\n"));
        assert!(content[512..].starts_with(b"direct\n"));
    }
}
