//! The monitor of a container's VM, as a child of the shim.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::companion::{self, CompanionError};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::set_parent_process_death_signal;

/// The monitor's program, beside ours.
const PROGRAM: &str = "cofferdam";

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
    /// It ended before the agent in its VM answered.
    #[error("the VM did not start ({status}): {said}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
}

/// Where a monitor is, if not where who starts it is.
#[derive(Debug, Default)]
pub struct Place<'a> {
    /// Of a cgroup, by which it is joined: `cgroup.procs`.
    pub cgroup: Option<&'a File>,
    /// A network namespace.
    pub netns: Option<File>,
}

/// A running monitor. Dropped, it is killed. It never outlives the thread that started it.
#[derive(Debug)]
pub struct Monitor {
    pid: Pid,
    end: Arc<End>,
    log: PathBuf,
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

impl Monitor {
    /// Starts it with a configuration; what it says goes to the file `log`. With all that it will
    /// start it is in `place`.
    pub fn start(config: &Path, log: &Path, place: &Place) -> Result<Self, MonitorError> {
        let program = companion::find(PROGRAM)?;
        let start = |source| MonitorError::Start {
            program: program.clone(),
            source,
        };
        let stderr = File::create(log).map_err(start)?;
        let mut command = Command::new(&program);
        command.args(["boot", "--config"]).arg(config);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let parent = rustix::process::getpid();
        let cgroup = place.cgroup.map(AsRawFd::as_raw_fd);
        let netns = place.netns.as_ref().map(AsRawFd::as_raw_fd);
        // SAFETY: between fork and exec the closure makes four system calls and nothing else: it
        // takes no lock and allocates nothing. The descriptors are open: their files are borrowed.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                // The parent may have died before the wish was heard.
                if rustix::process::getppid() != Some(parent) {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                if let Some(cgroup) = cgroup {
                    rustix::io::write(BorrowedFd::borrow_raw(cgroup), b"0")?;
                }
                if let Some(netns) = netns {
                    setns(BorrowedFd::borrow_raw(netns), CloneFlags::CLONE_NEWNET)?;
                }
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(start)?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(|e| start(io::Error::other(e)))?);
        let end = Arc::new(End::default());
        let theirs = Arc::clone(&end);
        thread::spawn(move || {
            let status = child.wait().unwrap_or_default();
            *theirs.status() = Some(status);
            theirs.came.notify_all();
        });
        Ok(Self {
            pid,
            end,
            log: log.to_owned(),
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

    /// Kills it and waits until it is gone.
    pub fn kill(&self) {
        // The lock keeps the number from being another's: it is waited for under it, or not yet.
        if self.end.status().is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        self.wait(Duration::from_secs(30));
    }

    /// Its last words, in one line.
    pub fn said(&self) -> String {
        const NAME: &str = "cofferdam: ";
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        // What is wrong, and what helps, or else the last line of the log.
        let words = match text.rfind(NAME) {
            Some(at) => text.get(at + NAME.len()..).unwrap_or_default(),
            None => text.trim_end().lines().last().unwrap_or("it said nothing"),
        };
        words.trim().replace('\n', "; ")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.kill();
    }
}
