//! The command line of container mode: a file a subject.

mod absent;
mod ask;
mod compare;
mod container;
mod format;
mod help;
mod image;
mod login;
mod system;
mod when;

use std::ffi::OsStr;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use cofferdam::cli::report::{fail, refuse};
use cofferdam::vm::EXIT_USAGE;

pub(crate) use self::container::{Changed, Signals, signal};
use self::container::{end, plain};
use crate::shim;

/// Docker's exit code for a failure of ours, not of the container's.
pub const EXIT_FAILED: u8 = 125;

/// Containers and virtual machines, each with a kernel of its own behind hardware walls.
#[derive(Debug, Parser)]
#[command(
    name = "cofferdam",
    bin_name = "cofferdam",
    version,
    propagate_version = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Container(container::Command),
    #[command(flatten)]
    Image(image::Command),
    /// Make, list, inspect and remove networks
    #[command(subcommand)]
    Network(container::network::Command),
    /// Make, list, change, inspect and remove volumes
    #[command(subcommand)]
    Volume(container::volume::Command),
    /// All commands about containers
    #[command(name = "container", subcommand)]
    ContainerGroup(container::Group),
    /// What is there in all: disk space, events, clearing up
    #[command(subcommand)]
    System(system::Command),
    /// Show what is there in all
    Info(system::Show),
    /// Show the version
    Version(system::Show),
    /// Tell a registry who you are
    Login(login::Login),
    /// Forget who you are to a registry
    Logout(login::Logout),
    /// Measure an image as a process and in a VM, side by side
    Compare(compare::Args),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    cofferdam::descriptors::close_on_exec();
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(OsStr::to_str) {
        // A command line of its own, which is runc's and not Docker's.
        Some("runc") => return crate::runc::main(args.collect()),
        // Our own words to ourselves, on the way of every container's start: they need no parser.
        Some(shim::COMMAND) => return shim::main(args),
        _ => {}
    }
    let program = help::all(Cli::command());
    let parsed = program.clone().try_get_matches().and_then(|matches| {
        if let Some((name @ ("completions" | "man"), matches)) = matches.subcommand() {
            return Ok(Err(help::print(Cli::command(), name, matches)));
        }
        Cli::from_arg_matches(&matches).map(Ok)
    });
    match parsed {
        Ok(Err(printed)) => printed,
        Ok(Ok(cli)) => match cli.command {
            Command::Container(command) => end(container::run(command)),
            Command::ContainerGroup(command) => end(container::group(command)),
            Command::Network(command) => end(plain(container::network::run(command))),
            Command::Volume(command) => end(plain(container::volume::run(command))),
            Command::System(command) => end(plain(system::run(&command))),
            Command::Info(args) => end(plain(system::info(&args))),
            Command::Version(args) => end(plain(system::version(&args))),
            Command::Login(args) => end(plain(login::login(&args))),
            Command::Logout(args) => end(plain(login::logout(&args))),
            Command::Image(command) => image::run(command),
            Command::Compare(args) => compare::run(&args),
        },
        // A command that nobody knows is the monitor's usage error; what is wrong with one of ours, Docker's.
        Err(error) => {
            let code = match error.kind() {
                ErrorKind::InvalidSubcommand
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => EXIT_USAGE,
                _ if help::is_the_monitors(std::env::args_os().nth(1)) => EXIT_USAGE,
                _ => EXIT_FAILED,
            };
            match absent::instead(&error) {
                Some(text) => {
                    eprintln!("cofferdam: {text}");
                    ExitCode::from(code)
                }
                None => refuse(&program, &error, code),
            }
        }
    }
}
