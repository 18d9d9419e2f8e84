//! A container on the host's own kernel, for comparison: runc or crun runs the same bundle.

use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, pidfd_send_signal,
    set_child_subreaper, set_parent_process_death_signal, waitpid,
};
use rustix::termios::{Winsize, tcsetwinsize};

use cofferdam_agent_protocol::users::Unknown;
use oci_spec::runtime::Process as Program;

use super::bundle::Bundle;
use super::descriptors;
use super::rootfs;
use super::session::{End, Streams};
use crate::limits;
use crate::options::Runtime;
use crate::root::RootDir;
use crate::spec::{self, SpecError};
use crate::state::{self, StateError};

/// Why a container does not run on the host's kernel.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// There is none.
    #[error("--isolation=process needs {0}: not in $PATH")]
    NoRuntime(&'static str),
    /// Nor one that `--init` takes.
    #[error(
        "--isolation=process --init needs docker-init, catatonit or tini: none is in $PATH (Debian: \
         the packages docker.io, catatonit, tini)"
    )]
    NoInit,
    /// A step of our own.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The image.
    #[error("cannot mount the root file system: {0}")]
    Mount(String),
    /// The image does not know the user.
    #[error(transparent)]
    User(#[from] Unknown),
    /// A new volume.
    #[error("cannot copy the image's {place} to its volume")]
    Volume {
        /// Where it is in the container.
        place: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A device that is there no more.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The bundle's configuration.
    #[error(transparent)]
    State(#[from] StateError),
    /// The runtime says no.
    #[error("{runtime} {action}: {said}")]
    Runtime {
        /// Which.
        runtime: &'static str,
        /// What it was asked for.
        action: &'static str,
        /// Its last words.
        said: String,
    },
}

impl ProcessError {
    /// Docker's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Runtime { said, .. } if said.contains("not found") => 127,
            Self::Runtime { said, .. } if said.contains("no such file") => 127,
            Self::Runtime { said, .. } if said.contains("No such file") => 127,
            Self::Runtime { said, .. } if said.to_lowercase().contains("permission denied") => 126,
            _ => 125,
        }
    }
}

pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> ProcessError {
    move |source| ProcessError::Io { action, source }
}

/// A container that was made by the host's runtime.
#[derive(Debug)]
pub struct Process {
    runtime: Runtime,
    id: String,
    /// Where it has its sockets.
    run: PathBuf,
    pid: Pid,
    cgroup: PathBuf,
    terminal: Option<File>,
}

/// One more process in a container. The runtime has started it and gone, so that it is ours.
#[derive(Debug)]
pub struct Executed {
    pid: Pid,
    /// Itself, whoever has its number when it has ended.
    handle: OwnedFd,
}

impl Executed {
    /// Its exit code as a shell has it, when it has ended; nothing if that takes too long.
    pub(super) fn wait(&self, patience: Duration) -> Option<i32> {
        let timeout = Timespec::try_from(patience).ok();
        let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
        match retry_on_intr(|| poll(&mut ended, timeout.as_ref())) {
            Ok(0) => None,
            _ => Some(wait_for(self.pid)),
        }
    }

    /// Kills it, if it has not ended.
    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

/// The runtime of the host's that is wanted, or else the first that is there.
pub fn find_runtime(wanted: Option<Runtime>) -> Result<Runtime, ProcessError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let is_there = |one: &Runtime| dirs.iter().any(|dir| dir.join(one.program()).is_file());
    Runtime::ALL
        .into_iter()
        .filter(|one| wanted.is_none_or(|wanted| wanted == *one))
        .find(is_there)
        .ok_or(ProcessError::NoRuntime(
            wanted.map_or("runc or crun", Runtime::program),
        ))
}

/// The command of a runtime that knows our containers.
pub fn runtime(which: Runtime) -> Command {
    let mut command = Command::new(which.program());
    command
        .arg("--root")
        .arg(crate::paths::run().join("runtime"));
    descriptors::restore(&mut command);
    command
}

/// The command that runs one more process in a container; `process` is a file with what the OCI
/// specification says of it, and has no user by name.
pub fn exec(which: Runtime, process: &Path) -> Command {
    let mut command = runtime(which);
    command.arg("exec").arg("--process").arg(process);
    command
}

