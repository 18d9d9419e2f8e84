//! Commands about containers.

mod attach;
mod changes;
mod control;
mod copy;
mod exec;
mod export;
mod inspect;
mod life;
mod list;
mod logs;
pub(super) mod network;
pub(super) mod prune;
mod rename;
mod run;
mod update;
pub(super) mod volume;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use nix::sys::signal::Signal;

pub(crate) use attach::{Changed, Signals};
pub(super) use logs::{EventsArgs, events};

use super::{EXIT_FAILED, fail};

/// What there is to do with containers.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Run an image in a new container
    #[command(next_line_help = false)]
    Run(Box<run::RunArgs>),
    /// Make a container, to be started later
    Create(Box<run::CreateArgs>),
    /// Start containers that were made or have ended
    Start(run::StartArgs),
    /// Stop containers: a signal, and KILL after a while
    Stop(life::StopArgs),
    /// Stop containers and start them again
    Restart(life::StopArgs),
    /// Send a signal to containers
    Kill(life::KillArgs),
    /// Change the limits of containers
    Update(update::Args),
    /// Give a container another name
    Rename(rename::Args),
    /// Freeze containers
    Pause(life::Names),
    /// Thaw containers
    Unpause(life::Names),
    /// Wait until containers have ended, and print their exit codes
    Wait(life::Names),
    /// Remove containers
    #[command(alias = "remove")]
    Rm(life::RmArgs),
    /// List containers
    #[command(visible_alias = "list", alias = "ls")]
    Ps(list::PsArgs),
    /// Print what a container printed
    Logs(logs::Args),
    /// Run one more program in a container
    Exec(exec::Args),
    /// Copy files between a container and the host
    Cp(copy::Args),
    /// Write a container's files as a tar
    Export(export::Args),
    /// Print what a container changed of its image's files
    Diff(changes::DiffArgs),
    /// Make an image of a container
    Commit(changes::CommitArgs),
    /// Connect with a container's input and output
    Attach(run::AttachArgs),
    /// Print all that is known of containers
    Inspect(inspect::Args),
    /// Print the ports that a container publishes
    Port(inspect::PortArgs),
    /// List a container's processes
    Top(inspect::TopArgs),
    /// Print what containers use
    Stats(inspect::StatsArgs),
    /// Print what happens to containers
    Events(logs::EventsArgs),
}

/// `cofferdam container COMMAND`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Group {
    #[command(flatten)]
    Any(Command),
    /// Remove all containers that do not run
    Prune(prune::Args),
}

/// What most of these end with: an exit code, or an error with Docker's code for it.
pub(super) type Outcome = Result<u8, Failed>;

/// An error, and the exit code that says which.
#[derive(Debug)]
pub(super) struct Failed {
    code: u8,
    error: Box<dyn Error>,
}

impl<E: Error + 'static> From<E> for Failed {
    fn from(error: E) -> Self {
        Self {
            code: EXIT_FAILED,
            error: Box::new(error),
        }
    }
}

/// Does it.
pub(super) fn group(group: Group) -> Outcome {
    match group {
        Group::Any(Command::Inspect(args)) => plain(inspect::inspect(&args.containers())),
        Group::Any(command) => run(command),
        Group::Prune(args) => plain(prune::prune(&args)),
    }
}

/// Does it. Of those that run nothing of the user's, a failure of ours is no exit code of his.
pub(super) fn run(command: Command) -> Outcome {
    let is_run = matches!(command, Command::Run(_));
    match is_run {
        true => carry_out(command),
        false => plain(carry_out(command)),
    }
}

/// A failure of ours of a command that runs nothing of the user's: 1, as with Docker.
pub(super) fn plain(outcome: Outcome) -> Outcome {
    outcome.map_err(|failed| match failed.code {
        EXIT_FAILED => Failed { code: 1, ..failed },
        _ => failed,
    })
}

fn carry_out(command: Command) -> Outcome {
    match command {
        Command::Run(args) => run::run(*args),
        Command::Create(args) => run::create(*args),
        Command::Start(args) => run::start(&args),
        Command::Stop(args) => life::stop(&args),
        Command::Restart(args) => life::restart(&args),
        Command::Kill(args) => life::kill(&args),
        Command::Pause(names) => life::pause(&names),
        Command::Unpause(names) => life::unpause(&names),
        Command::Wait(names) => life::wait(&names),
        Command::Rm(args) => life::rm(&args),
        Command::Ps(args) => list::ps(&args),
        Command::Logs(args) => logs::logs(&args),
        Command::Exec(args) => exec::exec(&args),
        Command::Cp(args) => copy::cp(&args),
        Command::Diff(args) => changes::diff(&args),
        Command::Commit(args) => changes::commit(&args),
        Command::Attach(args) => run::attach(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Port(args) => inspect::port(&args),
        Command::Top(args) => inspect::top(&args),
        Command::Stats(args) => inspect::stats(&args),
        Command::Events(args) => logs::events(&args),
        Command::Update(args) => update::update(&args),
        Command::Rename(args) => rename::rename(&args),
        Command::Export(args) => export::export(&args),
    }
}

/// How the program ends.
pub(super) fn end(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(Failed { code, error }) => fail(error.as_ref(), code),
    }
}

/// Does something for each of several containers; a failure of one keeps none from the others.
fn each(names: &[String], mut work: impl FnMut(&str) -> Result<(), Failed>) -> Outcome {
    let mut code = 0;
    for name in names {
        if let Err(failed) = work(name) {
            eprintln!("cofferdam: {}", crate::describe(failed.error.as_ref()));
            code = 1;
        }
    }
    Ok(code)
}

/// Prints lines. A reader that closed the pipe has seen enough.
pub(super) fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A signal by its name, with or without SIG, or by its number.
pub(crate) fn signal(text: &str) -> Result<i32, String> {
    let bad = || format!("there is no signal {text:?}");
    if let Ok(number) = text.parse::<i32>() {
        // With real-time signals.
        return (1..=64).contains(&number).then_some(number).ok_or_else(bad);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    if let Some(offset) = name
        .strip_prefix("SIGRTMIN+")
        .and_then(|n| n.parse::<i32>().ok())
    {
        return (0..=30)
            .contains(&offset)
            .then_some(34 + offset)
            .ok_or_else(bad);
    }
    name.parse::<Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, containers get another signal than was asked for.
    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("KILL", 9), ("sigterm", 15), ("1", 1), ("SIGRTMIN+3", 37)] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "-1", "NONE", "SIGRTMIN+99"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
