//! The monitor of a container's VM, as a child of the shim.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::companion::{self, CompanionError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::WaitOptions;

use super::drain::{Drain, Pipe};
use super::spawn::{Outputs, Place, spawn};

/// The monitor's program, beside ours.
const PROGRAM: &str = "cofferdam";
/// What it says, in its directory.
const LOG: &str = "monitor.log";
/// What its guest's console prints, to the monitor's standard output.
const CONSOLE: &str = "console.log";

/// How it ends when a vCPU does what KVM cannot go on from.
const VCPU_ERROR: i32 = 83;

/// Why there is no monitor.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// It is not there.
    #[error("the monitor")]
    Program(#[from] CompanionError),
    /// It cannot be started.
    #[error("cannot start the monitor {program}")]
    Start {
        /// Its program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A vCPU of its VM stopped before the agent in it answered.
    #[error(
        "the VM's processor stopped while its kernel started, as it does where the host's KVM cannot run \
         Linux: 'cofferdam doctor' says whether that is so"
    )]
    Vcpu,
    /// It ended before the agent in its VM answered.
    #[error("the VM did not start ({status}): {said}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
}

/// A running monitor. Dropped, it is killed. It never outlives the thread that started it.
#[derive(Debug)]
pub struct Monitor {
    pid: Pid,
    end: Arc<End>,
    log: PathBuf,
    drain: Drain,
}

#[derive(Debug, Default)]
struct End {
    status: Mutex<Option<ExitStatus>>,
    came: Condvar,
}

impl End {
    fn status(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MonitorError {
    /// Why a monitor ended too early.
    pub fn ended(status: ExitStatus, said: String) -> Self {
        match status.code() {
            Some(VCPU_ERROR) => {
                log::error!("{said}");
                Self::Vcpu
            }
            _ => Self::Ended { status, said },
        }
    }
}

impl Monitor {
    /// Starts it with a configuration; what it says goes to logs in the directory `run`. With all that
    /// it will start it is in `place`.
    pub fn start(config: &Path, run: &Path, place: &Place) -> Result<Self, MonitorError> {
        let program = companion::find(PROGRAM)?;
        let start = |source| MonitorError::Start {
            program: program.clone(),
            source,
        };
        let log = run.join(LOG);
        let (console, stdout) = Pipe::new(&run.join(CONSOLE)).map_err(start)?;
        let (said, stderr) = Pipe::new(&log).map_err(start)?;
        let drain = Drain::start(vec![console, said]).map_err(start)?;
        let args = [
            b"boot",
            b"--config".as_slice(),
            config.as_os_str().as_bytes(),
        ];
        let outputs = Outputs { stdout, stderr };
        let pid = spawn(&program, &args, &outputs, place).map_err(start)?;
        // It has them. The logs end when nobody does any more.
        drop(outputs);
        let end = Arc::new(End::default());
        let theirs = Arc::clone(&end);
        thread::spawn(move || {
            let status = wait_for(pid);
            *theirs.status() = Some(status);
            theirs.came.notify_all();
        });
        Ok(Self {
            pid,
            end,
            log,
            drain,
        })
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.end.status()
    }

    /// Waits for its end, so long at most.
    pub fn wait(&self, patience: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + patience;
        let mut status = self.end.status();
        while status.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.end.came.wait_timeout(status, left);
            status = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *status
    }

    /// Kills it. It is gone a little later, when the host's kernel has its memory back.
    pub fn kill(&self) {
        // The lock keeps the number from being another's: it is waited for under it, or not yet.
        if self.end.status().is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }

    /// Kills it and waits until it is gone.
    pub fn end(&self) {
        self.kill();
        self.wait(Duration::from_secs(30));
    }

    /// Its last words, in one line.
    pub fn said(&self) -> String {
        const NAME: &str = "cofferdam: ";
        self.drain.settle();
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // What is wrong, and what helps, or else the last line of the log.
        let words = match text.rfind(NAME) {
            Some(at) => text.get(at + NAME.len()..).unwrap_or_default(),
            None => text.trim_end().lines().last().unwrap_or("it said nothing"),
        };
        words.trim().replace('\n', "; ")
    }
}

/// Waits for a child, however long it takes.
fn wait_for(pid: Pid) -> ExitStatus {
    let child = rustix::process::Pid::from_raw(pid.as_raw());
    loop {
        match rustix::process::waitpid(child, WaitOptions::empty()) {
            Ok(Some((_, status))) => return ExitStatus::from_raw(status.as_raw()),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            // Nobody else waits for it, so it is there; but nothing hangs on that.
            Err(_) => return ExitStatus::default(),
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.end();
    }
}
