//! How errors and warnings are said to engines: a line on standard error, and one in the file that they named.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use crate::state::Now;

/// Where errors go.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// The engine's file.
    pub log: Option<PathBuf>,
    /// It wants JSON.
    pub json: bool,
}

impl Report {
    /// Says it everywhere. Engines look for the last error.
    pub(super) fn error(&self, message: &str) {
        self.say("error", message);
    }

    /// Says what is not as it was wished for.
    pub(super) fn warning(&self, message: &str) {
        self.say("warning", message);
    }

    fn say(&self, level: &str, message: &str) {
        let time = Now::text();
        let text = format!("time={time:?} level={level} msg={message:?}");
        // Nobody is left to be told what cannot be said.
        let _ = writeln!(std::io::stderr(), "{text}");
        let Some(path) = &self.log else { return };
        let line = match self.json {
            true => serde_json::json!({"level": level, "msg": message, "time": time}).to_string(),
            false => text,
        };
        let file = File::options().append(true).create(true).open(path);
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }
}
