//! What happens to containers, for `events`: lines of JSON in a file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Record;
use crate::log_file::older;
use crate::paths;

/// Where a file of events is left for a new one, in bytes.
const LONGEST: u64 = 1 << 20;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since 1970.
    pub time_ns: i128,
    /// What: create, start, die, …
    pub action: String,
    /// The container's ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its image's name.
    pub image: String,
    /// How it ended, of `die`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// The file of events.
#[derive(Clone, Copy, Debug)]
pub struct Events;

impl Events {
    /// Where it is.
    pub fn path() -> PathBuf {
        paths::run().join("events")
    }

    /// Writes one more. What cannot be written is lost: nothing depends on it.
    pub fn write(record: &Record, action: &str, exit_code: Option<i32>) {
        let event = Event {
            time_ns: OffsetDateTime::now_utc().unix_timestamp_nanos(),
            action: action.to_owned(),
            id: record.id.clone(),
            name: record.name.clone(),
            image: record.options.image.clone(),
            exit_code,
        };
        if let Err(error) = append(&event) {
            log::warn!("an event is lost: {error}");
        }
    }
}

fn append(event: &Event) -> io::Result<()> {
    let path = Events::path();
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    if fs::metadata(&path).is_ok_and(|file| file.len() > LONGEST) {
        fs::rename(&path, older(&path, 1))?;
    }
    // One write: lines of several writers do not mix.
    File::options()
        .create(true)
        .append(true)
        .open(path)?
        .write_all(&line)
}
