//! What a container prints: into its log, and to all that are attached.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::journal::Journal;
use super::wire::Frame;
use crate::log_file::LogFile;
use crate::options::{LogDriver, OptionsError};
use crate::state::{Container, Now};

/// Frames that wait for a client that is slow; then the container waits for him, as with Docker.
const QUEUE: usize = 64;
/// Who may be attached at once: each takes descriptors and threads, of which a process has only so many.
const MAX_CLIENTS: usize = 128;
/// A longer line is several lines of the log, in bytes.
const MAX_LINE: usize = 16 << 10;

/// A line of the log: Docker's `json-file`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// What was printed, with its newline.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: Stream,
    /// When, as RFC 3339 has it.
    pub time: String,
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output; all output of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where lines are kept.
#[derive(Debug)]
pub enum Log {
    /// In the container's own files.
    File(LogFile),
    /// In the host's journal.
    Journal(Journal),
    /// Nowhere.
    Nothing,
}

impl Log {
    /// Goes on where a container's log ended.
    pub fn open(container: &Container) -> Result<Self, OpenError> {
        let options = &container.record.options;
        let failed = |what: String| move |source| OpenError::Open { what, source };
        Ok(match options.log_driver {
            LogDriver::None => Self::Nothing,
            LogDriver::Journald => {
                let opened = Journal::open(&container.record);
                Self::Journal(opened.map_err(failed("the host's journal".into()))?)
            }
            LogDriver::JsonFile => {
                let path = container.log();
                let opened = LogFile::open(&path, options.log_limit()?);
                Self::File(opened.map_err(failed(path.display().to_string()))?)
            }
        })
    }

    fn write(&mut self, stream: Stream, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Journal(journal) => journal.write(stream, text),
            Self::File(file) => {
                let line = LogLine {
                    log: String::from_utf8_lossy(text).into_owned(),
                    stream,
                    time: Now::text(),
                };
                let mut line = serde_json::to_vec(&line)?;
                line.push(b'\n');
                file.write(&line)
            }
        }
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// It cannot be opened.
    #[error("cannot open {what}")]
    Open {
        /// The log.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Where output goes.
#[derive(Debug)]
pub struct Output {
    log: Mutex<Log>,
    /// The last line was lost, and that was said.
    lost: AtomicBool,
    clients: Mutex<Clients>,
}

/// Who is attached.
#[derive(Debug, Default)]
struct Clients {
    /// By their numbers.
    all: Vec<(u64, SyncSender<Frame>)>,
    /// The number of who came last.
    last: u64,
}

/// Somebody who is attached.
#[derive(Debug)]
pub struct Attached {
    /// By which he is let go.
    pub number: u64,
    /// All frames from when he came.
    pub frames: Receiver<Frame>,
}

impl Output {
    /// With a log.
    pub fn new(log: Log) -> Self {
        Self {
            log: Mutex::new(log),
            lost: AtomicBool::new(false),
            clients: Mutex::default(),
        }
    }

    /// All frames from now on; nothing if too many get them already.
    pub fn attach(&self) -> Option<Attached> {
        let (sender, frames) = sync_channel(QUEUE);
        let mut clients = self.clients();
        if clients.all.len() >= MAX_CLIENTS {
            return None;
        }
        clients.last += 1;
        let number = clients.last;
        clients.all.push((number, sender));
        Some(Attached { number, frames })
    }

    /// Lets a client go, whose frames come to their end.
    pub fn detach(&self, number: u64) {
        self.clients().all.retain(|(other, _)| *other != number);
    }

    /// Says how it ended, and lets all go.
    pub fn end(&self, code: i32) {
        let clients = std::mem::take(&mut self.clients().all);
        for (_, client) in clients {
            let _ = client.send(Frame::End(code));
        }
    }

    /// Passes a stream on until its end.
    pub fn pass_on(&self, stream: Stream, mut from: impl Read) {
        let mut buffer = vec![0; 64 << 10];
        let mut line = Vec::new();
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The VM's end.
                Err(_) => break,
            };
            let data = buffer.get(..count).unwrap_or_default();
            self.log(stream, &mut line, data);
            let frame = match stream {
                Stream::Stdout => Frame::Output(data.to_vec()),
                Stream::Stderr => Frame::Error(data.to_vec()),
            };
            // Outside the lock: a slow client keeps nobody from attaching.
            let clients = self.clients().all.clone();
            for (number, client) in clients {
                if client.send(frame.clone()).is_err() {
                    self.detach(number);
                }
            }
        }
        if !line.is_empty() {
            self.write(stream, &line);
        }
    }

    fn log(&self, stream: Stream, line: &mut Vec<u8>, data: &[u8]) {
        for piece in data.split_inclusive(|&byte| byte == b'\n') {
            line.extend(piece);
            while line.len() > MAX_LINE {
                let rest = line.split_off(MAX_LINE);
                self.write(stream, line);
                *line = rest;
            }
            if line.ends_with(b"\n") {
                self.write(stream, line);
                line.clear();
            }
        }
    }

    fn write(&self, stream: Stream, text: &[u8]) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let written = log.write(stream, text);
        let lost = self.lost.swap(written.is_err(), Ordering::Relaxed);
        // Once until it is well again: the container decides how many lines there are.
        if let (Err(error), false) = (written, lost) {
            log::error!("lines of the container's log are lost: {error}");
        }
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::LogLimit;

    /// If it fails, `logs` shows other lines than the container printed, or who is attached misses
    /// some.
    #[test]
    fn output_reaches_log_and_clients() {
        let path = std::env::temp_dir().join(format!("cofferdam-log-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let log = LogFile::open(&path, LogLimit::default()).unwrap();
        let output = Output::new(Log::File(log));
        let gone = output.attach().unwrap();
        drop(gone);
        let left = output.attach().unwrap();
        output.detach(left.number);
        let client = output.attach().unwrap();
        let long = "x".repeat(MAX_LINE + 5);
        let text = format!("one\ntwo\n{long}\nend");
        output.pass_on(Stream::Stderr, text.as_bytes());
        output.end(7);
        assert_eq!(left.frames.iter().count(), 0);
        let frames: Vec<Frame> = client.frames.iter().collect();
        assert_eq!(frames, [Frame::Error(text.into_bytes()), Frame::End(7)]);
        let log = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let lines: Vec<LogLine> = log
            .lines()
            .map(|l| crate::json::from_slice(l.as_bytes()).unwrap())
            .collect();
        let text: Vec<&str> = lines.iter().map(|line| line.log.as_str()).collect();
        assert_eq!(
            text,
            ["one\n", "two\n", &long[..MAX_LINE], "xxxxx\n", "end"]
        );
        assert!(lines.iter().all(|line| line.stream == Stream::Stderr));
    }
    /// If it fails, who attaches and goes, again and again, makes the shim run out of descriptors; or who
    /// has gone keeps others from coming.
    #[test]
    fn clients_are_bounded() {
        let output = Output::new(Log::Nothing);
        let all: Vec<Attached> = std::iter::from_fn(|| output.attach()).collect();
        assert_eq!(all.len(), MAX_CLIENTS);
        output.detach(all[7].number);
        assert!(output.attach().is_some() && output.attach().is_none());
    }
}
