//! `container prune`.

use super::{Failed, Outcome, print};
use crate::cli::ask::confirmed;
use crate::create;
use crate::state::{Containers, StateError};

/// Remove all containers that do not run
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(super) fn prune(args: &Args) -> Outcome {
    if args.force || confirmed("all containers that do not run")? {
        remove_stopped()?;
    }
    Ok(0)
}

/// Removes the containers that do not run, and prints which.
pub(in crate::cli) fn remove_stopped() -> Result<(), Failed> {
    for container in Containers::open()?.list()? {
        if container.state()?.status.is_live() {
            continue;
        }
        let lock = match container.lock() {
            Ok(lock) => lock,
            // Started, or removed, just now.
            Err(StateError::Busy(_)) => continue,
            Err(_) if !container.dir.exists() => continue,
            Err(error) => return Err(error.into()),
        };
        create::remove(&container, &lock)?;
        print(&format!("{}\n", container.record.id))?;
    }
    Ok(())
}
