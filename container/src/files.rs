//! What goes wrong with files and directories of ours.

use std::io;
use std::path::{Path, PathBuf};

/// Something that was tried with a file or a directory, and failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct FileError {
    /// What was tried: "cannot read".
    pub action: &'static str,
    /// With what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Says what was tried, and with what, of an error of the file system's.
pub fn file<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError {
        action,
        path: path.to_owned(),
        source,
    }
}
