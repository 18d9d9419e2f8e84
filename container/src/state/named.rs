//! Things that have names: each is a directory of that name, with its record in a JSON file.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::{StateError, is_name, load};
use crate::files::{FileError, file};

/// The record of that name, in the file `record` below `dir`; none if there is none.
pub fn find<T: DeserializeOwned>(
    dir: &Path,
    name: &str,
    record: &str,
) -> Result<Option<T>, StateError> {
    if !is_name(name) {
        return Ok(None);
    }
    match load(&dir.join(name).join(record)) {
        Err(error) if error.is_missing() => Ok(None),
        other => other.map(Some),
    }
}

/// All of them, by name. One that is only half made is none yet.
pub fn list<T: DeserializeOwned>(dir: &Path, record: &str) -> Result<Vec<T>, FileError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(file("cannot read", dir))?,
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let records = paths.iter().map(|path| load(&path.join(record)));
    Ok(records.filter_map(Result::ok).collect())
}
