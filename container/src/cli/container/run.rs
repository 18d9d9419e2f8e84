//! `run`, `create`, `start`, `attach`.

use std::io::Write;

use super::attach::{Attachment, Followed, Signals, window};
use super::control::{ControlError, failed, request, start_shim};
use super::{Failed, Outcome, each, print, signal};
use crate::create;
use crate::options::Options;
use crate::shim::wire::{Frame, Request};
use crate::state::{Container, Containers, StateError, Status};

const EXAMPLES: &str = "\
Examples:
  cofferdam run --rm busybox uname -r
  cofferdam run -it --rm busybox
  cofferdam run -d --name web -p 8080:80 -v $PWD/site:/www:ro busybox httpd -f -h /www
  cofferdam run --rm -m 256m --cpus 2 --network none busybox nproc

On a terminal, Ctrl-p Ctrl-q leaves the container running.

Exit codes: the container's own; 125 if Cofferdam failed, 126 if the program cannot be executed,
127 if it is not there, 128+n if signal n ended it.";

/// Run an image in a new container
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct RunArgs {
    /// Leave it running, and print its ID
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    options: Options,
}

/// Make a container, to be started later
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CreateArgs {
    #[command(flatten)]
    options: Options,
}

/// Start containers that were made or have ended
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct StartArgs {
    /// Stay with it, and show what it prints
    #[arg(short, long)]
    attach: bool,
    /// Give it what is typed
    #[arg(short, long)]
    interactive: bool,
    /// Names or IDs
    #[arg(value_name = "CONTAINER", required = true)]
    names: Vec<String>,
}

/// Connect with a container's input and output
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct AttachArgs {
    /// Give it no input
    #[arg(long)]
    no_stdin: bool,
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
}

/// What stands in the way of a command.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("{0} is no file that can be made: is it there already?")]
    CidFile(std::path::PathBuf, #[source] std::io::Error),
    #[error("give one container to attach to")]
    Several,
    #[error("the shim of container {0} is gone")]
    Lost(String),
}

/// Makes a container of the options.
fn make(mut options: Options) -> Result<Container, Failed> {
    options.resolve()?;
    if let Some(name) = &options.stop_signal {
        signal(name).map_err(std::io::Error::other)?;
    }
    // Before the container: none shall be left without its file.
    let mut cidfile = match &options.cidfile {
        Some(path) => {
            let file = std::fs::File::create_new(path);
            Some(file.map_err(|error| RunError::CidFile(path.clone(), error))?)
        }
        None => None,
    };
    let path = options.cidfile.clone();
    let made = create::create(&Containers::open()?, options);
    match (made, &mut cidfile) {
        (Ok(container), Some(file)) => {
            file.write_all(container.record.id.as_bytes())?;
            Ok(container)
        }
        (Ok(container), None) => Ok(container),
        (Err(error), _) => {
            if let Some(path) = path {
                let _ = std::fs::remove_file(path);
            }
            Err(error.into())
        }
    }
}

pub(super) fn create(mut args: CreateArgs) -> Outcome {
    args.options.stdin_once = args.options.interactive;
    let container = make(args.options)?;
    print(&format!("{}\n", container.record.id))?;
    Ok(0)
}

pub(super) fn run(mut args: RunArgs) -> Outcome {
    let signals = (!args.detach).then(Signals::block);
    args.options.stdin_once = args.options.interactive && !args.detach;
    let container = make(args.options)?;
    let input = container.record.options.interactive;
    let code = match signals {
        Some(signals) => start_attached(&container, input, signals),
        None => start_alone(&container).and_then(|()| {
            print(&format!("{}\n", container.record.id))?;
            Ok(0)
        }),
    };
    // The shim removes it; but perhaps there was no shim.
    if code.is_err() && container.record.options.rm && container.dir.exists() {
        remove_quietly(&container);
    }
    code
}

fn remove_quietly(container: &Container) {
    if let Ok(lock) = container.lock() {
        let _ = create::remove(container, &lock);
    }
}

fn start_alone(container: &Container) -> Result<(), Failed> {
    let starter = start_shim(container).map_err(failed)?;
    starter.start().map_err(failed)
}

/// Starts a container and stays with it until it ends.
fn start_attached(container: &Container, input: bool, signals: Signals) -> Outcome {
    let starter = start_shim(container).map_err(failed)?;
    let attach = Request::Attach {
        output: true,
        input,
    };
    // Before it runs: nothing that it prints shall be missed.
    let answered = request(container, &attach).map_err(failed)?;
    starter.start().map_err(failed)?;
    let attachment = Attachment {
        stream: answered.stream,
        reader: answered.reader,
        tty: container.record.options.tty,
        input,
    };
    follow(container, attachment, signals)
}

fn follow(container: &Container, attachment: Attachment, signals: Signals) -> Outcome {
    let theirs = container.clone();
    let kill = move |signal| {
        // It may have ended meanwhile.
        let _ = request(&theirs, &Request::Kill { signal });
    };
    match attachment.follow(signals, kill)? {
        Followed::Ended(code) => Ok(u8::try_from(code).unwrap_or(255)),
        Followed::Detached => Ok(0),
        Followed::Lost => Err(RunError::Lost(container.record.name.clone()).into()),
    }
}

pub(super) fn start(args: &StartArgs) -> Outcome {
    let containers = Containers::open()?;
    if !args.attach && !args.interactive {
        return each(&args.names, |name| {
            let container = containers.find(name)?;
            // As Docker: one that runs is started.
            if !container.state()?.status.is_live() {
                start_alone(&container)?;
            }
            Ok(print(&format!("{name}\n"))?)
        });
    }
    let [name] = args.names.as_slice() else {
        return Err(RunError::Several.into());
    };
    let container = containers.find(name)?;
    let input = args.interactive && container.record.options.interactive;
    start_attached(&container, input, Signals::block())
}

pub(super) fn attach(args: &AttachArgs) -> Outcome {
    let container = Containers::open()?.find(&args.name)?;
    match container.state()?.status {
        Status::Running => {}
        Status::Paused => {
            return Err(StateError::Unknown(format!("{} (it is paused)", args.name)).into());
        }
        _ => return Err(failed(ControlError::NotRunning(args.name.clone()))),
    }
    let signals = Signals::block();
    let input = container.record.options.interactive && !args.no_stdin;
    let attach = Request::Attach {
        output: true,
        input,
    };
    let answered = request(&container, &attach).map_err(failed)?;
    let tty = container.record.options.tty;
    if tty && let Some((rows, columns)) = window() {
        // Another size than that which follows makes a program show again what it has shown.
        let other = Frame::Size(rows.saturating_add(1), columns.saturating_add(1));
        let _ = other.write(&mut &answered.stream);
    }
    let attachment = Attachment {
        stream: answered.stream,
        reader: answered.reader,
        tty,
        input,
    };
    follow(&container, attachment, signals)
}
