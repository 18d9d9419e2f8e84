//! The processes that stand on the host for those in a VM: one for a container, with its VM, and one
//! for each further process in it. They pass on streams and signals, and end with its exit code.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use cofferdam_agent_protocol::stream::Name;
use cofferdam_agent_protocol::{Client, api};
use oci_spec::runtime::Process;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::bundle::{Bundle, BundleError, Netns};
use super::create::{Word, hear, say};
use super::descriptors::{self, DescriptorError};
use super::hooks::{self, HookError};
use super::store::Container;
use super::terminal::{Terminal, TerminalError, size_of};
use super::{control, names, view};
use crate::cli::Signals;
use crate::mirror::{self, Mirror, MirrorError};
use crate::shim::{Guest, Plan, Session, SessionError, Streams, process, signal, size};
use crate::state::{self, StateError, new_id};
use crate::vm::Machine;

/// Rows and columns where nobody says how many.
const SIZE: (u16, u16) = (24, 80);
/// What is copied at once, in bytes.
const BUFFER: usize = 64 << 10;
/// The exit code of a process whose VM is gone, as of one that was killed.
const KILLED: i32 = 137;

/// Why there is no process to stand for.
#[derive(Debug, thiserror::Error)]
enum ShimError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NoProgram(String),
    #[error("exec: {0:?}: permission denied")]
    NotExecutable(String),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Control(#[from] control::Error),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Network(#[from] MirrorError),
    #[error(transparent)]
    Descriptor(#[from] DescriptorError),
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

impl ShimError {
    /// In words that engines look for.
    fn of_process(self, process: &Process) -> Self {
        let Self::Session(error) = self else {
            return self;
        };
        let name = process.args().iter().flatten().next().cloned();
        let name = name.unwrap_or_default();
        match error.failure().code {
            127 => Self::NoProgram(name),
            126 => Self::NotExecutable(name),
            _ => Self::Session(error),
        }
    }
}

fn io(action: &'static str) -> impl FnOnce(io::Error) -> ShimError {
    move |source| ShimError::Io { action, source }
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The container's directory
    #[arg(long)]
    dir: PathBuf,
    /// Where the engine takes the terminal
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// The descriptor of a socket to who started us
    #[arg(long)]
    control: RawFd,
    /// Descriptors that the process gets
    #[arg(long)]
    preserve_fd: Vec<RawFd>,
    /// The descriptor of the container's lock
    #[arg(long)]
    alive: RawFd,
}

#[derive(Debug, clap::Args)]
pub(super) struct ExecArgs {
    /// The container's directory
    #[arg(long)]
    dir: PathBuf,
    /// The process, as of the specification
    #[arg(long)]
    process: PathBuf,
    /// A cgroup below the container's
    #[arg(long)]
    cgroup: String,
    /// Where the engine takes the terminal
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// The descriptor of a socket to who started us
    #[arg(long)]
    control: RawFd,
    /// Descriptors that the process gets
    #[arg(long)]
    preserve_fd: Vec<RawFd>,
}

/// A descriptor that the command line names.
pub(super) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the borrow ends with the statement. One that is closed is an error of the call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, our own program started us with it for this purpose, and each number is taken
    // once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Stands for a container until its end.
pub(super) fn main(args: &Args) -> ExitCode {
    let descriptors = || Ok((inherited(args.control)?, inherited(args.alive)?));
    let (control, _alive) = match descriptors() {
        Ok((control, alive)) => (UnixStream::from(control), alive),
        Err(error) => return lost(&error),
    };
    finish(&control, begin(args, &control))
}

/// Stands for one more process until its end.
pub(super) fn exec_main(args: &ExecArgs) -> ExitCode {
    let control = match inherited(args.control) {
        Ok(control) => UnixStream::from(control),
        Err(error) => return lost(&error),
    };
    finish(&control, begin_exec(args))
}

fn lost(error: &io::Error) -> ExitCode {
    eprintln!("cofferdam: a shim is started by its runtime alone: {error}");
    ExitCode::FAILURE
}

/// What has begun: the thread that knows its end, and the guest's network.
struct Begun {
    work: JoinHandle<i32>,
    network: Mirror,
}

/// Says how the beginning went, and stays to the end.
fn finish(control: &UnixStream, begun: Result<Begun, ShimError>) -> ExitCode {
    let (word, work) = match begun {
        Ok(Begun { work, network }) => (Word::Ready(network), Some(work)),
        Err(error) => (Word::Failed(crate::describe(&error)), None),
    };
    // Who started us is gone before he knew: then nobody waits for this container.
    let said = say(control, &word);
    let (Ok(()), Some(work)) = (said, work) else {
        return ExitCode::FAILURE;
    };
    let _ = control.shutdown(std::net::Shutdown::Both);
    let code = work.join().ok().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(255))
}

fn begin(args: &Args, control: &UnixStream) -> Result<Begun, ShimError> {
    // A session of our own, with a terminal of its own if there is one.
    let _ = rustix::process::setsid();
    let signals = Signals::block();
    let find = || -> Result<Container, StateError> {
        Ok(Container {
            dir: args.dir.clone(),
            record: control::record(&args.dir)?,
        })
    };
    let bundle = Bundle::open(&find()?.record.bundle)?;
    let Some(wanted) = bundle.spec.process().clone() else {
        return Err(BundleError::Missing("process").into());
    };
    let (mut host, window) = host_ends(Some(&wanted), args.console_socket.as_deref())?;
    host.others = descriptors::take(&args.preserve_fd)?;
    match &bundle.netns {
        Netns::Host => {}
        other => mirror::enter(other.path())?,
    }
    let go = say(control, &Word::Entered).and_then(|()| hear(control));
    go.map_err(io("hear from who makes the container"))?;
    // Nothing of the container's is in them; but who looks finds that it has not the host's.
    nix::sched::unshare(bundle.own_namespaces)
        .map_err(|error| io("make namespaces")(error.into()))?;
    let container = find()?;
    hooks::run(
        "createContainer",
        bundle.hooks.create_container(),
        &container.state(),
        &bundle.dir,
    )?;
    let mut network = match bundle.netns {
        Netns::Host => Mirror::default(),
        _ => Mirror::scan()?,
    };
    if bundle.may_get_network_late() {
        network.wait_for_one();
    }
    if let Some(file) = bundle.resolv_conf() {
        network.nameservers = names::servers(Some(file));
        names::serve(&container.record.run).map_err(io("answer questions for names"))?;
    }
    let machine = bundle.machine(container.record.run.clone(), network.taps());
    let streams = wanted_streams(window.is_some(), &host.others);
    let guest = guest(&bundle, &container, (streams, window), &network, &machine)?;
    let (ready, is_ready) = channel();
    let (mirror, seen) = (network.clone(), container.clone());
    // All that needs the host's files is on threads of its own, which keep the host's root.
    let work = thread::spawn(move || {
        let plan = Plan::Vm(Box::new(machine), guest);
        let begun = boot(plan, &mirror).map_err(|error| error.of_process(&wanted));
        let (begun, said) = match begun {
            Ok(begun) => (Some(begun), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let _ = ready.send(said);
        begun.map_or(1, |(session, streams)| {
            work(&container, &session, host.connect(streams), signals)
        })
    });
    match is_ready.recv() {
        Ok(booted) => booted?,
        Err(_) => return Err(io("run the container")(io::ErrorKind::Other.into())),
    }
    if bundle.has_mount_namespace {
        view::enter(&seen, &bundle.shares).map_err(io("enter the container's root"))?;
    }
    Ok(Begun { work, network })
}

/// Boots the VM, with the container in it, and joins it with its network.
fn boot(plan: Plan, network: &Mirror) -> Result<(Arc<Session>, Streams), ShimError> {
    let (session, streams) = Session::boot(plan)?;
    network.join()?;
    Ok((Arc::new(session), streams))
}

/// Waits for the end of the container. Gives its exit code.
fn work(
    container: &Container,
    session: &Arc<Session>,
    outputs: Vec<JoinHandle<()>>,
    signals: Signals,
) -> i32 {
    let (resizing, killing) = (Arc::clone(session), Arc::clone(session));
    signals.pass_on(
        move |rows, columns| {
            let _ = resizing.resize((rows, columns));
        },
        move |number| {
            let _ = killing.signal(number);
        },
    );
    let end = session.wait();
    // Whoever asks is told now; without this word he hears of it when the VM is gone.
    let _ = container.set_ended();
    // What it printed last may still be on its way; the guest ends its streams with its processes.
    for output in outputs {
        let _ = output.join();
    }
    // What was written into mapped files is on the host after that.
    session.end(true);
    end.code
}

/// What the agent is told of the container.
fn guest(
    bundle: &Bundle,
    container: &Container,
    (streams, window): (api::Streams, Option<(u16, u16)>),
    network: &Mirror,
    machine: &Machine,
) -> Result<Guest, ShimError> {
    let spec = serde_json::to_vec(&bundle.spec).map_err(|error| io("write JSON")(error.into()))?;
    let hostname = bundle.spec.hostname().clone().unwrap_or_default();
    let mut network = match bundle.netns {
        Netns::Host => machine.network("", String::new(), String::new()),
        _ => network.request(),
    };
    network.hostname = hostname;
    Ok(Guest {
        id: container.record.id.clone(),
        spec,
        streams,
        size: window,
        init: false,
        directories: Vec::new(),
        network,
    })
}

/// All streams that a process has.
fn wanted_streams(terminal: bool, others: &[(Name, File)]) -> api::Streams {
    let mut streams = api::Streams::new();
    streams.token = new_id();
    (streams.stdin, streams.stdout) = (true, true);
    streams.stderr = !terminal;
    for (name, _) in others {
        match name {
            Name::Input(number) => streams.inputs.push(*number),
            Name::Output(number) => streams.outputs.push(*number),
            _ => {}
        }
    }
    streams
}

fn begin_exec(args: &ExecArgs) -> Result<Begun, ShimError> {
    let _ = rustix::process::setsid();
    let signals = Signals::block();
    let container = Container {
        dir: args.dir.clone(),
        record: control::record(&args.dir)?,
    };
    if let Some(cgroup) = &container.record.cgroup {
        // It may be gone with the container, of which we hear in a moment.
        let _ = std::fs::write(cgroup.join("cgroup.procs"), "0");
    }
    let wanted_process: Process = state::load(&args.process)?;
    let (mut host, window) = host_ends(Some(&wanted_process), args.console_socket.as_deref())?;
    host.others = descriptors::take(&args.preserve_fd)?;
    let agent = Arc::new(control::agent(&container)?);
    let id = container.record.id;
    let exec = new_id();
    let mut request = api::ExecRequest::new();
    (request.id, request.exec) = (id.clone(), exec.clone());
    let json = serde_json::to_vec(&wanted_process);
    request.process = json.map_err(|error| io("write JSON")(error.into()))?;
    request.streams = Some(wanted_streams(window.is_some(), &host.others)).into();
    request.size = window.map(size).into();
    request.cgroup.clone_from(&args.cgroup);
    let streams = crate::shim::exec(&agent, request)
        .map_err(|error| ShimError::from(SessionError::from(error)).of_process(&wanted_process))?;
    let outputs = host.connect(streams);
    let about = process(&id, &exec);
    let (resizing, killing, waiting) = (agent.clone(), agent.clone(), about.clone());
    signals.pass_on(
        move |rows, columns| {
            let mut request = api::ResizeRequest::new();
            (request.id, request.exec) = (about.id.clone(), about.exec.clone());
            request.size = Some(size((rows, columns))).into();
            let _ = resizing.resize(request);
        },
        move |number| {
            let mut request = signal(&id, number);
            request.exec.clone_from(&exec);
            let _ = killing.signal(request);
        },
    );
    Ok(Begun {
        work: thread::spawn(move || end_of(&agent, waiting, outputs)),
        network: Mirror::default(),
    })
}

fn end_of(agent: &Client, process: api::ProcessRequest, outputs: Vec<JoinHandle<()>>) -> i32 {
    let end = agent.wait(process.clone());
    for output in outputs {
        let _ = output.join();
    }
    let _ = agent.delete(process);
    end.map_or(KILLED, |end| i32::try_from(end.exit_code).unwrap_or(255))
}

/// The host's ends of a process's streams.
#[derive(Debug)]
struct Ends {
    stdin: File,
    stdout: File,
    stderr: Option<File>,
    others: Vec<(Name, File)>,
}

/// Those that we were started with, or a terminal that the engine gets, and its size. Of the streams
/// that we were started with nothing is left to us.
fn host_ends(
    process: Option<&Process>,
    console: Option<&Path>,
) -> Result<(Ends, Option<(u16, u16)>), ShimError> {
    let has_terminal = process.and_then(|process| process.terminal()) == Some(true);
    let configured = process.and_then(|process| process.console_size());
    let configured = configured.and_then(|size| {
        let (rows, columns) = (size.height().try_into(), size.width().try_into());
        Some((rows.ok()?, columns.ok()?))
    });
    let configured = configured.filter(|(rows, columns)| *rows > 0 && *columns > 0);
    let own = || -> io::Result<Ends> {
        Ok(Ends {
            stdin: io::stdin().as_fd().try_clone_to_owned()?.into(),
            stdout: io::stdout().as_fd().try_clone_to_owned()?.into(),
            stderr: Some(io::stderr().as_fd().try_clone_to_owned()?.into()),
            others: Vec::new(),
        })
    };
    let mut ends = own().map_err(io("share the standard streams"))?;
    let mut window = None;
    let null = File::options().read(true).write(true).open("/dev/null");
    let mut stdin = null.map_err(io("open /dev/null"))?;
    dup2_stdout(&stdin).map_err(|error| io("let go of streams")(error.into()))?;
    dup2_stderr(&stdin).map_err(|error| io("let go of streams")(error.into()))?;
    if has_terminal {
        ends.stderr = None;
        if let Some(socket) = console {
            let terminal = Terminal::new(socket, configured)?;
            let file = || terminal.file().map_err(io("share the terminal"));
            (ends.stdin, ends.stdout, stdin) = (file()?, file()?, file()?);
        }
        // The terminal's size is asked for at our standard input.
        window = Some(size_of(&ends.stdout).or(configured).unwrap_or(SIZE));
    }
    dup2_stdin(&stdin).map_err(|error| io("let go of streams")(error.into()))?;
    Ok((ends, window))
}

impl Ends {
    /// Starts to copy; gives the threads that copy what comes from the guest.
    fn connect(self, guest: Streams) -> Vec<JoinHandle<()>> {
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        inputs.extend(guest.stdin.map(|to| (self.stdin, to)));
        outputs.extend(guest.stdout.map(|from| (from, self.stdout)));
        outputs.extend(guest.stderr.zip(self.stderr));
        for ((name, own), (_, theirs)) in self.others.into_iter().zip(guest.others) {
            match name {
                Name::Input(_) => inputs.push((own, theirs)),
                _ => outputs.push((theirs, own)),
            }
        }
        for (from, to) in inputs {
            thread::spawn(move || copy(from, to));
        }
        let copying = |(from, to)| thread::spawn(move || copy(from, to));
        outputs.into_iter().map(copying).collect()
    }
}

/// Copies to the end of one of them, and closes both.
fn copy(mut from: File, mut to: File) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A terminal's whose engine is gone; a connection's whose VM is.
            Err(_) => return,
        };
        let data = buffer.get(..count).unwrap_or_default();
        if to.write_all(data).is_err() {
            return;
        }
    }
}
