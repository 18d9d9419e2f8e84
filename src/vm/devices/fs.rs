//! Shared directories.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use super::{DeviceError, Devices};
use crate::companion;
use crate::config::FsConfig;
use crate::vm::fsd::{Daemon, PROGRAM};
use cofferdam_devices::virtio::fs::Fs;

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
                look_at(tag, shared)?;
                let program =
                    companion::find(PROGRAM).map_err(|source| DeviceError::FsProgram {
                        tag: tag.to_owned(),
                        source,
                    })?;
                let Daemon { child, socket } =
                    Daemon::start(&program, shared).map_err(|source| DeviceError::FsDaemon {
                        tag: tag.to_owned(),
                        source,
                    })?;
                log::info!("fs {tag}: served by process {}", child.id());
                Fs::new(tag, socket, Some(child))?
            }
        };
        self.add_virtio("fs", Arc::new(Mutex::new(fs)))
    }
}

/// Looks at the directories, and at single files that have a name in one, before a process is
/// started that cannot say it better.
fn look_at(tag: &str, shared: &[&FsConfig]) -> Result<(), DeviceError> {
    for fs in shared {
        let Some(path) = &fs.path else { continue };
        let is_file = fs.name.is_some() && path.is_file();
        let looked = match is_file {
            true => std::fs::File::open(path).map(drop),
            false => std::fs::read_dir(path).map(drop),
        };
        looked.map_err(|source| DeviceError::FsDirectory {
            tag: tag.to_owned(),
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}
