//! One life of a container: a VM, the agent in it, the container's process.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::api;
use cofferdam_agent_protocol::stream::Name;
use cofferdam_agent_protocol::{Client, ClientError};

use super::monitor::{Monitor, MonitorError};
use super::wire::Failure;
use crate::vm::{Machine, VmError};

/// How long a guest may take to boot; far more than it needs, as hosts may be slow.
const BOOT: Duration = Duration::from_secs(120);
/// How long it may take to let go of its disks.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// Why a container does not run.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The VM cannot be.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The monitor does not run.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The agent refuses, or is gone.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// A file of the container's.
    #[error("cannot write {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl SessionError {
    /// With Docker's exit code: 127 if the program is not there, 126 if it cannot be run.
    pub fn failure(&self) -> Failure {
        let code = match self {
            Self::Agent(error) if error.is_no_program() => 127,
            Self::Agent(error) if error.is_not_executable() => 126,
            _ => 125,
        };
        Failure {
            code,
            message: crate::describe(self),
        }
    }
}

/// What runs in the VM.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The container's ID.
    pub id: String,
    /// Its config.json of the OCI runtime specification.
    pub spec: Vec<u8>,
    /// Which of its streams are connected.
    pub streams: api::Streams,
    /// Rows and columns of its terminal.
    pub size: Option<(u16, u16)>,
    /// What the guest is told of the network.
    pub network: api::NetworkRequest,
}

/// How a container's process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// As a shell has it.
    pub code: i32,
    /// Something in it was killed for want of memory.
    pub oom: bool,
    /// What happened to the VM, if it was not the process that ended.
    pub error: Option<String>,
}

/// A container whose process waits to be started, or runs.
#[derive(Debug)]
pub struct Session {
    monitor: Monitor,
    agent: Arc<Client>,
    id: String,
}

/// The streams of a process, those that are connected.
#[derive(Debug, Default)]
pub struct Streams {
    /// To it.
    pub stdin: Option<UnixStream>,
    /// From it.
    pub stdout: Option<UnixStream>,
    /// From it.
    pub stderr: Option<UnixStream>,
}

impl Streams {
    /// Connects those that the agent was told of.
    pub fn connect(agent: &Client, wanted: &api::Streams) -> Result<Self, ClientError> {
        let stream = |is_wanted: bool, name| {
            is_wanted
                .then(|| agent.stream(name, &wanted.token))
                .transpose()
        };
        Ok(Self {
            stdin: stream(wanted.stdin, Name::Stdin)?,
            stdout: stream(wanted.stdout, Name::Stdout)?,
            stderr: stream(wanted.stderr, Name::Stderr)?,
        })
    }
}

/// A terminal's size for the agent.
pub fn size((rows, columns): (u16, u16)) -> api::Size {
    let mut size = api::Size::new();
    (size.rows, size.columns) = (rows.into(), columns.into());
    size
}

impl Session {
    /// Boots the VM and makes the container in it.
    pub fn boot(machine: &Machine, guest: Guest) -> Result<(Self, Streams), SessionError> {
        let config = machine.config()?;
        let (path, vsock) = (machine.run.join("vm.json"), machine.run.join("vsock"));
        let write = || fs::write(&path, serde_json::to_vec_pretty(&config)?);
        write().map_err(|source: io::Error| SessionError::File {
            path: path.clone(),
            source,
        })?;
        // Of a VM before.
        let _ = fs::remove_file(&vsock);
        let monitor = Monitor::start(&path, &machine.run.join("monitor.log"))?;
        let deadline = Instant::now() + BOOT;
        let alive = || monitor.status().is_none();
        let agent = Client::connect_until(&vsock, deadline, alive);
        let agent = match (agent, monitor.status()) {
            (Ok((agent, _)), _) => Arc::new(agent),
            (Err(_), Some(status)) => {
                let said = monitor.said();
                return Err(MonitorError::Ended { status, said }.into());
            }
            (Err(error), None) => return Err(error.into()),
        };
        agent.network(guest.network)?;
        let mut request = api::CreateRequest::new();
        request.id.clone_from(&guest.id);
        request.spec = guest.spec;
        request.rootfs = Some(machine.rootfs()).into();
        request.storages = machine.storages();
        request.size = guest.size.map(size).into();
        request.streams = Some(guest.streams.clone()).into();
        agent.create(request)?;
        let streams = Streams::connect(&agent, &guest.streams)?;
        let id = guest.id;
        Ok((Self { monitor, agent, id }, streams))
    }

    /// The monitor's process.
    pub fn pid(&self) -> u32 {
        self.monitor.pid()
    }

    /// The agent, for all threads.
    pub fn agent(&self) -> &Arc<Client> {
        &self.agent
    }

    /// Runs the process.
    pub fn start(&self) -> Result<(), SessionError> {
        self.agent.start(container(&self.id))?;
        Ok(())
    }

    /// Waits until the process has ended, or the VM has.
    pub fn wait(&self) -> End {
        match self.agent.wait(process(&self.id, "")) {
            Ok(end) => End {
                code: i32::try_from(end.exit_code).unwrap_or(255),
                oom: end.oom,
                error: None,
            },
            Err(error) => End {
                // As of a process that was killed.
                code: 137,
                oom: false,
                error: Some(match self.monitor.wait(Duration::from_secs(5)) {
                    Some(status) => format!("the VM ended ({status}): {}", self.monitor.said()),
                    None => crate::describe(&error),
                }),
            },
        }
    }

    /// Ends the VM. `keep`: what the container wrote is wanted, so its file system is unmounted first.
    pub fn end(&self, keep: bool) {
        if keep {
            let (agent, id) = (Arc::clone(&self.agent), self.id.clone());
            bounded(CLEAN_UP, move || {
                if let Err(error) = agent.delete(process(&id, "")) {
                    log::warn!("the container's file system: {}", crate::describe(&error));
                }
            });
        }
        self.monitor.kill();
    }

    /// Kills the monitor.
    pub fn kill(&self) {
        self.monitor.kill();
    }
}

/// Does something that a guest may delay for ever, and goes on after a while.
fn bounded(patience: Duration, work: impl FnOnce() + Send + 'static) {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        work();
        let _ = sender.send(());
    });
    let _ = receiver.recv_timeout(patience);
}

/// A request about a container.
pub fn container(id: &str) -> api::ContainerRequest {
    let mut request = api::ContainerRequest::new();
    request.id = id.to_owned();
    request
}

/// A request about a process: the container's own if `exec` is empty.
pub fn process(id: &str, exec: &str) -> api::ProcessRequest {
    let mut request = api::ProcessRequest::new();
    (request.id, request.exec) = (id.to_owned(), exec.to_owned());
    request
}

/// A request to send a signal to the container's process.
pub fn signal(id: &str, number: i32) -> api::SignalRequest {
    let mut request = api::SignalRequest::new();
    request.id = id.to_owned();
    request.signal = number.unsigned_abs();
    request
}
