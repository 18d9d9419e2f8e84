//! The command line: one file a subcommand. What the user types becomes a configuration.

mod boot;
mod doctor;
pub mod report;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::report::{fail, refuse};
use crate::companion;
use crate::vm::{EXIT_HOST, EXIT_MONITOR, EXIT_USAGE, fsd};

/// A KVM microVM monitor: runs a Linux guest behind hardware walls, started in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "cofferdam", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a Linux guest and stay with it until it ends.
    Boot(Box<boot::Args>),
    /// Say whether this host can run VMs, by trying.
    Doctor(doctor::Args),
    /// Serve directories to a guest, from a sandbox; 'cofferdam fsd --help' says more.
    #[command(hide = true, disable_help_flag = true, disable_version_flag = true)]
    Fsd {
        /// What the program that does it is given.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Everything about containers and their images.
    #[command(external_subcommand)]
    Container(Vec<OsString>),
    /// Print a completion script for a shell.
    Completions {
        /// The shell that the script is for.
        shell: clap_complete::Shell,
    },
    /// Print a manual page (for `man -l -`).
    Man {
        /// The command that the page is of; the program, if none is named.
        #[arg(value_parser = ["boot", "doctor"])]
        command: Option<String>,
    },
}

/// The program beside this one that is container mode. It knows which commands there are.
const CONTAINER: &str = "cofferdam-container";

/// What a link to this program is called that is the OCI runtime, and that command of container mode's.
const RUNTIME: (&str, &str) = ("cofferdam-runc", "runc");

/// The commands of this program, for whoever shows them with their own.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Whether a command line asks for all that there is, which container mode's program knows.
fn is_about_all(args: &[OsString]) -> bool {
    match args {
        [] => true,
        [first, ..] => ["--help", "-h", "help", "completions", "man"]
            .iter()
            .any(|word| first == word),
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(RUNTIME.0.as_ref()) {
        let args: Vec<OsString> = std::iter::once(RUNTIME.1.into()).chain(args).collect();
        let Err(error) = companion::exec(CONTAINER, &args);
        return fail(&error, EXIT_HOST);
    }
    let args: Vec<OsString> = args.collect();
    if is_about_all(&args) && companion::find(CONTAINER).is_ok() {
        let Err(error) = companion::exec(CONTAINER, &args);
        return fail(&error, EXIT_HOST);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&Cli::command(), &error, EXIT_USAGE),
    };
    match cli.command {
        Command::Boot(args) => boot::run(*args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Fsd { args } => {
            let Err(error) = companion::exec(fsd::PROGRAM, &args);
            fail(&error, EXIT_HOST)
        }
        Command::Container(args) => {
            let Err(error) = companion::exec(CONTAINER, &args);
            fail(&error, EXIT_HOST)
        }
        Command::Completions { shell } => {
            let (mut command, mut script) = (Cli::command(), Vec::new());
            clap_complete::generate(shell, &mut command, "cofferdam", &mut script);
            print(&script)
        }
        Command::Man { command } => {
            let mut page = Vec::new();
            match clap_mangen::Man::new(documented(command.as_deref())).render(&mut page) {
                Ok(()) => print(&page),
                Err(error) => fail(&error, EXIT_MONITOR),
            }
        }
    }
}

/// The program, or the subcommand of it that is named, as a manual page has it.
fn documented(name: Option<&str>) -> clap::Command {
    let mut program = Cli::command();
    // Gives the subcommands their full names.
    program.build();
    match name.and_then(|name| program.find_subcommand(name)) {
        Some(command) => command.clone(),
        None => program,
    }
}

/// Prints what was asked for. A reader that closed the pipe has seen enough.
fn print(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&error, EXIT_MONITOR),
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, the command line contradicts itself and panics when it is used.
    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
