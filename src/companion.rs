//! Programs that lie beside this one. What needs much code and no VM is a program of its own: the
//! monitor of every VM would carry it otherwise.

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why a program beside this one does not run.
#[derive(Debug, thiserror::Error)]
pub enum CompanionError {
    /// The host does not say which file this program is.
    #[error("cannot tell where this program lies (is /proc mounted?)")]
    Own(#[source] io::Error),
    /// It is not there.
    #[error(
        "there is no {program}, which belongs beside {own}; 'make build' in the source tree builds \
         both: install them into one directory"
    )]
    Missing {
        /// Where it should be.
        program: PathBuf,
        /// This program.
        own: PathBuf,
    },
    /// It is there, and cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The program called `name` beside this one: in the same directory, links followed.
pub fn find(name: &str) -> Result<PathBuf, CompanionError> {
    beside(env::current_exe().map_err(CompanionError::Own)?, name)
}

fn beside(own: PathBuf, name: &str) -> Result<PathBuf, CompanionError> {
    let program = own.with_file_name(name);
    if Path::is_file(&program) {
        Ok(program)
    } else {
        Err(CompanionError::Missing { program, own })
    }
}

/// Becomes the program called `name` beside this one. Returns only if it cannot.
pub fn exec(name: &str, args: &[OsString]) -> Result<Infallible, CompanionError> {
    let program = find(name)?;
    let source = Command::new(&program).args(args).exec();
    Err(CompanionError::Run { program, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a program is looked for in the wrong place, or a lonely one does not say what it
    /// misses and where.
    #[test]
    fn programs_are_looked_for_beside_ours() {
        let own = env::current_exe().unwrap();
        let name = own.file_name().unwrap().to_str().unwrap();
        assert_eq!(find(name).unwrap(), own);
        // What the kernel says of a program whose file is gone.
        let gone = own.with_file_name("cofferdam (deleted)");
        assert_eq!(beside(gone, name).unwrap(), own);
        let error = find("cofferdam-nothing").unwrap_err().to_string();
        let missing = own.with_file_name("cofferdam-nothing");
        for path in [missing, own] {
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }
}
