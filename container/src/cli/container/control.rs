//! The way to a container's shim and to the agent in its VM.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use cofferdam_agent_protocol::{Client, ClientError};

use crate::options::Isolation;
use crate::root::RootDir;
use crate::shim::wire::{Failure, Reply, Request, ask};
use crate::shim::{self, READY};
use crate::state::{Container, StateError, Status};

/// Why a shim does not do what it should.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum ControlError {
    /// There is none.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// It is on the host's own kernel.
    #[error("container {0} has no VM, and this is not there yet for --isolation=process")]
    NoVm(String),
    /// It does not answer.
    #[error("the shim of container {name} does not answer")]
    Lost {
        /// The container's.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It cannot be started.
    #[error("the shim of container {name} did not start: {said}")]
    Start {
        /// The container's.
        name: String,
        /// Its last words.
        said: String,
    },
    /// It says no.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// Its process has just ended, say.
    #[error("cannot open the root file system of container {name}")]
    Root {
        /// The container's.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The container's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] ClientError),
}

impl ControlError {
    /// Docker's exit code.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Failed(failure) => failure.code,
            Self::Agent(error) if error.is_no_such_program() => 127,
            Self::Agent(error) if error.is_not_executable() => 126,
            _ => super::EXIT_FAILED,
        }
    }
}

/// With Docker's exit code.
pub(super) fn failed(error: ControlError) -> super::Failed {
    super::Failed {
        code: error.code(),
        error: Box::new(error),
    }
}

/// A connection to a shim, after its answer to a request.
pub(in crate::cli) struct Answered {
    /// For what is said to it.
    pub(super) stream: UnixStream,
    /// For what it says.
    pub(super) reader: Box<dyn Read + Send>,
}

/// Asks a container's shim.
pub(super) fn request(container: &Container, what: &Request) -> Result<Answered, ControlError> {
    let name = || container.record.name.clone();
    let stream = UnixStream::connect(container.socket()).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NotRunning(name())
        }
        _ => ControlError::Lost {
            name: name(),
            source,
        },
    })?;
    let answer = ask(&stream, what).map_err(|source| ControlError::Lost {
        name: name(),
        source,
    });
    match answer? {
        (Reply::Done, reader) => Ok(Answered {
            stream,
            reader: Box::new(reader),
        }),
        (Reply::Failed(failure), _) => Err(failure.into()),
    }
}

/// Who was let to the files of a container that does not run. Dropped, its VM ends.
#[derive(Debug)]
struct Visit {
    shim: Child,
}

impl Drop for Visit {
    fn drop(&mut self) {
        // The end of its input is what it waits for; and its file system is clean when it ends.
        drop(self.shim.stdin.take());
        let _ = self.shim.wait();
    }
}

/// The agent in the VM of a container: in that which runs, or in one that is there for as long as this.
#[derive(Debug)]
pub(in crate::cli) struct Host {
    /// The agent.
    pub(super) agent: Client,
    /// The container runs.
    pub(super) is_live: bool,
    _visit: Option<Visit>,
}

/// The agent of a container's VM, running or not; then the container is set up in a VM, and not started.
pub(super) fn host(container: &Container) -> Result<Host, ControlError> {
    let name = || container.record.name.clone();
    match container.state()?.status {
        Status::Running | Status::Paused => Ok(Host {
            agent: agent(container)?,
            is_live: true,
            _visit: None,
        }),
        Status::Restarting => Err(ControlError::NotRunning(name())),
        Status::Created | Status::Exited => {
            if container.record.options.isolation == Isolation::Process {
                return Err(ControlError::NoVm(name()));
            }
            let shim = spawn_shim(container, &[shim::VISIT])?;
            let visit = Some(Visit { shim });
            let agent = Client::connect(&container.vsock())?.0;
            Ok(Host {
                agent,
                is_live: false,
                _visit: visit,
            })
        }
    }
}

/// A shim that was started and will run its container when it is told to. Dropped before, it gives up.
pub(in crate::cli) struct Starter<'a> {
    container: &'a Container,
    _hold: Option<ChildStdin>,
}

/// Starts a container's shim, and with it its VM.
pub(super) fn start_shim(container: &Container) -> Result<Starter<'_>, ControlError> {
    let mut shim = spawn_shim(container, &[])?;
    Ok(Starter {
        container,
        _hold: shim.stdin.take(),
    })
}

/// Starts a shim and waits until it is ready.
fn spawn_shim(container: &Container, options: &[&str]) -> Result<Child, ControlError> {
    // Says better what is wrong than the shim could.
    drop(container.lock()?);
    let name = container.record.name.clone();
    let start = |said: String| ControlError::Start { name, said };
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return Err(start(error.to_string())),
    };
    let log = container.dir.join("shim.log");
    let spawn = || {
        let mut child = Command::new(program)
            .args([shim::COMMAND, &container.record.id])
            .args(options)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        let mut ready = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut ready)?;
        }
        Ok((child, ready))
    };
    match spawn() {
        Ok((child, ready)) if ready == READY => Ok(child),
        Ok((mut child, _)) => {
            drop(child.stdin.take());
            let _ = child.wait();
            Err(start(last_line(&log)))
        }
        Err(error) => {
            let error: io::Error = error;
            Err(start(error.to_string()))
        }
    }
}

impl Starter<'_> {
    /// Runs the container.
    pub(super) fn start(self) -> Result<(), ControlError> {
        request(self.container, &Request::Start).map(drop)
    }
}

fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let last = text.lines().last().unwrap_or("it says nothing");
    last.trim_start_matches("cofferdam: ").to_owned()
}

/// The agent in a container's VM.
pub(super) fn agent(container: &Container) -> Result<Client, ControlError> {
    let name = || container.record.name.clone();
    if container.record.options.isolation == Isolation::Process {
        return Err(ControlError::NoVm(name()));
    }
    match container.state()?.status {
        Status::Running | Status::Paused => Ok(Client::connect(&container.vsock())?.0),
        _ => Err(ControlError::NotRunning(name())),
    }
}

/// The process of a container that runs on the host's kernel, and its cgroup.
pub(super) fn on_the_host(container: &Container) -> Result<(u32, PathBuf), ControlError> {
    let state = container.state()?;
    match (state.status, state.cgroup) {
        (Status::Running | Status::Paused, Some(cgroup)) => Ok((state.pid, cgroup)),
        _ => Err(ControlError::NotRunning(container.record.name.clone())),
    }
}

/// The root file system of a container that runs on the host's kernel.
pub(super) fn root(container: &Container) -> Result<RootDir, ControlError> {
    let (pid, _) = on_the_host(container)?;
    RootDir::of(pid).map_err(|source| ControlError::Root {
        name: container.record.name.clone(),
        source,
    })
}
