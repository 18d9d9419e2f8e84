//! What a monitor says and what its guest's console prints: by pipes into logs that have a bound.

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::log_file::LogFile;
use crate::options::LogLimit;

/// Two files of half a MiB: they lie in memory, and whoever looks wants the end.
const LIMIT: LogLimit = LogLimit {
    size: Some(512 << 10),
    files: 2,
};
/// How long the last words of who ended may take. They wait in the pipe, unless a child that lives on
/// holds that open.
const LAST: Duration = Duration::from_secs(1);

/// A pipe, and the log that what comes through it is for.
#[derive(Debug)]
pub struct Pipe {
    from: PipeReader,
    log: LogFile,
}

impl Pipe {
    /// To a new log. Gives the end to write to.
    pub fn new(log: &Path) -> io::Result<(Self, File)> {
        let log = LogFile::create(log, LIMIT)?;
        let (from, to) = io::pipe()?;
        Ok((Self { from, log }, OwnedFd::from(to).into()))
    }
}

/// Writes what comes through pipes to their logs, until all are closed.
#[derive(Debug)]
pub struct Drain(Mutex<Receiver<()>>);

impl Drain {
    /// Begins with it.
    pub fn start(pipes: Vec<Pipe>) -> io::Result<Self> {
        let (running, over) = channel();
        thread::Builder::new().spawn(move || {
            drain(pipes);
            drop::<Sender<()>>(running);
        })?;
        Ok(Self(Mutex::new(over)))
    }

    /// Waits until all is written that was said, after whoever said it has ended.
    pub fn settle(&self) {
        let over = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing is ever sent: it ends when the thread does.
        let _: Result<(), RecvTimeoutError> = over.recv_timeout(LAST);
    }
}

fn drain(mut pipes: Vec<Pipe>) {
    let mut buffer = vec![0; 16 << 10];
    while !pipes.is_empty() {
        let mut waiting: Vec<PollFd> = pipes
            .iter()
            .map(|pipe| PollFd::from_borrowed_fd(pipe.from.as_fd(), PollFlags::IN))
            .collect();
        // Failures come again at the read.
        let _ = poll(&mut waiting, None);
        let ready: Vec<bool> = waiting
            .iter()
            .map(|one| !one.revents().is_empty())
            .collect();
        let mut ready = ready.into_iter();
        pipes.retain_mut(|pipe| {
            if !ready.next().unwrap_or_default() {
                return true;
            }
            match pipe.from.read(&mut buffer) {
                Ok(0) => false,
                Ok(count) => {
                    // A log that cannot be written must not hold up who writes to it.
                    let _ = pipe.log.write(buffer.get(..count).unwrap_or_default());
                    true
                }
                Err(error) => error.kind() == io::ErrorKind::Interrupted,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    /// If it fails, a guest that prints without end fills the host's memory, or a monitor hangs in
    /// what it says.
    #[test]
    fn what_comes_without_end_has_a_bound() {
        let dir = std::env::temp_dir().join(format!("cofferdam-drain-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (said, console) = (dir.join("said"), dir.join("console"));
        let (first, mut to_said) = Pipe::new(&said).unwrap();
        let (second, mut to_console) = Pipe::new(&console).unwrap();
        let drain = Drain::start(vec![first, second]).unwrap();
        to_said.write_all(b"first\n").unwrap();
        for _ in 0..100 {
            to_console.write_all(&[b'x'; 64 << 10]).unwrap();
        }
        to_console.write_all(b"the end").unwrap();
        to_said.write_all(b"last\n").unwrap();
        drop((to_said, to_console));
        drain.settle();
        assert_eq!(fs::read_to_string(&said).unwrap(), "first\nlast\n");
        assert!(fs::read_to_string(&console).unwrap().ends_with("the end"));
        let size = |name| fs::metadata(dir.join(name)).unwrap().len();
        assert!(size("console") + size("console.1") <= 1 << 20);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 3);
        fs::remove_dir_all(dir).unwrap();
    }
}
