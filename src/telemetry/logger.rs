//! The log: one line a record, to standard error or a file. What a guest can trigger is limited
//! where it is logged, in the devices.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cofferdam_devices::console::terminal;
use log::{LevelFilter, Log, Metadata, Record};

use super::start;
use crate::config::{LogConfig, LogLevel};
use crate::text::visible;

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
    log::set_boxed_logger(Box::new(Logger { sink }))?;
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

struct Logger {
    sink: Option<File>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What this crate says of a guest's rings the guest decides, as often as it likes; our
        // devices say it themselves, with a limit.
        metadata.level() <= log::max_level() && !metadata.target().starts_with("virtio_queue")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = format!(
            "[{:>10.6} {:<5} {}] {}",
            start().elapsed().as_secs_f64(),
            record.level(),
            record.target(),
            visible(&record.args().to_string())
        );
        // On a raw terminal a line feed alone does not go back to the first column.
        let is_raw = self.sink.is_none() && terminal::is_raw();
        line.push('\n');
        if is_raw {
            line = line.replace('\n', "\r\n");
        }
        // There is nobody to tell that the log itself cannot be written.
        let _ = match &self.sink {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => io::stderr().lock().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}
