//! `rename`.

use super::Outcome;
use crate::state::{Containers, Events};

const RULES: &str = "\
On a network of its own a container that runs is found by its old name until it is started again.";

/// Give a container another name
#[derive(Debug, clap::Args)]
#[command(after_help = RULES)]
pub(in crate::cli) struct Args {
    /// Its name or ID
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Its new name
    #[arg(value_name = "NAME")]
    name: String,
}

pub(super) fn rename(args: &Args) -> Outcome {
    let containers = Containers::open()?;
    let container = containers.find(&args.container)?;
    containers.rename(&container, &args.name)?;
    Events::write(&container.record_now()?, "rename", None);
    Ok(0)
}
