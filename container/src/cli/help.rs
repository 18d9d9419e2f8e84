//! All commands of both programs, by what they are about: the help, manual pages and completions that a
//! user sees. Which program carries a command out is no affair of the user's.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::builder::styling::Styles;
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;
use cofferdam::cli::report::fail;

use super::EXIT_FAILED;

/// Of these there are several kinds, and each command is in one.
const GROUPS: [(&str, &[&str]); 6] = [
    (
        "Containers",
        &[
            "run",
            "create",
            "start",
            "stop",
            "restart",
            "kill",
            "pause",
            "unpause",
            "wait",
            "update",
            "rename",
            "rm",
            "ps",
            "container",
        ],
    ),
    (
        "What is in them",
        &[
            "exec", "attach", "logs", "cp", "export", "diff", "commit", "inspect", "port", "top",
            "stats", "events",
        ],
    ),
    (
        "Images",
        &[
            "pull", "push", "images", "load", "save", "import", "tag", "history", "rmi", "prune",
            "login", "logout", "image",
        ],
    ),
    ("Volumes and networks", &["volume", "network"]),
    ("VMs without containers", &["boot"]),
    (
        "This host, and this program",
        &[
            "doctor",
            "info",
            "system",
            "compare",
            "version",
            "completions",
            "man",
            "help",
        ],
    ),
];

const EXAMPLES: &str =
    "  cofferdam run -it busybox                      a shell in a container with a kernel of its own
  cofferdam run -d --name web -p 8080:80 nginx   a server, in the background
  cofferdam boot                                 a VM: the default guest, on this terminal";

/// The commands of containers with those of the monitor.
pub(super) fn all(containers: Command) -> Command {
    let mut program = merge(containers);
    // Gives the subcommands their full names, and makes `help` one of them.
    program.build();
    let text = overview(&program);
    program.help_template(text)
}

fn merge(containers: Command) -> Command {
    let monitor = cofferdam::cli::command();
    let shared = monitor
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .cloned();
    let names = GROUPS.iter().flat_map(|(_, names)| *names);
    let page = Arg::new("command")
        .help("The command that the page is of; the program, if none is named")
        .value_parser(PossibleValuesParser::new(names));
    containers
        .subcommands(shared)
        .mut_subcommand("man", |man| man.mut_arg("command", |_| page))
}

/// Whether a command of that name is the monitor's, which has exit codes of its own.
pub(super) fn is_the_monitors(name: Option<OsString>) -> bool {
    name.is_some_and(|name| cofferdam::cli::command().find_subcommand(name).is_some())
}

/// Every command in a line, below what it is about.
fn overview(program: &Command) -> String {
    let header = Styles::styled();
    let header = header.get_header();
    let about = program.get_about().map(ToString::to_string);
    let mut text = about.unwrap_or_default();
    let _ = write!(
        text,
        "\n\n{header}Usage:{header:#} cofferdam COMMAND [OPTION...]\n\n{EXAMPLES}\n"
    );
    for (group, names) in GROUPS {
        let _ = write!(text, "\n{header}{group}:{header:#}\n");
        for name in names {
            let about = program
                .find_subcommand(name)
                .and_then(Command::get_about)
                .map(ToString::to_string);
            let _ = writeln!(text, "  {name:<12} {}", about.unwrap_or_default());
        }
    }
    let _ = write!(
        text,
        "\n{header}Options:{header:#}\n{{options}}\n\n'cofferdam COMMAND --help' says more of a command."
    );
    text
}

/// Prints what is written for readers: a page of the manual, or what a shell completes.
pub(super) fn print(containers: Command, name: &str, matches: &ArgMatches) -> ExitCode {
    let mut text = Vec::new();
    if name == "man" {
        let of = matches.get_one::<String>("command");
        let program = all(containers);
        let command = of.and_then(|of| program.find_subcommand(of).cloned());
        let page = clap_mangen::Man::new(command.unwrap_or(program));
        if let Err(error) = page.render(&mut text) {
            return fail(&error, EXIT_FAILED);
        }
    } else if let Some(shell) = matches.get_one::<Shell>("shell") {
        // Half of it would be `help` with all commands behind it.
        let mut program = merge(containers).disable_help_subcommand(true);
        clap_complete::generate(*shell, &mut program, "cofferdam", &mut text);
    }
    match io::stdout().write_all(&text) {
        // Who closed the pipe has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&error, EXIT_FAILED),
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    /// If it fails, a command is nowhere in the help, or twice.
    #[test]
    fn each_command_is_in_one_group() {
        let program = all(Cli::command());
        let there: BTreeSet<&str> = program
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
            .map(Command::get_name)
            .collect();
        let shown: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        assert_eq!(shown.len(), there.len());
        assert_eq!(shown.into_iter().collect::<BTreeSet<_>>(), there);
    }

    /// If it fails, whoever types `cofferdam --help` does not find how to run a container, or a VM.
    #[test]
    fn the_help_shows_all() {
        let text = all(Cli::command()).render_help().to_string();
        for line in [
            "  run          Run an image",
            "  boot         Boot a Linux",
            "-h, --help",
        ] {
            assert!(text.contains(line), "{text}");
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            let mut program = merge(Cli::command());
            clap_complete::generate(shell, &mut program, "cofferdam", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("publish") && script.contains("cpu-template"));
        }
        let page = |name: &str| {
            let program = all(Cli::command());
            let man = program.find_subcommand(name).unwrap().clone();
            let mut page = Vec::new();
            clap_mangen::Man::new(man).render(&mut page).unwrap();
            String::from_utf8(page).unwrap()
        };
        assert!(page("boot").contains("kernel") && page("run").contains("publish"));
    }
}
