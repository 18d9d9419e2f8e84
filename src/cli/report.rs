//! What people are told of failures: one line on standard error, and an exit code.

use std::error::Error;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::text::visible;

/// What went wrong and why, in one line; who chose parts of it has no say over a terminal.
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // An error that only passes on its source's words would say them twice.
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    visible(&text)
}

/// Says what went wrong, and gives the exit code.
pub fn fail(error: &dyn Error, code: u8) -> ExitCode {
    eprintln!("cofferdam: {}", describe(error));
    ExitCode::from(code)
}

/// Says, in two lines, what is wrong with the command line of `program`, and gives the exit code. Help that
/// was asked for is printed, and the process ends.
pub fn refuse(program: &clap::Command, error: &clap::Error, code: u8) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        error.exit();
    }
    let text = error.to_string();
    let said: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        // Those guess too boldly, and one is how to pass on what nobody wants to pass on.
        .filter(|line| !line.is_empty() && !line.starts_with("tip:"))
        .collect();
    let said = said.join(" ");
    let said = visible(said.trim_start_matches("error: "));
    let words = std::env::args().skip(1);
    match meant(program, error, words) {
        Some(meant) => eprintln!("cofferdam: {said}; did you mean {meant}?"),
        None => eprintln!("cofferdam: {said}"),
    }
    eprintln!("Try '--help' for what there is.");
    ExitCode::from(code)
}

/// The command or option that somebody most likely meant, if there is one that looks much like it. `words`:
/// the command line, which says the options of which command there are.
fn meant(
    program: &clap::Command,
    error: &clap::Error,
    words: impl Iterator<Item = String>,
) -> Option<String> {
    let wrong = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let mut command = program;
    for word in words {
        match command.find_subcommand(word) {
            Some(below) => command = below,
            None => break,
        }
    }
    let (wrong, there): (String, Vec<String>) = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let all = command.get_subcommands().filter(|one| !one.is_hide_set());
            let names =
                all.flat_map(|one| std::iter::once(one.get_name()).chain(one.get_all_aliases()));
            (
                wrong(ContextKind::InvalidSubcommand)?,
                names.map(str::to_owned).collect(),
            )
        }
        ErrorKind::UnknownArgument => {
            let all = command.get_arguments().filter(|one| !one.is_hide_set());
            let names = all.filter_map(|one| Some(format!("--{}", one.get_long()?)));
            (wrong(ContextKind::InvalidArg)?, names.collect())
        }
        _ => return None,
    };
    let letters = |name: &str| name.trim_start_matches('-').chars().count();
    let distance = |name: &String| strsim::osa_distance(name, &wrong);
    let nearest = there.into_iter().min_by_key(distance)?;
    // A wrong letter in three: more is another word.
    (distance(&nearest) * 3 <= letters(&wrong)).then(|| format!("'{nearest}'"))
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    /// If it fails, whoever mistypes something is not told of what he meant, or of something else.
    #[test]
    fn guesses_are_near() {
        let option = |name: &'static str| clap::Arg::new(name).long(name);
        let program = Command::new("cofferdam")
            .subcommand(Command::new("run").args(["detach", "dns-search", "cpus"].map(option)))
            .subcommand(Command::new("logs"))
            .subcommand(Command::new("load"));
        for (line, expected) in [
            ("rnu", Some("'run'")),
            ("login", None),
            ("run --dettach", Some("'--detach'")),
            ("run --cpu", Some("'--cpus'")),
            ("run --privileged", None),
        ] {
            let words = line.split(' ').map(str::to_owned);
            let all = std::iter::once("cofferdam".to_owned()).chain(words.clone());
            let error = program.clone().try_get_matches_from(all).unwrap_err();
            assert_eq!(
                meant(&program, &error, words).as_deref(),
                expected,
                "{line}"
            );
        }
    }
}
