//! `create` and `run`.

use std::ffi::OsString;
use std::io::{self, BufReader, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use cofferdam_agent_protocol::api;
use oci_spec::runtime::{Hook, Hooks, Spec};
use rustix::fs::CWD;
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};

use super::bundle::{Bundle, BundleError, Netns};
use super::cgroup::{self, CgroupError};
use super::cli::Global;
use super::control;
use super::descriptors;
use super::hooks::{self, HookError};
use super::place::Place;
use super::rootfs;
use super::store::{Alive, Container, Record, Status, StoreError};
use super::systemd::SystemdError;
use crate::cli::{Changed, Signals};
use crate::files::New;
use crate::mirror::{self, Mirror, MirrorError};
use crate::shim::wire::{read_line, write_line};
use crate::shim::{signal, size};
use crate::state::{Now, save};
use crate::vm::{DEFAULT_MEMORY, VmError};

/// Why no container is made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CreateError {
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// What is written down.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of ours.
    #[error(transparent)]
    File(#[from] crate::state::StateError),
    /// An option that cannot be.
    #[error("{0}")]
    Option(&'static str),
    /// An interface that it is to get.
    #[error(transparent)]
    Interface(MirrorError),
    /// A container without a mount namespace.
    #[error("cannot mount the container's root on itself")]
    Root(#[source] io::Error),
    /// The process that stands for it.
    #[error("cannot start the process that stands for the container")]
    Start(#[source] io::Error),
    /// It says no.
    #[error("{0}")]
    Refused(String),
    /// It says what it should not.
    #[error("the process that stands for the container said {0:?}")]
    Word(Word),
    /// The host's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// systemd.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// It is gone.
    #[error("the process that stands for the container ended ({0})")]
    Ended(ExitStatus),
    /// The engine's file.
    #[error("cannot write the pid file {path}")]
    PidFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Started, or removed, as others do.
    #[error(transparent)]
    Control(Box<control::Error>),
}

/// What shims say of themselves to who started them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// It is in the container's namespaces, and waits for [`Word::Go`].
    Entered,
    /// From who started it: what had to be done in its namespaces is done.
    Go,
    /// The process is made, and waits or runs. The guest has this network.
    Ready(Mirror),
    /// There is none, and why.
    Failed(String),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The directory with config.json [default: this one]
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// A Unix socket that gets the terminal
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,
    /// Write the number of the process that stands for the container to a file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Taken for runc's sake: the guest has a root of its own in any case
    #[arg(long)]
    no_pivot: bool,
    /// Taken for runc's sake: the guest has keyrings of its own in any case
    #[arg(long)]
    no_new_keyring: bool,
    /// Descriptors for the process, as pipes: those of so many that are open
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    preserve_fds: u32,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    create: Args,
    /// Leave it running
    #[arg(short, long)]
    detach: bool,
    /// Taken for runc's sake: there is nothing to reap
    #[arg(long)]
    no_subreaper: bool,
    /// Do not remove it when it has ended
    #[arg(long)]
    keep: bool,
}

/// A container whose process waits, and the process that stands for it.
struct Made {
    container: Container,
    shim: Child,
}

pub(super) fn create(global: &Global, args: &Args) -> Result<(), CreateError> {
    make(global, args, true).map(drop)
}

pub(super) fn run(global: &Global, args: &RunArgs) -> Result<ExitCode, CreateError> {
    let signals = (!args.detach).then(Signals::block);
    let Made {
        container,
        mut shim,
    } = make(global, &args.create, args.detach)?;
    let control = |error| CreateError::Control(Box::new(error));
    let id = container.record.id.clone();
    let agent = control::agent(&container).map_err(control)?;
    let tty = args.create.console_socket.is_none() && has_terminal(&container)?;
    let started = control::start_one(container);
    if let Err(error) = started {
        let _ = control::delete_one(global, &id, true);
        return Err(control(error));
    }
    let Some(signals) = signals else {
        return Ok(ExitCode::SUCCESS);
    };
    let raw = Changed::raw(tty);
    let agent = std::sync::Arc::new(agent);
    let (resizing, own, theirs) = (agent.clone(), id.clone(), id.clone());
    signals.pass_on(
        move |rows, columns| {
            let mut request = api::ResizeRequest::new();
            request.id.clone_from(&own);
            request.size = Some(size((rows, columns))).into();
            let _ = resizing.resize(request);
        },
        move |number| {
            let _ = agent.signal(signal(&theirs, number));
        },
    );
    let end = shim.wait().map_err(CreateError::Start)?;
    drop(raw);
    if !args.keep {
        control::delete_one(global, &id, true).map_err(control)?;
    }
    Ok(code_of(end))
}

/// As a shell has it.
pub(super) fn code_of(end: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = end.code().or_else(|| Some(128 + end.signal()?));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255))
}

