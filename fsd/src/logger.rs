//! What the process says: warnings to standard error, so few that a guest that makes them on
//! purpose fills nobody's disk.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};

/// Lines that may come in each [`WINDOW`].
const LINES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);

struct Logger {
    sink: File,
    /// When the last window began, and how many lines came in it.
    window: Mutex<(Instant, u32)>,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, lines) = &mut *window;
        if start.elapsed() > WINDOW {
            (*start, *lines) = (Instant::now(), 0);
        }
        *lines = lines.saturating_add(1);
        if *lines <= LINES {
            // Names of the guest's choice are in it: nothing that a terminal obeys.
            let text = record.args().to_string();
            let text: String = text
                .chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .take(500)
                .collect();
            // There is nobody to tell that it cannot be said.
            let _ = (&self.sink).write_all(format!("cofferdam fsd: {text}\n").as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Sets up the process's log. Nothing else reaches standard error from here on: what virtiofsd
/// prints there has no limit.
pub fn init() -> io::Result<()> {
    let stderr: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?;
    rustix::stdio::dup2_stderr(&File::options().write(true).open("/dev/null")?)?;
    let logger = Logger {
        sink: stderr.into(),
        window: Mutex::new((Instant::now(), 0)),
    };
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)?;
    log::set_max_level(LevelFilter::Warn);
    // A thread that panics leaves its queue to nobody: better that the guest gets I/O errors.
    std::panic::set_hook(Box::new(|panic| {
        log::error!("{panic}");
        std::process::abort();
    }));
    Ok(())
}
