//! The log: one line a record, to standard error or a file. What a guest can trigger often is
//! written a few times and then counted, so that a guest cannot fill the host's disk.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_devices::console::terminal;
use log::{LevelFilter, Log, Metadata, Record};

use super::start;
use crate::config::{LogConfig, LogLevel};

/// Records that one place in the code may write in one `WINDOW`.
const BURST: u32 = 10;
/// The window that `BURST` counts in.
const WINDOW: Duration = Duration::from_secs(5);

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log file cannot be opened.
    #[error("cannot write the log {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The log is set up twice.
    #[error("the log is set up already")]
    Twice(#[from] log::SetLoggerError),
}

/// Sets up the process's log.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let sink = config.file.as_deref().map(open).transpose()?;
    log::set_boxed_logger(Box::new(Logger {
        sink,
        seen: Mutex::default(),
    }))?;
    log::set_max_level(match config.level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    });
    Ok(())
}

fn open(path: &Path) -> Result<File, LogError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|source| LogError::Open {
            path: path.to_owned(),
            source,
        })
}

/// A place in the code: file and line.
type Place = (&'static str, u32);

struct Logger {
    sink: Option<File>,
    seen: Mutex<HashMap<Place, Rate>>,
}

/// How often a place has written in its current window.
#[derive(Debug)]
struct Rate {
    since: Instant,
    written: u32,
    dropped: u32,
}

/// What to do with a record.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Write it, and say how many were left out before it.
    Write { dropped: u32 },
    /// Leave it out.
    Drop,
}

impl Rate {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            written: 0,
            dropped: 0,
        }
    }

    fn admit(&mut self, now: Instant) -> Verdict {
        if now.duration_since(self.since) >= WINDOW {
            (self.since, self.written) = (now, 0);
        }
        if self.written >= BURST {
            self.dropped = self.dropped.saturating_add(1);
            return Verdict::Drop;
        }
        self.written += 1;
        Verdict::Write {
            dropped: std::mem::take(&mut self.dropped),
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let place = (
            record.file_static().unwrap_or_default(),
            record.line().unwrap_or_default(),
        );
        let now = Instant::now();
        let verdict = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.entry(place)
                .or_insert_with(|| Rate::new(now))
                .admit(now)
        };
        let Verdict::Write { dropped } = verdict else {
            return;
        };
        let mut line = format!(
            "[{:>10.6} {:<5} {}] {}",
            now.duration_since(start()).as_secs_f64(),
            record.level(),
            record.target(),
            record.args()
        );
        if dropped > 0 {
            line.push_str(&format!(" ({dropped} more like it were left out)"));
        }
        // On a raw terminal a line feed alone does not go back to the first column.
        let is_raw = self.sink.is_none() && terminal::is_raw();
        line.push_str(if is_raw { "\r\n" } else { "\n" });
        // There is nobody to tell that the log itself cannot be written.
        let _ = match &self.sink {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => io::stderr().lock().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a guest can fill the host's disk with our log, or hide that it tried.
    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        for _ in 0..BURST {
            assert_eq!(rate.admit(start), Verdict::Write { dropped: 0 });
        }
        for _ in 0..1000 {
            assert_eq!(rate.admit(start + WINDOW / 2), Verdict::Drop);
        }
        assert_eq!(rate.admit(start + WINDOW), Verdict::Write { dropped: 1000 });
        assert_eq!(rate.admit(start + WINDOW), Verdict::Write { dropped: 0 });
    }
}
