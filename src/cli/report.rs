//! What people are told of failures: one line on standard error, and an exit code.

use std::error::Error;
use std::process::ExitCode;

use clap::error::ErrorKind;

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

/// Says, in two lines, what is wrong with the command line, and gives the exit code. Help that was asked for
/// is printed, and the process ends.
pub fn refuse(error: &clap::Error, code: u8) -> ExitCode {
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
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join(" ").replace(" tip:", "; tip:");
    eprintln!("cofferdam: {}", visible(said.trim_start_matches("error: ")));
    eprintln!("Try '--help' for what there is.");
    ExitCode::from(code)
}
