//! One boot: a monitor is started, and each byte that its guest says gets the time it came.

use std::io::{self, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

/// Longest that a guest may be silent. Virtual time in the lab, where a boot takes 0.2 s.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most output that a boot is allowed: a chatty kernel says some 30 KiB.
const OUTPUT_LIMIT: usize = 1 << 20;

/// Why a boot gave no figures.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The monitor did not start.
    #[error("cannot start {0}")]
    Start(String, #[source] io::Error),
    /// Its output cannot be read.
    #[error("cannot read the guest's console")]
    Read(#[source] io::Error),
    /// It ended too early.
    #[error("the monitor ended before {waited_for}; the guest had said: {said:?}")]
    Ended {
        /// What was to come.
        waited_for: String,
        /// The end of what did.
        said: String,
    },
    /// Nothing came any more.
    #[error("{PATIENCE:?} without a word while waiting for {waited_for}; before it: {said:?}")]
    Silent {
        /// What was to come.
        waited_for: String,
        /// The end of what did.
        said: String,
    },
}

/// Nanoseconds of the monotonic clock, which is also the trace's.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // Neither is ever negative on this clock.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// A monitor that runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct Boot {
    child: Child,
    console: ChildStdout,
    started: u64,
    output: Vec<u8>,
    /// When the output had reached which length.
    arrivals: Vec<(u64, usize)>,
}

impl Boot {
    /// Starts a monitor with its guest's console on standard output. The clock runs from before
    /// the process exists, so that `fork` and `exec` count for all alike.
    pub fn start(command: &mut Command) -> Result<Self, BootError> {
        let name = command.get_program().display().to_string();
        let failed = |error| BootError::Start(name.clone(), error);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let started = now();
        let mut child = command.spawn().map_err(failed)?;
        let console = child
            .stdout
            .take()
            .ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self {
            child,
            console,
            started,
            output: Vec::new(),
            arrivals: Vec::new(),
        })
    }

    /// The monitor's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When it was started, on the clock of [`now`].
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Reads until the guest has said `text`. Returns when its first byte came, in ns since the
    /// start.
    pub fn wait_for(&mut self, text: &str) -> Result<u64, BootError> {
        loop {
            if let Some(at) = find(&self.output, text.as_bytes())
                && let Some(&(time, _)) = self.arrivals.iter().find(|(_, length)| *length > at)
            {
                return Ok(time - self.started);
            }
            if !self.read(text)? {
                return Err(BootError::Ended {
                    waited_for: text.to_owned(),
                    said: self.tail(),
                });
            }
        }
    }

    /// All that the guest has said so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// Reads until the monitor has ended. Returns when it had, in ns since the start.
    pub fn wait_for_end(mut self) -> Result<u64, BootError> {
        while self.read("its end")? {}
        self.child.wait().map_err(BootError::Read)?;
        Ok(now() - self.started)
    }

    /// Takes what comes next; false if nothing can come any more.
    fn read(&mut self, waited_for: &str) -> Result<bool, BootError> {
        let silent = || BootError::Silent {
            waited_for: waited_for.to_owned(),
            said: self.tail(),
        };
        let patience = Timespec::try_from(PATIENCE).map_err(|_| silent())?;
        let mut fds = [PollFd::new(&self.console, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&patience)).map_err(|e| BootError::Read(e.into()))?;
        let time = now();
        if ready == 0 || self.output.len() > OUTPUT_LIMIT {
            return Err(silent());
        }
        let mut buffer = [0; 4096];
        let length = self.console.read(&mut buffer).map_err(BootError::Read)?;
        self.output
            .extend_from_slice(buffer.get(..length).unwrap_or_default());
        self.arrivals.push((time, self.output.len()));
        Ok(length > 0)
    }

    /// The end of what the guest said.
    fn tail(&self) -> String {
        let from = self.output.len().saturating_sub(300);
        String::from_utf8_lossy(self.output.get(from..).unwrap_or_default()).into_owned()
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        // It may have ended by itself; and there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    /// If it fails, a time is that of the whole line or of noise before it, not of its first byte.
    #[test]
    fn a_line_has_the_time_of_its_first_byte() {
        let mut boot = Boot::start(&mut shell(
            "printf noise; sleep 0.2; printf in; sleep 0.2; echo it; exec sleep 9",
        ))
        .unwrap();
        let time = Duration::from_nanos(boot.wait_for("init\n").unwrap());
        assert!(time >= Duration::from_millis(200), "{time:?}");
        assert!(Duration::from_nanos(now() - boot.started()) >= time + Duration::from_millis(150));
    }

    /// If it fails, the end is taken for that of the output while the monitor still runs, or not
    /// seen at all.
    #[test]
    fn the_end_is_the_processes() {
        let boot = Boot::start(&mut shell("echo a; exec >&-; sleep 0.2")).unwrap();
        assert!(boot.wait_for_end().unwrap() >= 200_000_000);
    }

    /// If it fails, a monitor that fails at once makes the benchmark wait, or says nothing of why.
    #[test]
    fn an_early_end_tells_what_was_said() {
        let mut boot = Boot::start(&mut shell("echo no kernel")).unwrap();
        let error = boot.wait_for("init").unwrap_err().to_string();
        assert!(error.contains("no kernel"), "{error}");
    }
}
