//! `cofferdam fsd`: the file-system process that `cofferdam boot --fs` starts.

use std::path::PathBuf;
use std::process::ExitCode;

use cofferdam_fsd::Share;

use super::fail;
use crate::vm::EXIT_HOST;

/// Serve directories to a guest, from a sandbox; 'cofferdam boot --fs' starts this process
///
/// Standard input is a Unix socket, over which the process sends one end of a vhost-user connection
/// when it is ready, or says why it is not. It ends when that connection does.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory (repeatable): [name=NAME,][ro,]path=DIR
    #[arg(long = "share", value_name = "path=DIR", value_parser = share, required = true)]
    shares: Vec<Share>,
}

/// Reads a directory's options; the path is the last and may have commas in it.
fn share(text: &str) -> Result<Share, &'static str> {
    const FORM: &str = "expected [name=NAME,][ro,]path=DIR";
    let (mut ro, mut name, mut rest) = (false, None, text);
    loop {
        if let Some(path) = rest.strip_prefix("path=") {
            return Ok(Share {
                path: PathBuf::from(path),
                name,
                ro,
            });
        }
        let (option, others) = rest.split_once(',').ok_or(FORM)?;
        match option.split_once('=') {
            None if option == "ro" => ro = true,
            Some(("name", text)) => name = Some(text.to_owned()),
            _ => return Err(FORM),
        }
        rest = others;
    }
}

/// Serves until the monitor hangs up.
pub fn run(args: &Args) -> ExitCode {
    match cofferdam_fsd::run(&args.shares) {
        Ok(()) => ExitCode::SUCCESS,
        // The monitor has been told, and tells the user, if there is one.
        Err(cofferdam_fsd::FsdError::Socket(error)) => {
            fail(&cofferdam_fsd::FsdError::Socket(error), EXIT_HOST)
        }
        Err(_) => ExitCode::from(EXIT_HOST),
    }
}
