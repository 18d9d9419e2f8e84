//! A VM that has volumes and no container: for what takes a kernel, since the host's mounts nothing that a
//! guest wrote.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use cofferdam_agent_protocol::api;
use oci_spec::image::ImageConfiguration;

use super::{Type, Volume};
use crate::files::{FileError, file, remove_tree};
use crate::options::{Options, Rights};
use crate::shim::{Guest, Plan, Session, SessionError};
use crate::spec::{self, SpecError};
use crate::state::{self, StateError, new_id};
use crate::vm::{AGENT, Machine, Root, Shared, VmError};

/// Why there is no such VM.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// What it runs.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// It cannot be.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// It does not run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Where its sockets are.
    #[error(transparent)]
    File(#[from] FileError),
    /// The state of containers.
    #[error(transparent)]
    State(#[from] StateError),
    /// What it runs, as a text.
    #[error("cannot write the configuration of a VM for volumes")]
    Json(#[from] serde_json::Error),
    /// Something of it may still have been in the VM's memory.
    #[error("the VM let go of volume {0} before all of it was written")]
    Unclean(String),
}

/// Mounts an image and unmounts it: what a killed VM left in its journal is in its place then.
pub fn recover(volume: &Volume) -> Result<(), VisitError> {
    visit(vec![share(volume, None)])?;
    must_be_clean(volume)
}

/// Copies all of a volume to a new one.
pub fn copy(from: &Volume, to: &Volume) -> Result<(), VisitError> {
    visit(vec![share(from, None), share(to, Some(0))])?;
    must_be_clean(to)
}

fn must_be_clean(volume: &Volume) -> Result<(), VisitError> {
    match volume.is_dirty()? {
        true => Err(VisitError::Unclean(volume.name.clone())),
        false => Ok(()),
    }
}

fn share(volume: &Volume, copy_of: Option<usize>) -> Shared {
    Shared {
        source: volume.mountpoint.clone(),
        is_image: volume.options.kind == Type::Image,
        read_only: false,
        rights: Rights::default(),
        fill_from: None,
        copy_of,
    }
}

/// Has a VM mount all of it, and ends it.
fn visit(shares: Vec<Shared>) -> Result<(), VisitError> {
    let id = new_id();
    let run = state::Containers::open()?.run_of(&id);
    let mut dir = fs::DirBuilder::new();
    let made = dir.recursive(true).mode(0o700).create(&run);
    made.map_err(file("cannot make the directory", &run))?;
    let done = boot(id, shares, run.clone());
    let _ = remove_tree(&run);
    done
}

fn boot(id: String, shares: Vec<Shared>, run: PathBuf) -> Result<(), VisitError> {
    // The agent's own file system is a root like any other, and its program is not started again.
    let root = cofferdam::guest::find(AGENT).ok_or(VmError::NoAgent)?;
    let agent = Options {
        command: vec!["/sbin/init".into()],
        ..Options::default()
    };
    let image = ImageConfiguration::default();
    let spec = spec::build(&id, &agent, &image, "rootfs".as_ref(), &[])?;
    let guest = Guest {
        id,
        spec: serde_json::to_vec(&spec)?,
        streams: api::Streams::new(),
        size: None,
        network: api::NetworkRequest::new(),
        init: false,
        directories: Vec::new(),
    };
    let machine = Machine {
        kernel: None,
        cpus: None,
        cpuset: None,
        memory: None,
        root: Root::Layers {
            layers: vec![root],
            upper: None,
            is_temporary: true,
        },
        shares,
        disks: Vec::new(),
        uplink: None,
        ports: Vec::new(),
        taps: Vec::new(),
        netns: None,
        limits: None,
        run,
    };
    let (session, _streams) = Session::boot(Plan::Vm(Box::new(machine), guest))?;
    session.end(true);
    Ok(())
}
