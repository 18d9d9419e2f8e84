//! Kernels of every format, entered in every way, on VMs of every shape.

use crate::harness::{TempDir, Vm, guest_file};

/// Boots with `args` and checks that the guest comes to user space and powers off.
#[track_caller]
fn boots(args: &str) {
    let rootfs = guest_file("rootfs.ext4");
    let args = format!("--rootfs {},ro {args}", rootfs.display());
    let mut all: Vec<&str> = args.split_whitespace().collect();
    all.extend(["--cmdline", "-- uname -m"]);
    let end = Vm::start_args(&all).end().expect(0);
    assert!(end.console.contains("\nx86_64"), "{}", end.console);
}

/// If it fails, a vmlinux does not boot by Linux's 64-bit entry, read or mapped.
#[test]
fn vmlinux_by_the_64_bit_entry() {
    let kernel = guest_file("vmlinux");
    for pages in ["copy", "map"] {
        boots(&format!(
            "--kernel {} --protocol linux --pages {pages}",
            kernel.display()
        ));
    }
}

/// If it fails, a vmlinux does not boot by its PVH entry, read or mapped.
#[test]
fn vmlinux_by_pvh() {
    let kernel = guest_file("vmlinux");
    for pages in ["copy", "map"] {
        boots(&format!(
            "--kernel {} --protocol pvh --pages {pages}",
            kernel.display()
        ));
    }
}

/// If it fails, a bzImage does not boot.
#[test]
fn bzimage_by_the_64_bit_hand_over() {
    boots(&format!("--kernel {}", guest_file("bzImage").display()));
}

/// If it fails, a guest without ACPI finds no devices or no second CPU.
#[test]
fn hardware_by_the_command_line() {
    boots(&format!(
        "--kernel {} --hardware cmdline --cpus 2",
        guest_file("vmlinux").display()
    ));
}

/// If it fails, an initramfs does not reach the kernel, read or mapped.
#[test]
fn initrd() {
    for pages in ["copy", "map"] {
        let initrd = guest_file("initrd.cpio");
        let end = Vm::start_args(&[
            "--initrd",
            initrd.to_str().unwrap(),
            "--pages",
            pages,
            "--cmdline",
            "-- uname -m",
        ])
        .end()
        .expect(0);
        assert!(end.console.contains("\nx86_64"), "{}", end.console);
    }
}

/// If it fails, a guest has other CPUs or more warnings than its hardware gives cause for.
#[test]
fn every_vcpu_comes_up_without_a_warning() {
    for cpus in [1, 2, 4] {
        let dir = TempDir::new("cpus");
        let end = Vm::script(
            &dir,
            &format!("--cpus {cpus}"),
            "echo cpus: $(nproc) sockets: $(grep 'physical id' /proc/cpuinfo | sort -u | wc -l)
             echo warnings; dmesg --level=warn,err || dmesg -r | grep '^<[0-4]>'; echo end",
        )
        .end()
        .expect(0);
        assert!(
            end.console.contains(&format!("cpus: {cpus} sockets: 1")),
            "{}",
            end.console
        );
        let (_, rest) = end.console.split_once("warnings").unwrap();
        assert_eq!(
            rest.split("end").next().unwrap().trim(),
            "",
            "{}",
            end.console
        );
    }
}

/// If it fails, small guests do not start, or memory above the MMIO hole is lost.
#[test]
fn memory_from_small_to_beyond_the_hole() {
    // MiB, and what the guest must at least see of them.
    for (size, least) in [("32M", 15), ("6G", 5800)] {
        let dir = TempDir::new("memory");
        let end = Vm::script(
            &dir,
            &format!("--memory {size}"),
            "awk '/MemTotal/ { print \"total:\", int($2 / 1024) }' /proc/meminfo",
        )
        .end()
        .expect(0);
        let (_, total) = end.console.split_once("total: ").unwrap();
        let total: u32 = total.split_whitespace().next().unwrap().parse().unwrap();
        assert!(total >= least, "{size}: {total} MiB");
    }
}
