//! From the kernel's start of PID 1 to a system that containers can be set up in.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, chroot, setsid};

use crate::cgroup;
use crate::error::{Context, Result};
use crate::network;

/// Descriptors that a process may have if its configuration says nothing of it.
const OPEN_FILES: u64 = 1 << 20;

/// The part of a zone that CPUs may keep on lists of their own: so small that the kernel's least counts.
const PAGE_LISTS: &str = "65536";

/// What the guest's root is made of: where, what, flags, options.
const MOUNTS: [(&str, &str, MsFlags, &str); 7] = [
    ("proc", "proc", RESTRICTED, ""),
    ("sys", "sysfs", RESTRICTED, ""),
    ("dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=755"),
    (
        "run",
        "tmpfs",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        "mode=755",
    ),
    ("sys/fs/cgroup", "cgroup2", RESTRICTED, ""),
    (
        "dev/pts",
        "devpts",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        "mode=620,ptmxmode=666",
    ),
    (
        "dev/shm",
        "tmpfs",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        "mode=1777",
    ),
];

const RESTRICTED: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// Makes the guest's root and all it takes.
pub fn run() -> Result<()> {
    // Those of the kernel's own limits are low.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES);
    umask(Mode::from_bits_truncate(0o022));
    make_root()?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        match symlink(target, format!("/dev/{name}")) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.context(|| format!("make the link /dev/{name}"))?,
        }
    }
    let _ = setsid();
    // Pages that were freed go back to the host only from the kernel's common list: a CPU's own, which
    // grows to several MiB in a guest with one CPU, is to be as short as it can be. Speed only.
    let _ = fs::write("/proc/sys/vm/percpu_pagelist_high_fraction", PAGE_LISTS);
    cgroup::enable_controllers()?;
    network::loopback_up()
}

/// A root of its own over the kernel's first, which pivot_root does not leave.
fn make_root() -> Result<()> {
    let none = None::<&str>;
    fs::create_dir_all("/root").context(|| "make a directory for the root".into())?;
    mount(
        Some("root"),
        "/root",
        Some("tmpfs"),
        MsFlags::MS_NOSUID,
        Some("mode=755,size=1m"),
    )
    .context(|| "mount the root".into())?;
    chdir("/root").context(|| "enter the root".into())?;
    for (target, kind, flags, options) in MOUNTS {
        if !target.starts_with("sys/") {
            fs::create_dir_all(target).context(|| format!("make the directory {target}"))?;
        }
        mount(Some(kind), target, Some(kind), flags, Some(options))
            .context(|| format!("mount {kind} on /{target}"))?;
    }
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).context(|| "move the root".into())?;
    chroot(".").context(|| "enter the root".into())?;
    chdir("/").context(|| "enter the root".into())
}
