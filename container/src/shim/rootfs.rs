//! The root file system of a container on the host's kernel: its image's layers and on them what it
//! wrote, mounted where only the container sees it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::process::Command;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::bundle::Bundle;
use super::process::{ProcessError, io};
use crate::root::RootDir;

/// Where it is, in the directory of the container's mounts and sockets.
pub const ROOTFS: &str = "rootfs";

/// Does something in a thread that has the root file system mounted, and mounts of its own. What the
/// thread starts has them, too, and they are gone with the last who has.
pub(super) fn mounted<T: Send>(
    bundle: &Bundle,
    work: impl FnOnce(&RootDir) -> Result<T, ProcessError> + Send,
) -> Result<T, ProcessError> {
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            apart().map_err(io("have mounts of our own"))?;
            mount_all(bundle)?;
            let root = RootDir::open(&bundle.run.join(ROOTFS));
            work(&root.map_err(io("open the root file system"))?)
        });
        match there.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The thread's mounts and working directory become its own.
fn apart() -> io::Result<()> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    Ok(mount(none, "/", none, private, none)?)
}

fn mount_all(bundle: &Bundle) -> Result<(), ProcessError> {
    let (upper, work) = (bundle.upper.join("upper"), bundle.upper.join("work"));
    let rootfs = bundle.run.join(ROOTFS);
    let make = || {
        [&upper, &work, &rootfs]
            .into_iter()
            .try_for_each(fs::create_dir_all)?;
        // All options of a mount share a page: so the layers' names are short.
        std::env::set_current_dir(&bundle.run)
    };
    make().map_err(io("make the directories of the root file system"))?;
    let mut options = Vec::new();
    for (number, layer) in bundle.layers.iter().enumerate() {
        let dir = format!("lower{number}");
        fs::create_dir_all(&dir).map_err(io("make the directory of a layer"))?;
        tool(&["-t", "erofs", "-o", "ro,loop"], layer, &dir)?;
        // The lowest comes last.
        options.insert(0, dir);
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        options.join(":"),
        upper.display(),
        work.display()
    );
    tool(&["-t", "overlay", "-o", &options], "overlay", &rootfs)
}

/// mount(8), which takes care of loop devices.
fn tool(
    options: &[&str],
    what: impl AsRef<OsStr>,
    place: impl AsRef<OsStr>,
) -> Result<(), ProcessError> {
    let mut command = Command::new("mount");
    let output = command.args(options).args([what.as_ref(), place.as_ref()]);
    let output = output.output().map_err(io("run mount (util-linux)"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(ProcessError::Mount(said.trim().replace('\n', "; ")))
}
