//! Reset storms: drivers that are unbound and bound again and again while their devices work must
//! leave nothing behind in the monitor, and find their devices as good as new each time.

use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::block::image;
use crate::harness::{TempDir, Vm, host};

/// Rounds before the monitor is looked at for the first time: what it allocates once is there then.
const WARM_UP: u32 = 20;
/// Rounds between the two looks.
const ROUNDS: u32 = 200;
/// What the monitor may have grown by, in KiB.
const SLACK_KIB: u64 = 256;

/// The program that storms in the guest.
const PROGRAM: &str = include_str!("storm.py");

/// What a monitor and the processes below it hold.
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
        let mut sum = Self {
            descriptors: count("fd"),
            threads: count("task"),
            kib: own_kib(&fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap()),
        };
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        for child in children.split_whitespace() {
            let of_child = Self::of(child.parse().unwrap());
            sum.descriptors += of_child.descriptors;
            sum.threads += of_child.threads;
            sum.kib += of_child.kib;
        }
        sum
    }

    fn is_within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.kib <= before.kib + SLACK_KIB
    }
}

/// The resident KiB of all mappings in `smaps` that are too small to be a guest's memory.
fn own_kib(smaps: &str) -> u64 {
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

/// Sends back what it gets, for each connection of the guest's at `path`.
fn echo(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    let serve = |mut stream: UnixStream| {
        // Ends when the monitor lets go of the connection.
        let _ = io::copy(&mut stream.try_clone()?, &mut stream);
        io::Result::Ok(())
    };
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || serve(stream?));
        }
        io::Result::Ok(())
    });
}

/// If it fails, the reset of a device under load leaks, hangs, leaves it useless, or loses what was
/// flushed before.
#[test]
fn all_drivers_come_and_go() {
    let dir = TempDir::new("storm");
    let (disk, pmem, shared) = (
        image(&dir, "disk", 64),
        image(&dir, "pmem", 64),
        dir.join("shared"),
    );
    fs::create_dir(&shared).unwrap();
    host(
        "ip tuntap add cofstorm mode tap; ip address add 10.77.7.1/24 dev cofstorm
          ip link set cofstorm up",
    );
    echo(&dir.join("v_3000"));
    // A disk of two queues with a thread each, and requests that are in the kernel's hands.
    let args = format!(
        "--cpus 2 --disk path={},engine=io_uring,queues=2 --pmem file={} --net tap=cofstorm \
         --vsock cid=33,uds={} --fs tag=storm,path={} --balloon size=4M",
        disk.display(),
        pmem.display(),
        dir.join("v").display(),
        shared.display()
    );
    let script = format!(
        "cat >/tmp/storm.py <<'EOF'\n{PROGRAM}EOF\nexec python3 /tmp/storm.py {WARM_UP} {ROUNDS}"
    );
    let mut vm = Vm::debian(&dir, &args, &script);
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
        if after.is_within(&before) {
            break;
        }
        thread::sleep(Duration::from_millis(250));
        after = Footprint::of(vm.pid());
    }
    vm.type_text("\n");
    let end = vm.end().expect(0);
    host("ip link delete cofstorm");
    println!("before {before:?}, after {after:?}");
    for line in end.console.lines().filter(|line| line.ends_with("steps")) {
        println!("{line}");
    }
    assert!(
        after.is_within(&before),
        "before {before:?}, after {after:?}; log:\n{}",
        end.log
    );
    for image in [disk, pmem] {
        let data = fs::read(&image).unwrap();
        for (i, sector) in (0..WARM_UP + ROUNDS).zip(data.chunks(512)) {
            let is_there = sector.starts_with(format!("round {i}\n").as_bytes());
            assert!(
                is_there,
                "{}: what was flushed in round {i} is lost",
                image.display()
            );
        }
    }
    let lines: String = (0..WARM_UP + ROUNDS)
        .map(|i| format!("round {i}\n"))
        .collect();
    assert_eq!(fs::read_to_string(shared.join("rounds")).unwrap(), lines);
}
