//! A container's files, in the hands of who has them: the agent in its VM, or, on the host's kernel, the
//! host itself, which trusts nothing of them.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cofferdam_agent_protocol::{Client, api};
use rustix::fs::OFlags;

use super::{CopyError, Exchange, From, Owner, extract_directory, pack};
use crate::root::RootDir;
use crate::state::new_id;

/// Whose they are.
#[derive(Debug)]
pub enum Files<'a> {
    /// Those of the container with an ID, in a VM.
    Vm(&'a Client, &'a str),
    /// Those of a container on the host's kernel.
    Host(RootDir),
}

impl Files<'_> {
    /// The mode of what is at a path, or, if that is a link and `follow`, of what it leads to; none if
    /// nothing is there.
    pub fn mode(&self, path: &str, follow: bool) -> Result<Option<u32>, CopyError> {
        let root = match self {
            Self::Vm(agent, id) => {
                let mut request = api::StatRequest::new();
                (request.id, request.path) = ((*id).to_owned(), path.to_owned());
                request.follow = follow;
                let about = agent.stat(request)?;
                return Ok(about.exists.then_some(about.mode));
            }
            Self::Host(root) => root,
        };
        let found = find(root, path, follow).and_then(|file| file.metadata());
        match found {
            Ok(about) => Ok(Some(about.mode())),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(lost(path, error)),
            },
        }
    }

    /// What is at a path, with the name that is asked for, or the last part of its own.
    pub fn copy_out(
        &self,
        path: &str,
        name: &str,
        follow: bool,
    ) -> Result<Exchange<'_>, CopyError> {
        let root = match self {
            Self::Vm(agent, id) => {
                let mut request = copy(id, path);
                request.name = name.to_owned();
                request.follow = follow;
                let token = request.token.clone();
                return Exchange::agent(agent, &token, |agent| agent.copy_out(request));
            }
            Self::Host(root) => root,
        };
        let file = find(root, path, follow).map_err(|error| lost(path, error))?;
        let name = match (name, Path::new(path).file_name()) {
            ("", Some(own)) => own.into(),
            // The root has no name.
            ("", None) => PathBuf::from("."),
            (name, _) => name.into(),
        };
        Exchange::here(&format!("send {path} as an archive"), move |stream| {
            let what = From {
                file,
                name: &name,
                owners: true,
                one_file_system: false,
            };
            pack(what, stream).map(drop)
        })
    }

    /// All of the root file system, without what is mounted in it.
    pub fn export(&self) -> Result<Exchange<'_>, CopyError> {
        match self {
            Self::Vm(agent, id) => {
                let mut request = copy(id, "/");
                request.one_file_system = true;
                let token = request.token.clone();
                Exchange::agent(agent, &token, |agent| agent.copy_out(request))
            }
            Self::Host(root) => {
                let file = find(root, "/", false).map_err(|error| lost("/", error))?;
                Exchange::here("send the root file system as an archive", move |stream| {
                    let what = From {
                        file,
                        name: Path::new("."),
                        owners: true,
                        one_file_system: true,
                    };
                    pack(what, stream).map(drop)
                })
            }
        }
    }

    /// Takes an archive to a directory, which is there.
    pub fn copy_in(&self, path: &str) -> Result<Exchange<'_>, CopyError> {
        let root = match self {
            Self::Vm(agent, id) => {
                let request = copy(id, path);
                let token = request.token.clone();
                return Exchange::agent(agent, &token, |agent| agent.copy_in(request));
            }
            Self::Host(root) => root,
        };
        let directory = root.find(path, OFlags::PATH | OFlags::DIRECTORY);
        let directory = directory.map_err(|error| lost(path, error))?;
        let action = format!("unpack the archive in {path}");
        Exchange::here(&action, move |stream| {
            extract_directory(stream, &directory, Owner::Archive).map(drop)
        })
    }
}

fn copy(id: &str, path: &str) -> api::CopyRequest {
    let mut request = api::CopyRequest::new();
    (request.id, request.path) = (id.to_owned(), path.to_owned());
    request.token = new_id();
    request
}

fn find(root: &RootDir, path: &str, follow: bool) -> io::Result<File> {
    let how = match follow {
        true => OFlags::PATH,
        false => OFlags::PATH | OFlags::NOFOLLOW,
    };
    Ok(root.find(path, how)?.into())
}

fn lost(path: &str, source: io::Error) -> CopyError {
    CopyError::Io {
        action: format!("find {path} in the container"),
        source,
    }
}
