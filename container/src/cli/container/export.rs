//! `export`.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use super::control::failed;
use super::copy::Holder;
use super::{Failed, Outcome};
use crate::copy;
use crate::hostpath::HostPath;
use crate::state::Containers;

/// Write a container's files as a tar; without its volumes and what else is mounted
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Where to; without it, standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("the archive is not written to a terminal; use --output, or send it to a pipe")]
    Terminal,
    #[error("cannot write the archive")]
    Output(#[source] io::Error),
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
}

pub(super) fn export(args: &Args) -> Outcome {
    let container = Containers::open()?.find(&args.name)?;
    if args.output.is_none() && io::stdout().is_terminal() {
        return Err(ExportError::Terminal.into());
    }
    let holder = Holder::of(&container).map_err(failed)?;
    let files = holder.files().map_err(failed)?;
    let exchange = files.export()?;
    let Some(path) = &args.output else {
        let written = exchange.receive(|mut archive| copy::pass(&mut archive, &mut io::stdout()));
        written.map_err(ExportError::Output)?;
        return Ok(0);
    };
    // As with `save`: no link is followed, and an old file stays until the new one is whole.
    HostPath::find(path)?.write(|mut file| -> Result<(), Failed> {
        let written = exchange.receive(|mut archive| copy::pass(&mut archive, &mut file));
        Ok(written.map_err(|error| ExportError::Write(path.clone(), error))?)
    })?;
    Ok(0)
}
