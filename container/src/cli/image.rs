//! Commands about images.

use std::process::ExitCode;

/// What there is to do with images.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List images
    Images,
}

/// Does it.
pub(super) fn run(command: Command) -> ExitCode {
    match command {
        Command::Images => {
            let error = std::io::Error::other("there is no image store yet");
            super::fail(&error, super::EXIT_FAILED)
        }
    }
}
