//! One life of a container: a VM, the agent in it, the container's process.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::api;
use cofferdam_agent_protocol::stream::Name;
use cofferdam_agent_protocol::{Client, ClientError};
use nix::sched::sched_getaffinity;
use nix::unistd::Pid;

use super::bundle::Bundle;
use super::clock::Keeper;
use super::monitor::{Monitor, MonitorError};
use super::process::{Process, ProcessError};
use super::spawn::Place;
use super::wire::Failure;
use crate::limits::HostCgroup;
use crate::options::CpuSet;
use crate::state::VmSize;
use crate::vm::{Machine, VmError};

/// How long a guest may take to boot; far more than it needs, as hosts may be slow.
const BOOT: Duration = Duration::from_secs(120);
/// How long it may take to let go of its disks.
const CLEAN_UP: Duration = Duration::from_secs(20);
/// The same if they are volumes: what its memory has of them may be much, and the host's disk slow.
const CLEAN_UP_VOLUMES: Duration = Duration::from_secs(300);

/// Why a container does not run.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The VM cannot be.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The monitor does not run.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The host's runtime fails.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The agent refuses, or is gone.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// Where its interfaces are.
    #[error("cannot open the container's network namespace")]
    Netns {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// CPUs that the host does not have, or not for us.
    #[error("--cpuset-cpus {0}: this host has the CPUs {1} for it")]
    Cpus(CpuSet, CpuSet),
    /// Its clock.
    #[error("cannot keep the guest's clock")]
    Clock {
        /// Why not.
        #[source]
        source: io::Error,
    },
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
            Self::Agent(error) if error.is_no_such_program() => 127,
            Self::Agent(error) if error.is_not_executable() => 126,
            Self::Process(error) => error.code(),
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
    /// The program runs below an init process.
    pub init: bool,
    /// Directories that are made where its image has none.
    pub directories: Vec<String>,
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
pub enum Session {
    /// In a VM.
    Vm(Vm),
    /// On the host's kernel.
    Process(Process),
}

/// What it takes to make one.
#[derive(Clone, Debug)]
pub enum Plan {
    /// A VM and what runs in it.
    Vm(Box<Machine>, Guest),
    /// A bundle for a runtime of the host's.
    Process(Bundle),
}

impl Plan {
    /// Whether it takes nothing of the host's that somebody may want as soon as it has ended.
    pub fn is_alone(&self) -> bool {
        matches!(self, Self::Vm(machine, _) if machine.is_alone())
    }

    /// How large its VM is, if it has one.
    pub fn vm_size(&self) -> Option<VmSize> {
        match self {
            Self::Vm(machine, _) => Some(machine.size()),
            Self::Process(_) => None,
        }
    }

    /// Whether something that it writes is to be brought to a disk, also if it is thrown away.
    pub fn has_volumes(&self) -> bool {
        matches!(self, Self::Vm(machine, _) if machine.has_volumes())
    }
}

impl Session {
    /// Makes the container, and connects its streams.
    pub fn boot(plan: Plan) -> Result<(Self, Streams), SessionError> {
        Ok(match plan {
            Plan::Vm(machine, guest) => {
                let (vm, streams) = Vm::boot(&machine, guest)?;
                (Self::Vm(vm), streams)
            }
            Plan::Process(bundle) => {
                let (process, streams) = Process::create(bundle)?;
                (Self::Process(process), streams)
            }
        })
    }

    /// The process that stands for it on the host.
    pub fn pid(&self) -> u32 {
        match self {
            Self::Vm(vm) => vm.pid(),
            Self::Process(process) => process.pid(),
        }
    }

    /// Runs the process.
    pub fn start(&self) -> Result<(), SessionError> {
        match self {
            Self::Vm(vm) => vm.start(),
            Self::Process(process) => Ok(process.start()?),
        }
    }

    /// Waits until the process has ended.
    pub fn wait(&self) -> End {
        match self {
            Self::Vm(vm) => vm.wait(),
            Self::Process(process) => process.wait(),
        }
    }

    /// Sends a signal to the process.
    pub fn signal(&self, number: i32) -> Result<(), SessionError> {
        match self {
            Self::Vm(vm) => vm.signal(number),
            Self::Process(process) => Ok(process.signal(number)?),
        }
    }

    /// Sets rows and columns of its terminal.
    pub fn resize(&self, to: (u16, u16)) -> Result<(), SessionError> {
        match self {
            Self::Vm(vm) => vm.resize(to),
            Self::Process(process) => Ok(process.resize(to)?),
        }
    }

    /// Freezes or thaws it.
    pub fn pause(&self, pause: bool) -> Result<(), SessionError> {
        match self {
            Self::Vm(vm) => vm.pause(pause),
            Self::Process(process) => Ok(process.pause(pause)?),
        }
    }

    /// The cgroup of the host's that limits it.
    pub fn cgroup(&self) -> Option<&Path> {
        match self {
            Self::Vm(vm) => Some(vm.cgroup.as_ref()?.path()),
            Self::Process(process) => Some(process.cgroup()),
        }
    }

    /// Takes away what is left of it. `keep`: what it wrote is wanted.
    pub fn end(&self, keep: bool) {
        match self {
            Self::Vm(vm) => vm.end(keep),
            Self::Process(process) => process.end(),
        }
    }

    /// Ends it, whatever it does. A VM goes on its own from here, and is gone when this is dropped.
    pub fn kill(&self) {
        match self {
            Self::Vm(vm) => vm.kill(),
            Self::Process(process) => process.end(),
        }
    }
}

/// A container in a VM, whose process waits to be started, or runs.
#[derive(Debug)]
pub struct Vm {
    monitor: Monitor,
    agent: Arc<Client>,
    id: String,
    _clock: Keeper,
    /// How long it may take to let go of its disks.
    patience: Duration,
    /// Dropped behind the monitor, which is in it.
    cgroup: Option<HostCgroup>,
}

/// The streams of a process, those that are connected.
#[derive(Debug, Default)]
pub struct Streams {
    /// To it.
    pub stdin: Option<File>,
    /// From it.
    pub stdout: Option<File>,
    /// From it.
    pub stderr: Option<File>,
    /// Its further descriptors: inputs, then outputs, each in the order in which the agent was told of them.
    pub others: Vec<(Name, File)>,
}

impl Streams {
    /// Connects those that the agent was told of.
    pub fn connect(agent: &Client, wanted: &api::Streams) -> Result<Self, ClientError> {
        let open = |name| -> Result<File, ClientError> {
            Ok(OwnedFd::from(agent.stream(name, &wanted.token)?).into())
        };
        let stream = |is_wanted: bool, name| is_wanted.then(|| open(name)).transpose();
        let inputs = wanted.inputs.iter().map(|number| Name::Input(*number));
        let outputs = wanted.outputs.iter().map(|number| Name::Output(*number));
        let others = inputs.chain(outputs);
        Ok(Self {
            stdin: stream(wanted.stdin, Name::Stdin)?,
            stdout: stream(wanted.stdout, Name::Stdout)?,
            stderr: stream(wanted.stderr, Name::Stderr)?,
            others: others
                .map(|name| Ok((name, open(name)?)))
                .collect::<Result<_, ClientError>>()?,
        })
    }
}

/// Runs one more process with its streams, which wait for it at the agent.
pub fn exec(agent: &Client, request: api::ExecRequest) -> Result<Streams, ClientError> {
    let wanted = request.streams.clone().unwrap_or_default();
    let streams = Streams::connect(agent, &wanted)?;
    agent.exec(request)?;
    Ok(streams)
}

/// A terminal's size for the agent.
pub fn size((rows, columns): (u16, u16)) -> api::Size {
    let mut size = api::Size::new();
    (size.rows, size.columns) = (rows.into(), columns.into());
    size
}

impl Vm {
    /// Boots the VM and makes the container in it.
    fn boot(machine: &Machine, guest: Guest) -> Result<(Self, Streams), SessionError> {
        let config = machine.config()?;
        let (path, vsock) = (machine.run.join("vm.json"), machine.run.join("vsock"));
        let write = || fs::write(&path, serde_json::to_vec_pretty(&config)?);
        write().map_err(|source: io::Error| SessionError::File {
            path: path.clone(),
            source,
        })?;
        // Of a VM before.
        let _ = fs::remove_file(&vsock);
        let limits = machine.limits.as_ref();
        let cgroup = limits.and_then(|limits| match HostCgroup::make(limits) {
            Ok(cgroup) => Some(cgroup),
            Err(error) => {
                log::warn!(
                    "the host does not limit the VM: {}",
                    crate::describe(&error)
                );
                None
            }
        });
        let netns = machine.netns.as_ref().map(File::open).transpose();
        let place = Place {
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.dir.as_fd()),
            netns: netns.map_err(|source| SessionError::Netns { source })?,
            cpus: machine.cpuset.as_ref().map(affinity).transpose()?,
        };
        let monitor = Monitor::start(&path, &machine.run, &place)?;
        let deadline = Instant::now() + BOOT;
        let alive = || monitor.status().is_none();
        let agent = Client::connect_until(&vsock, deadline, alive);
        let agent = match (agent, monitor.status()) {
            (Ok((agent, _)), _) => Arc::new(agent),
            (Err(_), Some(status)) => {
                let said = monitor.said();
                return Err(MonitorError::ended(status, said).into());
            }
            (Err(error), None) => return Err(error.into()),
        };
        let clock = Keeper::start(&agent).map_err(|source| SessionError::Clock { source })?;
        agent.network(guest.network)?;
        let mut request = api::CreateRequest::new();
        request.id.clone_from(&guest.id);
        request.spec = guest.spec;
        request.rootfs = Some(machine.rootfs()).into();
        request.storages = machine.storages();
        request.size = guest.size.map(size).into();
        request.streams = Some(guest.streams.clone()).into();
        request.init = guest.init;
        request.directories = guest.directories;
        agent.create(request)?;
        let streams = Streams::connect(&agent, &guest.streams)?;
        let id = guest.id;
        let vm = Self {
            monitor,
            agent,
            id,
            _clock: clock,
            patience: match machine.has_volumes() {
                true => CLEAN_UP_VOLUMES,
                false => CLEAN_UP,
            },
            cgroup,
        };
        Ok((vm, streams))
    }

    /// The agent in it.
    pub(super) fn agent(&self) -> &Arc<Client> {
        &self.agent
    }

    /// The monitor's process.
    fn pid(&self) -> u32 {
        self.monitor.pid()
    }

    fn signal(&self, number: i32) -> Result<(), SessionError> {
        self.agent.signal(signal(&self.id, number))?;
        Ok(())
    }

    fn resize(&self, to: (u16, u16)) -> Result<(), SessionError> {
        let mut request = api::ResizeRequest::new();
        request.id.clone_from(&self.id);
        request.size = Some(size(to)).into();
        self.agent.resize(request)?;
        Ok(())
    }

    fn pause(&self, pause: bool) -> Result<(), SessionError> {
        match pause {
            true => self.agent.pause(container(&self.id))?,
            false => self.agent.resume(container(&self.id))?,
        };
        Ok(())
    }

    /// Runs the process.
    fn start(&self) -> Result<(), SessionError> {
        self.agent.start(container(&self.id))?;
        Ok(())
    }

    /// Waits until the process has ended, or the VM has.
    fn wait(&self) -> End {
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
    fn end(&self, keep: bool) {
        if keep {
            let (agent, id) = (Arc::clone(&self.agent), self.id.clone());
            bounded(self.patience, move || {
                if let Err(error) = agent.delete(process(&id, "")) {
                    log::warn!("the container's file system: {}", crate::describe(&error));
                }
            });
        }
        self.monitor.end();
    }

    /// Kills the monitor.
    fn kill(&self) {
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
/// The set as the kernel takes it: CPUs that are there.
fn affinity(wanted: &CpuSet) -> Result<nix::sched::CpuSet, SessionError> {
    let here = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let is_here = |cpu: &usize| here.is_set(*cpu).unwrap_or(false);
    if !wanted.0.iter().all(is_here) {
        let all = (0..nix::sched::CpuSet::count()).filter(is_here).collect();
        return Err(SessionError::Cpus(wanted.clone(), CpuSet(all)));
    }
    let mut set = nix::sched::CpuSet::new();
    for cpu in &wanted.0 {
        // It is in range: it is there.
        let _ = set.set(*cpu);
    }
    Ok(set)
}
