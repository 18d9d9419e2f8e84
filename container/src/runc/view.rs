//! What tools of the host's find that enter the mount namespace of a container's process: engines copy
//! files so (`podman cp`). The process that stands for it has the container's root, as the host sees
//! it, and the files that are shared with it; and nothing else of the host's.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot, pivot_root};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::guest_proc;
use super::mounts::Share;
use super::store::Container;

const NONE: Option<&str> = None;

/// Gives this thread, which must be the process's first, such a view. Threads that there are already
/// keep the host's. At /proc are the container's processes.
pub(super) fn enter(container: &Container, shares: &[Share]) -> io::Result<()> {
    let rootfs = container.record.rootfs.as_path();
    // Where the host has none, nobody sees processes, and all else is as it should be.
    let proc = guest_proc::Server::start(container.clone());
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is unmounted on the host shall go here, too, and nothing of ours show there.
    mount(NONE, "/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let trees = shares.iter().map(|share| -> io::Result<(OwnedFd, &Path)> {
        Ok((open_tree(CWD, &share.source, clone)?, &share.target))
    });
    let trees = trees.collect::<io::Result<Vec<_>>>()?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(rootfs), rootfs, NONE, bind, NONE)?;
    chdir(rootfs)?;
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // An initramfs, which can only be covered.
        Err(Errno::EINVAL) => {
            mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
            chroot(".")?;
        }
        Err(error) => return Err(error.into()),
    }
    chdir("/")?;
    for (tree, target) in trees {
        // A path of the container's, in its own root. What is not there cannot be hidden.
        let _ = move_mount(
            tree,
            "",
            CWD,
            target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        );
    }
    if let Some(proc) = proc {
        let _ = proc.mount();
    }
    Ok(())
}
