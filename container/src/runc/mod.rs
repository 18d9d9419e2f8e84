//! The OCI runtime: the command line that engines (Podman, Docker, containerd) drive runc by, for
//! containers that each have a VM.
//!
//! `create` starts a shim and waits until it has the container made in a VM. The shim is the process
//! that stands for the container on the host: its number goes into the pid file, it lives as long as
//! the container's process and ends with its exit code. All other commands talk to the agent in the
//! VM, or look at what is written down.

mod bundle;
mod cgroup;
mod cli;
mod control;
mod create;
mod descriptors;
mod exec;
mod guest_proc;
mod hooks;
mod limits;
mod look;
mod mounts;
mod names;
mod place;
mod report;
mod rootfs;
mod shim;
pub mod stand_in;
mod store;
mod submounts;
mod systemd;
mod terminal;
mod view;

use std::ffi::OsString;
use std::process::ExitCode;

pub use cli::NAME;

/// Runs the runtime with the arguments behind its name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    cli::main(args)
}