/// Removes what a container that nobody holds any more has left with the runtime.
pub fn delete(which: Runtime, id: &str) {
    let _ = runtime(which).args(["delete", "--force", id]).output();
}

/// Changes the limits of a container that runs; `resources` are those of the OCI specification, as JSON.
pub fn update(which: Runtime, id: &str, resources: &[u8]) -> Result<(), ProcessError> {
    let run = || {
        let mut command = runtime(which);
        command.args(["update", "--resources", "-", id]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(resources)?;
        }
        let end = child.wait_with_output()?;
        match end.status.success() {
            true => Ok(()),
            false => Err(io::Error::other(
                String::from_utf8_lossy(&end.stderr).trim().to_owned(),
            )),
        }
    };
    run().map_err(self::io("change the limits"))
}

impl Process {
    /// Makes the container.
    pub(super) fn create(bundle: Bundle) -> Result<(Self, Streams), ProcessError> {
        // The container's process is the runtime's child, which ends: so it becomes ours.
        set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|e| io("adopt the container")(e.into()))?;
        let mut command = runtime(bundle.runtime);
        let (pid_file, log) = (bundle.run.join("pid"), bundle.run.join("runtime.log"));
        command.arg("create").arg("--bundle").arg(&bundle.run);
        command.arg("--pid-file").arg(&pid_file);
        let console = bundle.run.join("console");
        let _ = fs::remove_file(&console);
        let listener = match bundle.tty {
            true => Some(UnixListener::bind(&console).map_err(io("listen for the terminal"))?),
            false => None,
        };
        if bundle.tty {
            command.arg("--console-socket").arg(&console);
        }
        command.arg(&bundle.id);
        // With a terminal there are none yet, and its errors are the runtime's.
        let (streams, [stdin, stdout, stderr]) = match bundle.tty {
            true => Default::default(),
            false => pipes(bundle.interactive).map_err(io("make pipes"))?,
        };
        command.stdin(or_null(stdin)).stdout(or_null(stdout));
        // Its words and the container's go the same way; so they are read from its log.
        let said = File::create(&log).map_err(io("make a log"))?;
        command.stderr(stderr.map_or_else(|| said.into(), Stdio::from));
        // SAFETY: between fork and exec the closure makes one system call and nothing else.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let status = rootfs::mounted(&bundle, |root| {
            bundle.prepare(root)?;
            command.status().map_err(io("run the host's runtime"))
        });
        // Our copies of the container's ends.
        drop(command);
        let status = status?;
        if !status.success() {
            let said = last_words(streams.stderr, &log);
            delete(bundle.runtime, &bundle.id);
            return Err(ProcessError::Runtime {
                runtime: bundle.runtime.program(),
                action: "create",
                said,
            });
        }
        let terminal = match listener {
            Some(listener) => Some(receive(&listener).map_err(io("receive the terminal"))?),
            None => None,
        };
        let pid = number(&pid_file).map_err(io("read the process's number"))?;
        let streams = match &terminal {
            Some(terminal) => of_terminal(terminal, &bundle).map_err(io("open the terminal"))?,
            None => streams,
        };
        let process = Self {
            runtime: bundle.runtime,
            cgroup: limits::of_process(&bundle.id),
            id: bundle.id,
            run: bundle.run,
            pid,
            terminal,
        };
        Ok((process, streams))
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    pub(super) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    fn ask(&self, action: &'static str) -> Result<(), ProcessError> {
        let output = runtime(self.runtime).args([action, &self.id]).output();
        let output = output.map_err(io("run the host's runtime"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ProcessError::Runtime {
            runtime: self.runtime.program(),
            action,
            said,
        })
    }

    pub(super) fn start(&self) -> Result<(), ProcessError> {
        self.ask("start")
    }

    pub(super) fn wait(&self) -> End {
        End {
            code: wait_for(self.pid),
            ..End::default()
        }
    }

    /// Runs one more process, without input.
    pub(super) fn exec(&self, mut program: Program) -> Result<(Executed, Streams), ProcessError> {
        let doing = "run one more process";
        let root = RootDir::of(self.pid()).map_err(io(doing))?;
        spec::resolve_user(&mut program, &root)?;
        let (file, pid_file) = (self.run.join("exec.json"), self.run.join("exec.pid"));
        state::save(&file, &program)?;
        let (streams, [stdin, stdout, stderr]) = pipes(false).map_err(io("make pipes"))?;
        let mut command = exec(self.runtime, &file);
        command.arg("--detach").arg("--pid-file").arg(&pid_file);
        command.arg(&self.id).stdin(or_null(stdin));
        command.stdout(or_null(stdout)).stderr(or_null(stderr));
        let status = command.status().map_err(io("run the host's runtime"))?;
        // Our copies of its ends.
        drop(command);
        if !status.success() {
            return Err(ProcessError::Runtime {
                runtime: self.runtime.program(),
                action: "exec",
                said: last_words(streams.stderr, Path::new("")),
            });
        }
        let pid = number(&pid_file).map_err(io(doing))?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| io(doing)(e.into()))?;
        Ok((Executed { pid, handle }, streams))
    }

    pub(super) fn signal(&self, number: i32) -> Result<(), ProcessError> {
        let signal = Signal::from_named_raw(number);
        let signal = signal
            .ok_or_else(|| io("send a signal without a name")(io::ErrorKind::Unsupported.into()))?;
        kill_process(self.pid, signal).map_err(|error| io("send a signal")(error.into()))
    }

    pub(super) fn resize(&self, (rows, columns): (u16, u16)) -> Result<(), ProcessError> {
        let Some(terminal) = &self.terminal else {
            return Ok(());
        };
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal, size).map_err(|error| io("resize the terminal")(error.into()))
    }

    pub(super) fn pause(&self, pause: bool) -> Result<(), ProcessError> {
        self.ask(if pause { "pause" } else { "resume" })
    }

    pub(super) fn end(&self) {
        delete(self.runtime, &self.id);
    }
}