fn has_terminal(container: &Container) -> Result<bool, CreateError> {
    let spec: Spec = crate::state::load(&container.spec())?;
    Ok(spec
        .process()
        .as_ref()
        .and_then(|process| process.terminal())
        == Some(true))
}

/// `detached`: nobody stays with it, so a terminal needs a socket to be handed out at.
fn make(global: &Global, args: &Args, detached: bool) -> Result<Made, CreateError> {
    let descriptors = descriptors::find(args.preserve_fds);
    let bundle = Bundle::open(&args.bundle)?;
    check(args, &bundle, detached)?;
    let (dir, run, alive) = global.store().reserve(&args.id)?;
    let machine = bundle.machine(run.clone(), Vec::new());
    let memory = machine.memory.unwrap_or(DEFAULT_MEMORY);
    let mut container = Container {
        dir,
        record: Record {
            oci_version: bundle.spec.version().clone(),
            id: args.id.clone(),
            pid: 0,
            status: Status::Creating,
            bundle: bundle.dir.clone(),
            rootfs: bundle.rootfs.clone(),
            created: Now::text(),
            annotations: bundle.annotations.clone(),
            hooks: bundle.hooks.clone(),
            run,
            cgroup: None,
            scope: None,
            memory: memory.0,
            network: Mirror::default(),
            resolv_conf: bundle.resolv_conf().map(Path::to_owned),
            is_on_host_network: bundle.netns == Netns::Host,
            root_mount: None,
        },
    };
    match fill(global, &mut container, &bundle, (args, &descriptors), alive) {
        Ok(shim) => Ok(Made { container, shim }),
        Err(error) => {
            let _ = control::clean_up(&container);
            Err(error)
        }
    }
}

fn check(args: &Args, bundle: &Bundle, detached: bool) -> Result<(), CreateError> {
    let why = match (bundle.terminal(), &args.console_socket) {
        (true, None) if detached => {
            "process.terminal is set, and there is no --console-socket to hand the terminal out at"
        }
        (false, Some(_)) => "there is a --console-socket, but process.terminal is not set",
        _ if bundle.spec.process().is_none() => return Err(BundleError::Missing("process").into()),
        _ => return Ok(()),
    };
    Err(CreateError::Option(why))
}

fn fill(
    global: &Global,
    container: &mut Container,
    bundle: &Bundle,
    (args, descriptors): (&Args, &[RawFd]),
    alive: Alive,
) -> Result<Child, CreateError> {
    save(&container.spec(), &bundle.spec)?;
    if !bundle.has_mount_namespace {
        container.record.root_mount = rootfs::bind(&bundle.rootfs).map_err(CreateError::Root)?;
    }
    bundle.prepare()?;
    container.save()?;
    let place = Place::find(bundle.cgroups_path.as_deref(), global.systemd_cgroup)?;
    let mut options: Vec<OsString> = vec!["--dir".into(), container.dir.clone().into()];
    if let Some(socket) = &args.console_socket {
        options.extend(["--console-socket".into(), socket.into()]);
    }
    let mut shim = Shim::start("shim", &options, descriptors, Some(&alive))?;
    let machine = bundle.machine(container.record.run.clone(), Vec::new());
    let limits = cgroup::limits(machine.memory()?.bytes(), &bundle.resources);
    let enter = |container: &mut Container| place.enter(container, &limits, &global.report());
    match follow(container, args, bundle, enter, &mut shim) {
        Ok(()) => Ok(shim.child),
        Err(error) => {
            shim.kill();
            Err(error)
        }
    }
}

