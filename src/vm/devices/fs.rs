//! Shared directories.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

use cofferdam_devices::virtio::fs::Fs;
use cofferdam_fsd::{Daemon, Share};

use super::{DeviceError, Devices};
use crate::config::FsConfig;

/// The monitor's own program, which is the file-system process's too, whatever became of its file.
const PROGRAM: &str = "/proc/self/exe";

impl Devices<'_> {
    /// Adds the device with `tag`: with a process of our own for directories, or connected to
    /// another daemon.
    pub(super) fn add_fs(&mut self, tag: &str, shared: &[&FsConfig]) -> Result<(), DeviceError> {
        let socket = shared.iter().find_map(|fs| fs.socket.as_deref());
        let fs = match socket {
            Some(path) => {
                let socket = UnixStream::connect(path).map_err(|source| DeviceError::FsSocket {
                    tag: tag.to_owned(),
                    path: path.to_owned(),
                    source,
                })?;
                Fs::new(tag, socket, None)?
            }
            None => {
                let shares = shares(tag, shared)?;
                let Daemon { child, socket } =
                    Daemon::start(Path::new(PROGRAM), &shares).map_err(|source| {
                        DeviceError::FsDaemon {
                            tag: tag.to_owned(),
                            source,
                        }
                    })?;
                log::info!("fs {tag}: served by process {}", child.id());
                Fs::new(tag, socket, Some(child))?
            }
        };
        self.add_virtio("fs", Arc::new(Mutex::new(fs)))
    }
}

/// The directories, looked at before a process is started that cannot say it better.
fn shares(tag: &str, shared: &[&FsConfig]) -> Result<Vec<Share>, DeviceError> {
    let paths = shared.iter().filter_map(|fs| Some((fs, fs.path.as_ref()?)));
    paths
        .map(|(fs, path)| {
            std::fs::read_dir(path).map_err(|source| DeviceError::FsDirectory {
                tag: tag.to_owned(),
                path: path.clone(),
                source,
            })?;
            Ok(Share {
                path: path.clone(),
                name: fs.name.clone(),
                ro: fs.ro,
            })
        })
        .collect()
}
