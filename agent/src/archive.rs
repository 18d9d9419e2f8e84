//! Files in and out of a container, as tar archives.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread;

use cofferdam_agent_protocol::api::CopyRequest;
use cofferdam_agent_protocol::stream::Name;
use nix::sched::{CloneFlags, setns, unshare};
use tar::{Archive, Builder};

use crate::containers::Containers;
use crate::error::{Context, Error, Result};

/// Runs `work` where paths are those of the container: in a thread, which enters its mounts.
fn inside<T: Send>(pid: i32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt"))
        .context(|| "find the container's mounts".into())?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let doing = || "enter the container's mounts".to_owned();
            // Only who shares the root and the working directory with nobody may.
            unshare(CloneFlags::CLONE_FS).context(doing)?;
            setns(&namespace, CloneFlags::CLONE_NEWNS).context(doing)?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::invalid("archive", "the copying ended badly")))
    })
}

fn path_of(request: &CopyRequest) -> Result<PathBuf> {
    let path = Path::new(&request.path);
    if !path.is_absolute() {
        return Err(Error::invalid(
            format!("path {:?}", request.path),
            "not absolute",
        ));
    }
    Ok(path.to_owned())
}

fn connection(containers: &Containers, request: &CopyRequest) -> Result<File> {
    let mut all = containers.waiting.take(&request.token, &[Name::Archive])?;
    all.pop()
        .ok_or_else(|| Error::invalid("token", "it has no stream"))
}

/// Sends a path as an archive, in which it has the last part of its name.
pub fn copy_out(containers: &Containers, request: &CopyRequest) -> Result<()> {
    let path = path_of(request)?;
    let pid = containers.pid(&request.id, "")?;
    let connection = connection(containers, request)?;
    inside(pid, || {
        // The root has no name.
        let name = path
            .file_name()
            .map_or_else(|| PathBuf::from("."), PathBuf::from);
        let mut builder = Builder::new(connection);
        builder.follow_symlinks(false);
        builder.sparse(false);
        let written =
            append(&mut builder, &path, &name).and_then(|()| builder.into_inner()?.flush());
        written.context(|| format!("send {} as an archive", path.display()))
    })
}

fn append(builder: &mut Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let about = fs::symlink_metadata(path)?;
    if about.file_type().is_socket() {
        // No archive has them.
        return Ok(());
    }
    builder.append_path_with_name(path, name)?;
    if about.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            append(builder, &entry.path(), &name.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Unpacks an archive in a directory, which is there.
pub fn copy_in(containers: &Containers, request: &CopyRequest) -> Result<()> {
    let path = path_of(request)?;
    let pid = containers.pid(&request.id, "")?;
    let connection = connection(containers, request)?;
    inside(pid, || {
        let about = fs::metadata(&path).context(|| format!("find {}", path.display()))?;
        if !about.is_dir() {
            return Err(Error::invalid(path.display(), "it is no directory"));
        }
        let mut archive = Archive::new(connection);
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.set_overwrite(true);
        archive
            .unpack(&path)
            .context(|| format!("unpack the archive in {}", path.display()))
    })
}
