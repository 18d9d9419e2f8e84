//! `volume`.

use serde_json::{Value, json};

use super::{Failed, Outcome, each, print};
use crate::cli::ask::confirmed;
use crate::cli::format::{self, Template};
use crate::create::holder;
use crate::paths;
use crate::state::{Containers, StateError, is_id, new_id};
use crate::volume::{Options, Type, VolumeError, Volumes};

/// What there is to do with volumes.
#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Command {
    /// Make a volume
    Create {
        /// type=image: a file system of its own, for one container at a time, or several that only read;
        /// type=shared: a directory for several; size=BYTES: what an image can hold [default:
        /// type=image,size=64g]
        #[arg(short, long, value_name = "NAME=VALUE")]
        opt: Vec<String>,
        /// Set a label
        #[arg(long, value_name = "NAME[=VALUE]")]
        label: Vec<String>,
        /// Its name [default: one is made up]
        name: Option<String>,
    },
    /// List volumes
    #[command(visible_alias = "list")]
    Ls {
        /// Only their names
        #[arg(short, long)]
        quiet: bool,
        /// `json`, or a template such as '{{.Name}} {{.Mountpoint}}'
        #[arg(long, value_name = "FORMAT")]
        format: Option<Template>,
    },
    /// Print all that is known of volumes
    Inspect {
        /// A template such as '{{.Mountpoint}}'
        #[arg(short, long, value_name = "FORMAT")]
        format: Option<Template>,
        /// Names
        #[arg(value_name = "VOLUME", required = true)]
        names: Vec<String>,
    },
    /// Make an image larger, or a shared directory of it, or an image of that; no container runs with it
    Update {
        /// size=BYTES, type=image, type=shared
        #[arg(short, long, value_name = "NAME=VALUE", required = true)]
        opt: Vec<String>,
        /// Its name
        #[arg(value_name = "VOLUME")]
        name: String,
    },
    /// Remove volumes, with all that is in them
    #[command(visible_alias = "remove")]
    Rm {
        /// Names
        #[arg(value_name = "VOLUME", required = true)]
        names: Vec<String>,
    },
    /// Remove volumes that no container has: those that nobody named
    Prune {
        /// Those with a name, too
        #[arg(short, long)]
        all: bool,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
}

pub(in crate::cli) fn run(command: Command) -> Outcome {
    let volumes = Volumes::at(&paths::data());
    match command {
        Command::Create { opt, label, name } => {
            let options = Options::of(Type::Image).with(&opt)?;
            let volume = volumes.make(&name.unwrap_or_else(new_id), &label, options)?;
            if !opt.is_empty() && volume.options != options {
                return Err(VolumeError::Differs(volume.name).into());
            }
            print(&format!("{}\n", volume.name))?;
            Ok(0)
        }
        Command::Ls { quiet, format } => {
            let rows: Vec<Value> = volumes.list()?.iter().map(|one| json!(one)).collect();
            let columns = [("DRIVER", "Driver"), ("VOLUME NAME", "Name")];
            let id = quiet.then_some("Name");
            print(&format::list(&rows, &columns, id, format.as_ref())?)?;
            Ok(0)
        }
        Command::Inspect { format, names } => {
            let found: Result<Vec<Value>, VolumeError> = names
                .iter()
                .map(|name| Ok(json!(volumes.find(name)?)))
                .collect();
            print(&format::documents(found?, format.as_ref())?)?;
            Ok(0)
        }
        Command::Update { opt, name } => {
            let volume = volumes.find(&name)?;
            let options = volume.options.with(&opt)?;
            let lock = volumes.hold(&volume, true)?;
            let lock = lock.ok_or_else(|| VolumeError::Busy {
                volume: name.clone(),
                holder: holder(&name),
            })?;
            volumes.update(volume, options, &lock)?;
            print(&format!("{name}\n"))?;
            Ok(0)
        }
        Command::Rm { names } => each(&names, |name| {
            volumes.remove(name, user(name)?.as_deref())?;
            Ok(print(&format!("{name}\n"))?)
        }),
        Command::Prune { all, force } => {
            let what = match all {
                true => "all volumes that no container has",
                false => "all volumes without a name that no container has",
            };
            if force || confirmed(what)? {
                remove_unused(all)?;
            }
            Ok(0)
        }
    }
}

/// Removes the volumes that no container has; those that somebody named only if `all` go.
pub(in crate::cli) fn remove_unused(all: bool) -> Result<(), Failed> {
    let volumes = Volumes::at(&paths::data());
    for volume in volumes.list()? {
        if (all || is_id(&volume.name)) && user(&volume.name)?.is_none() {
            volumes.remove(&volume.name, None)?;
            print(&format!("{}\n", volume.name))?;
        }
    }
    Ok(())
}

/// A container that has the volume.
fn user(volume: &str) -> Result<Option<String>, StateError> {
    let all = Containers::open()?.list()?;
    Ok(all
        .into_iter()
        .find(|container| container.has_volume(volume))
        .map(|container| container.record.name))
}

/// All there is to know about a volume, if there is one of that name.
pub(in crate::cli) fn known(name: &str) -> Result<Option<Value>, VolumeError> {
    match Volumes::at(&paths::data()).find(name) {
        Ok(volume) => Ok(Some(json!(volume))),
        Err(VolumeError::Unknown(_) | VolumeError::Name(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
