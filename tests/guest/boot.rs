//! Kernels of every format, entered in every way, on VMs of every shape.

use std::fs;

use crate::harness::{End, TempDir, Vm, guest_file, host};

/// What a guest says of itself, and its kernel's complaints.
const FACTS: &str = r#"
echo "machine $(uname -m)."
echo "cpus $(nproc)."
echo "sockets $(grep 'physical id' /proc/cpuinfo | sort -u | wc -l)."
echo "memory $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)."
dmesg -r | grep '^<[0-4]>' | sed 's/^/warning /'
"#;

/// Warnings that are the lab's or the kernel's, not ours; each says how far that is known.
const KNOWN_WARNINGS: &[&str] = &[
    // Of the lab's CPU and its microcode; QEMU's microvm has it in the same lab.
    "Speculative Return Stack Overflow:",
    // What our kernel says where it has more than 4 GiB and, by its configuration, no bounce buffers.
    "software IO TLB: No low mem",
    // Interrupts of an emulated machine on a busy host; seen once, not compared with another monitor.
    "hrtimer: interrupt took",
    // The same: the vCPU waited for its host for a second (seen with a load of 20 on 2 CPUs).
    "clocksource: Long readout interval",
    // The same again, with five labs on 2 CPUs.
    "sched: DL replenish lagged too much",
];

/// The facts of a guest that has ended.
struct Facts(End);

impl Facts {
    /// What the guest said of one thing.
    #[track_caller]
    fn get(&self, name: &str) -> &str {
        let lines = self.0.console.lines();
        let mut values = lines.filter_map(|line| line.trim().strip_prefix(name));
        let value = values.next().and_then(|value| value.strip_suffix('.'));
        value
            .unwrap_or_else(|| panic!("no {name} in {}", self.0.console))
            .trim()
    }

    #[track_caller]
    fn number(&self, name: &str) -> u32 {
        self.get(name).parse().unwrap()
    }

    /// Fails the test if the kernel complained of its hardware.
    #[track_caller]
    fn expect_no_warnings(self) -> Self {
        let lines = self.0.console.lines();
        let warnings: Vec<_> = lines
            .filter(|line| line.starts_with("warning "))
            .filter(|line| !KNOWN_WARNINGS.iter().any(|known| line.contains(known)))
            .collect();
        assert!(warnings.is_empty(), "{warnings:#?}");
        self
    }
}

/// Boots with `args` and asks the guest for its facts.
#[track_caller]
fn boots(name: &str, args: &str) -> Facts {
    let dir = TempDir::new(name);
    let args = format!("--rootfs {},ro {args}", guest_file("rootfs.ext4").display());
    let facts = Facts(Vm::script(&dir, &args, FACTS).end().expect(0));
    assert_eq!(facts.get("machine"), "x86_64");
    facts
}

/// If it fails, a vmlinux does not boot by Linux's 64-bit entry, read or mapped.
#[test]
fn vmlinux_by_the_64_bit_entry() {
    let kernel = guest_file("vmlinux");
    for pages in ["copy", "map"] {
        let args = format!(
            "--kernel {} --protocol linux --pages {pages}",
            kernel.display()
        );
        boots("entry", &args).expect_no_warnings();
    }
}

/// If it fails, a vmlinux does not boot by its PVH entry, read or mapped.
#[test]
fn vmlinux_by_pvh() {
    let kernel = guest_file("vmlinux");
    for pages in ["copy", "map"] {
        let args = format!(
            "--kernel {} --protocol pvh --pages {pages}",
            kernel.display()
        );
        boots("pvh", &args).expect_no_warnings();
    }
}

/// If it fails, a bzImage does not boot, or not with a payload of this compression.
#[test]
fn bzimage_of_every_payload() {
    // The mode of loading does not depend on the payload: each is tried on two of them.
    for (payload, pages) in [
        ("gzip", "map"),
        ("xz", "copy"),
        ("lz4", "map"),
        ("zstd", "copy"),
    ] {
        let kernel = guest_file(&format!("bzImage.{payload}"));
        boots(
            "bzimage",
            &format!("--kernel {} --pages {pages}", kernel.display()),
        );
    }
}

