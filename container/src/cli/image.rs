//! Commands about images, with Docker's names, options and output.

mod filter;
mod list;
mod remote;
mod transfer;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::ask::confirmed;
use crate::image::Store;
use crate::image::store::Removed;

/// What there is to do with images.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Get images from a registry
    Pull(remote::Pull),
    /// Send an image to a registry
    Push(remote::Push),
    /// List images
    Images(list::Images),
    /// Load images from an archive: docker save's, or an OCI layout
    Load(transfer::Load),
    /// Write images to an archive that Docker, Podman and OCI tools load
    Save(transfer::Save),
    /// Make an image of a tar of files
    Import(transfer::Import),
    /// Remove images
    Rmi(Remove),
    /// Give an image another name
    Tag(Tag),
    /// Show what an image was built by
    History(list::History),
    /// Remove images that nobody needs, and what killed processes left
    Prune(Prune),
    /// All commands about images
    #[command(subcommand)]
    Image(Group),
}

/// `cofferdam image COMMAND`.
#[derive(Debug, Subcommand)]
pub(super) enum Group {
    /// List images
    #[command(visible_alias = "list")]
    Ls(list::Images),
    /// Get images from a registry
    Pull(remote::Pull),
    /// Send an image to a registry
    Push(remote::Push),
    /// Load images from an archive: docker save's, or an OCI layout
    Load(transfer::Load),
    /// Write images to an archive that Docker, Podman and OCI tools load
    Save(transfer::Save),
    /// Make an image of a tar of files
    Import(transfer::Import),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(Remove),
    /// Give an image another name
    Tag(Tag),
    /// Show what an image was built by
    History(list::History),
    /// Show all there is to know about images, as JSON
    Inspect(list::Inspect),
    /// Remove images that nobody needs, and what killed processes left
    Prune(Prune),
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// Names, or ids for all names of an image
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Also names of images that containers use, and whatever is not there
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Tag {
    /// A name or an id
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    /// The new name
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    target: String,
}

#[derive(Debug, Args)]
pub(super) struct Prune {
    /// Also images with a name, if no container uses them
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(super) use list::{known, size};

type Outcome = Result<(), Box<dyn Error>>;

/// Does it.
pub(super) fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::Images(images) | Command::Image(Group::Ls(images)) => list::images(&images),
        Command::Pull(pull) | Command::Image(Group::Pull(pull)) => remote::pull(&pull),
        Command::Push(push) | Command::Image(Group::Push(push)) => remote::push(&push),
        Command::Load(load) | Command::Image(Group::Load(load)) => transfer::load(&load),
        Command::Save(save) | Command::Image(Group::Save(save)) => transfer::save(&save),
        Command::Import(import) | Command::Image(Group::Import(import)) => {
            transfer::import(&import)
        }
        Command::Rmi(remove) | Command::Image(Group::Rm(remove)) => self::remove(&remove),
        Command::Tag(names) | Command::Image(Group::Tag(names)) => tag(&names),
        Command::History(history) | Command::Image(Group::History(history)) => {
            list::history(&history)
        }
        Command::Image(Group::Inspect(inspect)) => list::inspect(&inspect),
        Command::Prune(what) | Command::Image(Group::Prune(what)) => prune(&what),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // `cofferdam images | head`: nobody reads on, and that is no failure.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        // Docker's exit code for commands that start no container.
        Err(error) => super::fail(&*error, 1),
    }
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn remove(remove: &Remove) -> Outcome {
    let store = Store::open_default()?;
    let mut failed = None;
    for image in &remove.images {
        match store.remove(image, remove.force) {
            Ok(removed) => say(&removed)?,
            Err(crate::image::store::Error::NotFound(_)) if remove.force => {}
            Err(error) => {
                // The others are removed all the same; the last failure is what the command ends with.
                if let Some(failed) = failed.replace(error) {
                    super::fail(&failed, 1);
                }
            }
        }
    }
    match failed {
        None => Ok(()),
        Some(error) => Err(error.into()),
    }
}

pub(super) fn say(removed: &Removed) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for name in &removed.names {
        writeln!(out, "Untagged: {}", list::familiar(name))?;
    }
    for image in &removed.images {
        writeln!(out, "Deleted: {image}")?;
    }
    Ok(())
}

fn tag(names: &Tag) -> Outcome {
    let store = Store::open_default()?;
    let target = names.target.parse()?;
    let _session = store.begin()?;
    let record = store.find(&names.source)?;
    store.name(&record.descriptor, Some(&target))?;
    Ok(())
}

fn prune(what: &Prune) -> Outcome {
    let store = Store::open_default()?;
    let which = match what.all {
        true => "all images that no container uses",
        false => "all images without a name",
    };
    if !what.force && !confirmed(which)? {
        return Ok(());
    }
    let removed = store.prune(what.all, |_| true)?;
    say(&removed)?;
    println!("Total reclaimed space: {}", list::size(removed.bytes));
    Ok(())
}