/// The exit code of a child of ours as a shell has it, when that has ended.
fn wait_for(child: Pid) -> i32 {
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => return code,
                (_, Some(signal)) => return 128 + signal,
                _ => {}
            },
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return 255,
        }
    }
}

/// What a runtime wrote to its --pid-file.
fn number(pid_file: &Path) -> io::Result<Pid> {
    let text = fs::read_to_string(pid_file)?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Our ends of a process's streams, and its ends.
fn pipes(interactive: bool) -> io::Result<(Streams, [Option<OwnedFd>; 3])> {
    let (stdout, to_stdout) = io::pipe()?;
    let (stderr, to_stderr) = io::pipe()?;
    let (from_stdin, stdin) = match interactive {
        true => {
            let (from, to) = io::pipe()?;
            (Some(from.into()), Some(OwnedFd::from(to).into()))
        }
        false => (None, None),
    };
    let streams = Streams {
        stdin,
        stdout: Some(OwnedFd::from(stdout).into()),
        stderr: Some(OwnedFd::from(stderr).into()),
        others: Vec::new(),
    };
    Ok((
        streams,
        [from_stdin, Some(to_stdout.into()), Some(to_stderr.into())],
    ))
}

fn or_null(end: Option<OwnedFd>) -> Stdio {
    end.map_or_else(Stdio::null, Stdio::from)
}

/// What a runtime that failed said: to the container's standard error, or to a file.
fn last_words(stderr: Option<File>, log: &Path) -> String {
    let mut text = String::new();
    let read = match stderr {
        Some(mut stderr) => stderr.read_to_string(&mut text).map(drop),
        None => fs::read_to_string(log).map(|said| text = said),
    };
    match (read, text.trim()) {
        (Err(_), _) | (_, "") => "it says nothing".into(),
        (Ok(()), words) => words.replace('\n', "; "),
    }
}

/// A descriptor that the runtime hands out at its console socket.
fn receive(listener: &UnixListener) -> io::Result<File> {
    let (connection, _) = listener.accept()?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 256];
    let mut buffers = [IoSliceMut::new(&mut name)];
    recvmsg(
        &connection,
        &mut buffers,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd.into());
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn of_terminal(terminal: &File, bundle: &Bundle) -> io::Result<Streams> {
    Ok(Streams {
        stdin: bundle
            .interactive
            .then(|| terminal.try_clone())
            .transpose()?,
        stdout: Some(terminal.try_clone()?),
        stderr: None,
        others: Vec::new(),
    })
}