/// Does what is to be done while a container's shim makes it.
fn follow(
    container: &mut Container,
    args: &Args,
    Bundle {
        resources,
        interfaces,
        ..
    }: &Bundle,
    enter: impl FnOnce(&mut Container) -> Result<(), CreateError>,
    shim: &mut Shim,
) -> Result<(), CreateError> {
    container.record.pid = shim.child.id();
    container.save()?;
    enter(container)?;
    if let Some(dir) = &container.record.cgroup {
        cgroup::apply(dir, resources)?;
    }
    shim.entered()?;
    for (name, own) in interfaces {
        mirror::give(name, own, &container.netns()).map_err(CreateError::Interface)?;
    }
    let (hooks, state) = (&container.record.hooks, container.state());
    for (kind, hooks) in [
        ("prestart", prestart(hooks)),
        ("createRuntime", hooks.create_runtime()),
    ] {
        hooks::run(kind, hooks, &state, &container.record.bundle)?;
    }
    container.record.network = shim.go()?;
    if let Some(dir) = &container.record.cgroup {
        cgroup::pace(dir, resources)?;
    }
    container.record.status = Status::Created;
    container.save()?;
    write_pid(args.pid_file.as_deref(), container.record.pid)
}

/// Deprecated in the specification, and what Docker has its networks made by.
fn prestart(hooks: &Hooks) -> &Option<Vec<Hook>> {
    #[allow(deprecated)]
    hooks.prestart()
}

/// Writes a pid file so that who waits for it finds all of it.
pub(super) fn write_pid(path: Option<&Path>, pid: u32) -> Result<(), CreateError> {
    let Some(path) = path else { return Ok(()) };
    let write = || -> io::Result<()> {
        let mut new = New::make(CWD, path, 0o644)?;
        write!(new.file, "{pid}")?;
        new.place()
    };
    write().map_err(|source| CreateError::PidFile {
        path: path.to_owned(),
        source,
    })
}

/// A process that stands for one of the guest's, just started.
pub(super) struct Shim {
    pub child: Child,
    control: UnixStream,
}

impl Shim {
    /// Starts one, with our standard streams and the descriptors that its process gets; `alive` stays locked as
    /// long as it lives.
    pub(super) fn start(
        kind: &str,
        options: &[OsString],
        descriptors: &[RawFd],
        alive: Option<&Alive>,
    ) -> Result<Self, CreateError> {
        let start = || -> io::Result<Self> {
            let (control, theirs) = UnixStream::pair()?;
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["runc", kind]).args(options);
            command.arg("--control").arg(theirs.as_raw_fd().to_string());
            for number in descriptors {
                cofferdam::descriptors::pass_on(*number)?;
                command.arg("--preserve-fd").arg(number.to_string());
            }
            // This process has one thread, so nobody else's child gets them.
            fcntl_setfd(&theirs, FdFlags::empty())?;
            if let Some(Alive(lock)) = alive {
                fcntl_setfd(lock, FdFlags::empty())?;
                command.arg("--alive").arg(lock.as_raw_fd().to_string());
            }
            command.stdin(Stdio::inherit());
            let child = command.spawn()?;
            // Hooks get none of them.
            cofferdam::descriptors::close_on_exec();
            Ok(Self { child, control })
        };
        start().map_err(CreateError::Start)
    }

    /// Waits until it is in the container's namespaces.
    fn entered(&mut self) -> Result<(), CreateError> {
        match self.hear()? {
            Word::Entered => Ok(()),
            other => Err(CreateError::Word(other)),
        }
    }

    /// Lets it go on, and waits until its process is made.
    fn go(&mut self) -> Result<Mirror, CreateError> {
        say(&self.control, &Word::Go).map_err(CreateError::Start)?;
        self.ready()
    }

    /// Waits until its process is made.
    pub(super) fn ready(&mut self) -> Result<Mirror, CreateError> {
        match self.hear()? {
            Word::Ready(network) => Ok(network),
            other => Err(CreateError::Word(other)),
        }
    }

    fn hear(&mut self) -> Result<Word, CreateError> {
        match hear(&self.control) {
            Ok(Word::Failed(why)) => Err(CreateError::Refused(why)),
            Ok(word) => Ok(word),
            Err(_) => {
                self.kill();
                let end = self.child.wait().map_err(CreateError::Start)?;
                Err(CreateError::Ended(end))
            }
        }
    }

    /// Ends it, and with it all that it has.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says to who started us how it went.
pub(super) fn say(control: &UnixStream, word: &Word) -> io::Result<()> {
    write_line(&mut &*control, word)
}

/// One word of the other side's. They take turns, so nothing is lost behind it.
pub(super) fn hear(control: &UnixStream) -> io::Result<Word> {
    read_line(&mut BufReader::new(control))
}
