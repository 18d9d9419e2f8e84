//! The command line of container mode: a file a subject.

mod image;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Docker's exit code for a failure of ours, not of the container's.
pub const EXIT_FAILED: u8 = 125;

/// Containers that each have a kernel of their own.
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
    Image(image::Command),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Image(command) => image::run(command),
    }
}

/// Says on standard error what went wrong and why, in one line, and gives the exit code.
fn fail(error: &dyn Error, code: u8) -> ExitCode {
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
    eprintln!("cofferdam: {text}");
    ExitCode::from(code)
}
