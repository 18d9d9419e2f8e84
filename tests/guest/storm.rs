//! Reset storms: a driver that is unbound and bound again and again while its device works must
//! leave nothing behind in the monitor, and find its device as good as new each time.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::block::image;
use crate::harness::{End, TempDir, Vm};

/// Rounds before the monitor is looked at for the first time: what it allocates once is there then.
const WARM_UP: u32 = 20;
/// Rounds between the two looks.
const ROUNDS: u32 = 200;
/// What the monitor may have grown by, in KiB.
const SLACK_KIB: u64 = 256;

/// What a storm is of. The commands are the guest's shell's; `$i` is the number of the round, `$device`
/// the device's name, and `node CLASS` prints what the device is called in a class at present.
pub struct Storm {
    /// The driver's name in `/sys/bus/virtio/drivers`.
    pub driver: &'static str,
    /// Prints the device's name on the virtio bus, `virtio3` say.
    pub device: &'static str,
    /// Run before the load, with nothing beside it: may open descriptor 3 for it, which is closed
    /// before the driver is bound again.
    pub open: &'static str,
    /// What goes on while the driver is unbound: runs in the background, and ends by itself then,
    /// in whatever way.
    pub load: &'static str,
    /// What must work after the driver is bound again, and print nothing.
    pub check: &'static str,
}

/// What a monitor holds.
#[derive(Debug)]
struct Footprint {
    descriptors: usize,
    threads: usize,
    /// Resident memory but the guest's.
    kib: u64,
}

impl Footprint {
    fn of(pid: u32) -> Self {
        let count = |what| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            kib: monitor_kib(&fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap()),
        }
    }
}

/// The resident KiB of all mappings in `smaps` that are too small to be a guest's memory.
fn monitor_kib(smaps: &str) -> u64 {
    let field = |line: &str, name| -> Option<u64> {
        line.strip_prefix(name)?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()
    };
    let (mut sum, mut size) = (0, 0);
    for line in smaps.lines() {
        size = field(line, "Size:").unwrap_or(size);
        if size < 32 << 10 {
            sum += field(line, "Rss:").unwrap_or(0);
        }
    }
    sum
}

impl Storm {
    /// Runs the storm in a default guest with `args`. The monitor must hold as much after it as
    /// before.
    #[track_caller]
    pub fn rage(&self, dir: &TempDir, args: &str) -> End {
        let mut vm = Vm::script(dir, args, &self.script());
        vm.wait_for("storm warmed up");
        let before = Footprint::of(vm.pid());
        vm.type_text("\n");
        // Each has its own time: all of them can take minutes in the lab.
        for rounds in (WARM_UP..=WARM_UP + ROUNDS).step_by(20).skip(1) {
            vm.wait_for(&format!("{rounds} rounds."));
        }
        vm.wait_for("storm over");
        let mut after = Footprint::of(vm.pid());
        // The kernel's threads for io_uring end when they had nothing to do for five seconds.
        for _ in 0..80 {
            if after.threads <= before.threads {
                break;
            }
            thread::sleep(Duration::from_millis(250));
            after = Footprint::of(vm.pid());
        }
        vm.type_text("\n");
        let end = vm.end().expect(0);
        eprintln!("{}: before {before:?}, after {after:?}", self.driver);
        assert!(
            after.descriptors <= before.descriptors
                && after.threads <= before.threads
                && after.kib <= before.kib + SLACK_KIB,
            "before {before:?}, after {after:?}; log:\n{}",
            end.log
        );
        end
    }

    fn script(&self) -> String {
        let Self {
            driver,
            device,
            open,
            load,
            check,
        } = self;
        let all = WARM_UP + ROUNDS;
        format!(
            r#"device=$({device}); driver=/sys/bus/virtio/drivers/{driver}
            node() {{
                ls /sys/bus/virtio/devices/$device/$1
            }}
            load() {{
                {load}
            }}
            check() {{
                {check}
            }}
            round() {{
                {open}
                load >/dev/null 2>&1 &
                sleep 0.0$((i % 5))
                echo $device >$driver/unbind || {{ echo "round $i: no unbind"; exit 91; }}
                wait; exec 3>&-
                echo $device >$driver/bind || {{ echo "round $i: no bind"; exit 92; }}
                check >/tmp/check 2>&1 && [ ! -s /tmp/check ] || {{ echo "round $i: $(cat /tmp/check)"; exit 93; }}
                i=$((i + 1))
                [ $((i % 20)) != 0 ] || echo "$i rounds."
            }}
            [ -e $driver/$device ] || exit 90
            dmesg -n 1
            i=0; while [ $i -lt {WARM_UP} ]; do round; done
            echo storm warmed up; read line
            while [ $i -lt {all} ]; do round; done
            echo storm over; read line"#
        )
    }
}

/// If it fails, a disk's reset leaks, hangs, or loses what was flushed.
#[test]
fn disk() {
    let dir = TempDir::new("storm-disk");
    let storm = Storm {
        driver: "virtio_blk",
        device: "basename $(readlink -f /sys/block/vdc/device)",
        // By its name, a disk that has just gone would become a file.
        open: "exec 3<>/dev/$(node block)",
        load: "dd if=/dev/zero of=/proc/self/fd/3 bs=64k seek=16 oflag=direct &
               dd if=/proc/self/fd/3 of=/dev/null bs=1M iflag=direct &
               wait",
        check: "disk=/dev/$(node block)
                echo round $i | dd of=$disk bs=512 seek=$i conv=sync,notrunc,fsync 2>/tmp/dd || cat /tmp/dd",
    };
    let disk = image(&dir, "disk", 64);
    // Two queues with a thread each, and requests that are in the kernel's hands.
    let options = "engine=io_uring,queues=2";
    storm.rage(
        &dir,
        &format!("--cpus 2 --disk path={},{options}", disk.display()),
    );
    let data = fs::read(&disk).unwrap();
    for (i, sector) in (0..WARM_UP + ROUNDS).zip(data.chunks(512)) {
        let is_there = sector.starts_with(format!("round {i}\n").as_bytes());
        assert!(is_there, "what was flushed in round {i} is lost");
    }
}
