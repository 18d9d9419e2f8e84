//! The command line, as runc has it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use super::report::Report;
use super::store::Store;
use super::{control, create, exec, look, shim};

/// What the program is called when it is the runtime.
pub const NAME: &str = "cofferdam-runc";
/// Exit code of a command that failed.
const FAILED: u8 = 1;
/// Exit code of an `exec` that failed before there was a process.
const EXEC_FAILED: u8 = 255;

/// Runs containers by the OCI runtime specification, each in a VM
#[derive(Debug, Parser)]
#[command(name = NAME, bin_name = NAME, disable_version_flag = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options before the command.
#[derive(Clone, Debug, Args)]
pub(super) struct Global {
    /// Say more in the log
    #[arg(long)]
    pub debug: bool,
    /// Write errors to a file, too
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// The format of that file
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub log_format: String,
    /// Where the state of containers is [default: runc below the run directory]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// cgroupsPath is as systemd's driver has it: SLICE:PREFIX:NAME
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Taken for runc's sake: who may what is the host's business
    #[arg(long, value_name = "WHETHER", hide = true)]
    pub rootless: Option<String>,
    /// Taken for runc's sake: there are no checkpoints
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<PathBuf>,
}

impl Global {
    /// What there is below `--root`.
    pub(super) fn store(&self) -> Store {
        let default = || crate::paths::run().join("runc");
        Store::at(self.root.clone().unwrap_or_else(default))
    }

    pub(super) fn report(&self) -> Report {
        Report {
            log: self.log.clone(),
            json: self.log_format == "json",
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a container in a VM; its process waits for start
    Create(create::Args),
    /// Run the process of a container that was made
    Start(control::Id),
    /// Make a container, run it, and stay with it
    Run(create::RunArgs),
    /// Print the state of a container
    State(control::Id),
    /// Send a signal to a container's process
    Kill(control::KillArgs),
    /// Remove a container and all that was made for it
    Delete(control::DeleteArgs),
    /// Run one more process in a container
    Exec(exec::Args),
    /// Show the processes of a container
    Ps(look::PsArgs),
    /// Show all containers
    List(look::ListArgs),
    /// Freeze a container
    Pause(control::Id),
    /// Thaw it
    Resume(control::Id),
    /// Set a container's limits
    Update(control::UpdateArgs),
    /// Print what happens to a container, and what it uses
    Events(look::EventsArgs),
    /// Print what this runtime can do
    Features,
    /// Write a config.json to begin with
    Spec(look::SpecArgs),
    /// The process that stands for a container
    #[command(hide = true)]
    Shim(shim::Args),
    /// The process that stands for one more process in a container
    #[command(hide = true)]
    ExecShim(shim::ExecArgs),
}

pub(super) fn main(args: Vec<OsString>) -> ExitCode {
    let version = args
        .iter()
        .take(1)
        .any(|arg| arg == "--version" || arg == "-v");
    if version {
        println!(
            "{NAME} version {}\nspec: {}",
            env!("CARGO_PKG_VERSION"),
            oci_spec::runtime::VERSION
        );
        return ExitCode::SUCCESS;
    }
    let all = std::iter::once(OsString::from(NAME)).chain(args);
    let Cli { global, command } = match Cli::try_parse_from(all) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { FAILED } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let done = |result: Result<(), super::control::Error>| result.map(|()| ExitCode::SUCCESS);
    let failed = match &command {
        Command::Exec(_) => EXEC_FAILED,
        _ => FAILED,
    };
    let result = match command {
        Command::Create(args) => done(create::create(&global, &args).map_err(Into::into)),
        Command::Run(args) => create::run(&global, &args).map_err(Into::into),
        Command::Exec(args) => exec::exec(&global, &args).map_err(Into::into),
        Command::Shim(args) => return shim::main(&args),
        Command::ExecShim(args) => return shim::exec_main(&args),
        Command::Start(id) => done(control::start(&global, &id)),
        Command::State(id) => done(control::state(&global, &id)),
        Command::Kill(args) => done(control::kill(&global, &args)),
        Command::Delete(args) => done(control::delete(&global, &args)),
        Command::Ps(args) => done(look::ps(&global, &args)),
        Command::List(args) => done(look::list(&global, &args)),
        Command::Pause(id) => done(control::pause(&global, &id, true)),
        Command::Resume(id) => done(control::pause(&global, &id, false)),
        Command::Update(args) => done(control::update(&global, &args)),
        Command::Events(args) => done(look::events(&global, &args)),
        Command::Features => done(look::features()),
        Command::Spec(args) => done(look::spec(&args)),
    };
    result.unwrap_or_else(|error| {
        global.report().error(&crate::describe(&error));
        ExitCode::from(failed)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// If it fails, the command line contradicts itself and panics when it is used.
    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// If it fails, an engine's call is taken for a mistake.
    #[test]
    fn calls_of_engines_are_understood() {
        for line in [
            "--systemd-cgroup create --bundle /b --pid-file /p --console-socket /c --no-pivot id",
            "--root /r --log /l --log-format json create --bundle /b --pid-file /p \
             --no-new-keyring --preserve-fds 0 id",
            "--root /r --log /l --log-format json exec --process /p.json --detach --pid-file /x id",
            "exec -t -e A=b --cwd / --user 1:2 id sh -c true",
            "kill --all id KILL",
            "kill id 9",
            "delete --force id",
            "ps --format json id",
            "update --resources - id",
            "update --memory 100M --memory-swap -1 --cpu-burst 0 --cpuset-cpus 0-1 --blkio-weight 9 id",
            "events --stats id",
            "run --detach id",
            "--log-format=json --log=/x state id",
            "list -q -f json",
        ] {
            let args = std::iter::once(NAME).chain(line.split_whitespace());
            if let Err(error) = Cli::try_parse_from(args) {
                panic!("{line}: {error}");
            }
        }
    }
}
