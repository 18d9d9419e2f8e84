//! Files in and out of a container, as tar archives.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;

use cofferdam_agent_protocol::api::{ChangesRequest, CopyRequest, StatRequest, StatResponse};
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

fn absolute(path: &str) -> Result<PathBuf> {
    if !Path::new(path).is_absolute() {
        return Err(Error::invalid(format!("path {path:?}"), "not absolute"));
    }
    Ok(path.into())
}

fn connection(containers: &Containers, token: &str) -> Result<File> {
    let mut all = containers.waiting.take(token, &[Name::Archive])?;
    all.pop()
        .ok_or_else(|| Error::invalid("token", "it has no stream"))
}

/// Says what a path is.
pub fn stat(containers: &Containers, request: &StatRequest) -> Result<StatResponse> {
    let path = absolute(&request.path)?;
    let pid = containers.pid(&request.id, "")?;
    let about = inside(pid, || {
        let about = match request.follow {
            true => fs::metadata(&path),
            false => fs::symlink_metadata(&path),
        };
        match about {
            Ok(about) => Ok(Some(about)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(error).context(|| format!("look at {}", path.display())),
            },
        }
    })?;
    let mut response = StatResponse::new();
    if let Some(about) = about {
        response.exists = true;
        response.mode = about.mode();
    }
    Ok(response)
}

/// Sends a path as an archive, in which it has the name that is asked for, or the last part of its own.
pub fn copy_out(containers: &Containers, request: &CopyRequest) -> Result<()> {
    let asked = absolute(&request.path)?;
    let pid = containers.pid(&request.id, "")?;
    let connection = connection(containers, &request.token)?;
    inside(pid, || {
        let name = match (request.name.as_str(), asked.file_name()) {
            ("", Some(name)) => name.into(),
            // The root has no name.
            ("", None) => PathBuf::from("."),
            (name, _) => name.into(),
        };
        let path = match request.follow {
            true => fs::canonicalize(&asked).context(|| format!("find {}", asked.display()))?,
            false => asked.clone(),
        };
        let mut builder = Builder::new(connection);
        builder.follow_symlinks(false);
        builder.sparse(false);
        let below = match request.one_file_system {
            true => fs::symlink_metadata(&path).ok().map(|about| about.dev()),
            false => None,
        };
        let written =
            append(&mut builder, &path, &name, below).and_then(|()| builder.into_inner()?.flush());
        written.context(|| format!("send {} as an archive", asked.display()))
    })
}

/// Sends what a container changed as a layer.
pub fn changes(containers: &Containers, request: &ChangesRequest) -> Result<()> {
    let (upper, points) = containers.changes(&request.id)?;
    let connection = connection(containers, &request.token)?;
    let written = match upper {
        Some(upper) => cofferdam_changes::write_layer(&upper, &points, connection),
        // Nothing could be written, so nothing was changed.
        None => Builder::new(connection).finish(),
    };
    written.context(|| format!("send the changes of container {}", request.id))
}

/// `within`: only what is on the file system with that device.
fn append(
    builder: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    within: Option<u64>,
) -> io::Result<()> {
    let about = fs::symlink_metadata(path)?;
    if about.file_type().is_socket() {
        // No archive has them.
        return Ok(());
    }
    builder.append_path_with_name(path, name)?;
    // An overlay's files have the devices of its layers, its directories its own.
    if about.is_dir() && within.is_none_or(|device| device == about.dev()) {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = name.join(entry.file_name());
            append(builder, &entry.path(), &name, within)?;
        }
    }
    Ok(())
}

/// Unpacks an archive in a directory, which is there.
pub fn copy_in(containers: &Containers, request: &CopyRequest) -> Result<()> {
    let path = absolute(&request.path)?;
    let pid = containers.pid(&request.id, "")?;
    let mut connection = connection(containers, &request.token)?;
    inside(pid, || {
        let about = fs::metadata(&path).context(|| format!("find {}", path.display()))?;
        if !about.is_dir() {
            return Err(Error::invalid(path.display(), "it is no directory"));
        }
        let mut archive = Archive::new(&mut connection);
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.set_overwrite(true);
        archive
            .unpack(&path)
            // What is behind its end: who sends it shall not find nobody there.
            .and_then(|()| io::copy(&mut connection, &mut io::sink()))
            .map(drop)
            .context(|| format!("unpack the archive in {}", path.display()))
    })
}
