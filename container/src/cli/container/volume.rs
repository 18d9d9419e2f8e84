//! `volume`.

use serde_json::json;

use super::{Outcome, each, print};
use crate::cli::format::{self, table};
use crate::create::holder;
use crate::paths;
use crate::state::{Containers, StateError, new_id};
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
    },
    /// Print all that is known of volumes
    Inspect {
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
    /// Remove all volumes that no container has
    Prune {
        /// Do not ask
        #[arg(short, long, required = true)]
        force: bool,
    },
}

pub(super) fn run(command: Command) -> Outcome {
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
        Command::Ls { quiet } => {
            let all = volumes.list()?;
            let mut lines = Vec::new();
            if quiet {
                lines.extend(all.iter().map(|volume| vec![volume.name.clone()]));
            } else {
                lines.push(vec!["DRIVER".into(), "VOLUME NAME".into()]);
                lines.extend(all.iter().map(|v| vec![v.driver.clone(), v.name.clone()]));
            }
            print(&table(&lines))?;
            Ok(0)
        }
        Command::Inspect { names } => {
            let found: Result<Vec<_>, _> = names.iter().map(|name| volumes.find(name)).collect();
            print(&format::document(&json!(found?)))?;
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
        Command::Prune { force: _ } => {
            for volume in volumes.list()? {
                if user(&volume.name)?.is_none() {
                    volumes.remove(&volume.name, None)?;
                    print(&format!("{}\n", volume.name))?;
                }
            }
            Ok(0)
        }
    }
}

/// A container that has the volume.
fn user(volume: &str) -> Result<Option<String>, StateError> {
    let all = Containers::open()?.list()?;
    Ok(all
        .into_iter()
        .find(|container| container.has_volume(volume))
        .map(|container| container.record.name))
}