/// If it fails, the cloud kernel that Debian ships does not boot, from its initrd or to a disk.
#[test]
fn stock_kernel_of_debian() {
    let dir = TempDir::new("stock");
    let (kernel, initrd) = (guest_file("stock-vmlinuz"), guest_file("stock-initrd"));
    let args = format!(
        "--kernel {} --initrd {} --rootfs {},ro --cpus 2 --memory 512M",
        kernel.display(),
        initrd.display(),
        guest_file("rootfs.ext4").display(),
    );
    let script = format!("{FACTS} grep ' / ' /proc/mounts");
    let facts = Facts(Vm::script(&dir, &args, &script).end().expect(0));
    assert_eq!(facts.number("cpus"), 2);
    assert!(
        facts.0.console.contains("/dev/vda / ext4"),
        "{}",
        facts.0.console
    );
}

/// If it fails, a guest without ACPI finds no devices or no second CPU.
#[test]
fn hardware_by_the_command_line() {
    let dir = TempDir::new("cmdline");
    // Without ACPI Linux cannot power off; it can reset.
    let script = format!("{FACTS} reboot -f");
    let end = Vm::script(&dir, "--hardware cmdline --cpus 2", &script).end();
    assert_eq!(Facts(end.expect(80)).number("cpus"), 2);
}

/// If it fails, an initramfs does not reach the kernel, read or mapped.
#[test]
fn initrd() {
    let initrd = guest_file("initrd.cpio");
    for pages in ["copy", "map"] {
        let mut args = vec!["--initrd", initrd.to_str().unwrap(), "--pages", pages];
        args.extend(["--cmdline", "quiet -- uname -m"]);
        let end = Vm::start(&args).end().expect(0);
        assert!(end.console.starts_with("x86_64"), "{}", end.console);
    }
}

/// If it fails, a guest has other CPUs or more warnings than its hardware gives cause for.
#[test]
fn every_vcpu_comes_up_without_a_warning() {
    for cpus in [4, 32] {
        let facts = boots("cpus", &format!("--cpus {cpus}"));
        assert_eq!((facts.number("cpus"), facts.number("sockets")), (cpus, 1));
        facts.expect_no_warnings();
    }
}

/// If it fails, small guests do not start, or memory above the MMIO hole is lost.
#[test]
fn memory_from_small_to_beyond_the_hole() {
    // What the guest must see of it at least, in MiB.
    for (size, least) in [("32M", 12), ("6G", 5800)] {
        let facts = boots("memory", &format!("--memory {size} --cpus 2"));
        assert!(
            facts.number("memory") >= least,
            "{size}: {} MiB",
            facts.get("memory")
        );
        facts.expect_no_warnings();
    }
}

/// If it fails, huge pages are asked for and not used, or a host without them gives no clear error.
#[test]
fn huge_pages() {
    let args = ["--memory", "64M", "--hugepages", "2M"];
    host("sysctl -qw vm.nr_hugepages=0");
    let end = Vm::start(&args).end().expect(3);
    assert!(end.log.contains("sysctl vm.nr_hugepages=32"), "{}", end.log);

    host("sysctl -qw vm.nr_hugepages=32");
    let dir = TempDir::new("hugepages");
    let mut vm = Vm::script(&dir, &args.join(" "), "echo ready; read line");
    vm.wait_for("ready");
    let free = host("awk '/HugePages_Free/ { print $2 }' /proc/meminfo");
    assert!(free.trim().parse::<u32>().unwrap() < 32, "{free}");
    vm.type_text("\n");
    vm.end().expect(0);
    host("sysctl -qw vm.nr_hugepages=0");
}

/// If it fails, guests see CPU features that a template hides, and cannot move between hosts.
#[test]
fn a_cpu_template_hides_a_feature() {
    let dir = TempDir::new("template");
    // RDRAND: bit 30 of ECX in leaf 1.
    let template = r#"{ "cpuid_modifiers": [{ "leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers":
        [{ "register": "ecx", "bitmap": "0bx0xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" }] }] }"#;
    let path = dir.join("template.json");
    fs::write(&path, template).unwrap();
    let script = "echo rdrand $(grep -c rdrand /proc/cpuinfo), of $(grep -c flags /proc/cpuinfo)";
    let with = format!("--cpus 2 --cpu-template {}", path.display());
    for (args, count) in [("--cpus 2", 2), (&with, 0)] {
        let end = Vm::script(&dir, args, script).end().expect(0);
        let wanted = format!("rdrand {count}, of 2");
        assert!(end.console.contains(&wanted), "{}", end.console);
    }
}
