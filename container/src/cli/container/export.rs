//! `export`.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use super::Outcome;
use super::control::{failed, host, root};
use crate::copy::{self, Files};
use crate::options::Isolation;
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
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
}

pub(super) fn export(args: &Args) -> Outcome {
    let container = Containers::open()?.find(&args.name)?;
    if args.output.is_none() && io::stdout().is_terminal() {
        return Err(ExportError::Terminal.into());
    }
    let host = match container.record.options.isolation {
        Isolation::Vm => Some(host(&container).map_err(failed)?),
        Isolation::Process => None,
    };
    let files = match &host {
        Some(host) => Files::Vm(&host.agent, &container.record.id),
        None => Files::Host(root(&container).map_err(failed)?),
    };
    let exchange = files.export()?;
    let path = args.output.clone().unwrap_or_else(|| "-".into());
    let written = exchange.receive(|mut archive| match &args.output {
        Some(path) => copy::pass(&mut archive, &mut File::create(path)?),
        None => copy::pass(&mut archive, &mut io::stdout()),
    });
    written.map_err(|error| ExportError::Write(path, error))?;
    Ok(0)
}
