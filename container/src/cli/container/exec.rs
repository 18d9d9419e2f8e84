//! `exec`: one more process, whose streams go from here to the agent without a detour.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use cofferdam_agent_protocol::{Client, api};
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{MemfdFlags, memfd_create};

use super::Outcome;
use super::attach::{Changed, Keys, Signals, show, window};
use super::control::{self, ControlError, agent, failed};
use crate::options::{Isolation, Options, OptionsError};
use crate::shim::{self, Streams, process, size};
use crate::spec;
use crate::state::{self, Container, Containers, new_id};

/// Run one more program in a container
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Give it what is typed
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Leave it running
    #[arg(short, long)]
    detach: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<std::path::PathBuf>,
    /// Working directory [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, by name or number [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// All capabilities
    #[arg(long)]
    privileged: bool,
    /// Name or ID, then command and arguments; what stands behind the container is no option
    #[arg(
        value_names = ["CONTAINER", "COMMAND"],
        required = true,
        num_args = 2..,
        trailing_var_arg = true
    )]
    words: Vec<String>,
}

impl Args {
    fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

pub(super) fn exec(args: &Args) -> Outcome {
    let signals = (!args.detach).then(Signals::block);
    let container = Containers::open()?.find(args.name())?;
    if container.record.options.isolation == Isolation::Process {
        return exec_process(&container, args);
    }
    let agent = Arc::new(agent(&container).map_err(failed)?);
    let process = new_process(&container, args)?;
    match signals {
        None => {
            start(&agent, &container, &process, args, false).map_err(failed)?;
            Ok(0)
        }
        Some(signals) => {
            // Raw mode after the start: what goes wrong there is shown as usual.
            let (exec, streams) =
                start(&agent, &container, &process, args, true).map_err(failed)?;
            let code = follow(&agent, &container.record.id, exec, streams, args, signals)
                .map_err(failed)?;
            Ok(u8::try_from(code).unwrap_or(255))
        }
    }
}

/// Becomes the host's runtime, which does it.
fn exec_process(container: &Container, args: &Args) -> Outcome {
    let root = control::root(container).map_err(failed)?;
    let mut process = new_process(container, args)?;
    spec::resolve_user(&mut process, &root)?;
    // The runtime inherits it, and nobody has to remove it.
    let mut file = File::from(memfd_create("process", MemfdFlags::empty())?);
    file.write_all(&serde_json::to_vec(&process)?)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let runtime = shim::find_runtime(container.record.options.runtime)?;
    let mut command = shim::exec_process(runtime, Path::new(&path));
    if args.detach {
        command.arg("--detach");
    }
    if !args.interactive {
        command.stdin(Stdio::null());
    }
    Err(command.arg(&container.record.id).exec().into())
}

/// The container's own process with what is asked for instead.
fn new_process(container: &Container, args: &Args) -> Result<Process, super::Failed> {
    let spec: Spec = state::load(&container.bundle().join("config.json"))?;
    let mut process = spec.process().clone().unwrap_or_default();
    let mut options = Options {
        env: args.env.clone(),
        env_file: args.env_file.clone(),
        ..Options::default()
    };
    options.resolve().map_err(|error: OptionsError| error)?;
    let mut env = process.env().clone().unwrap_or_default();
    if args.tty && !env.iter().any(|variable| variable.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    spec::merge_env(&mut env, &options.env);
    process.set_env(Some(env));
    process.set_args(Some(args.command().to_vec()));
    process.set_terminal(Some(args.tty));
    if let Some(dir) = &args.workdir {
        process.set_cwd(dir.into());
    }
    if let Some(user) = &args.user {
        process.set_user(spec::user(user));
    }
    if args.privileged || args.user.is_some() {
        spec::set_capabilities(&mut process, args.privileged);
    }
    Ok(process)
}

/// Starts the process; with its streams, if it is attached.
fn start(
    agent: &Client,
    container: &Container,
    process: &Process,
    args: &Args,
    attached: bool,
) -> Result<(String, Streams), ControlError> {
    let exec = new_id();
    let mut request = api::ExecRequest::new();
    request.id.clone_from(&container.record.id);
    request.exec.clone_from(&exec);
    request.process = serde_json::to_vec(process).map_err(|error| ControlError::Lost {
        name: container.record.name.clone(),
        source: error.into(),
    })?;
    let mut wanted = api::Streams::new();
    wanted.token.clone_from(&exec);
    wanted.stdin = attached && args.interactive;
    wanted.stdout = attached;
    wanted.stderr = attached && !args.tty;
    request.streams = Some(wanted).into();
    if args.tty {
        request.size = Some(size(window().unwrap_or((24, 80)))).into();
    }
    Ok((exec, shim::exec(agent, request)?))
}

/// Stays with it until it ends.
fn follow(
    agent: &Arc<Client>,
    id: &str,
    exec: String,
    streams: Streams,
    args: &Args,
    signals: Signals,
) -> Result<i32, ControlError> {
    let raw = Changed::raw(args.tty && args.interactive);
    let (resizing, killing) = (Arc::clone(agent), Arc::clone(agent));
    let request = process(id, &exec);
    let (to_resize, to_kill, is_tty) = (request.clone(), request.clone(), args.tty);
    signals.pass_on(
        move |rows, columns| {
            if is_tty {
                let mut request = api::ResizeRequest::new();
                (request.id, request.exec) = (to_resize.id.clone(), to_resize.exec.clone());
                request.size = Some(size((rows, columns))).into();
                let _ = resizing.resize(request);
            }
        },
        move |signal| {
            let mut request = api::SignalRequest::new();
            (request.id, request.exec) = (to_kill.id.clone(), to_kill.exec.clone());
            request.signal = signal.unsigned_abs();
            let _ = killing.signal(request);
        },
    );
    let (detach, detached) = std::sync::mpsc::channel();
    let ended = detach.clone();
    if let Some(stdin) = streams.stdin {
        thread::spawn(move || {
            if type_into(stdin, is_tty) {
                let _ = detach.send(None);
            }
        });
    }
    let agent = Arc::clone(agent);
    thread::spawn(move || {
        let outputs = [(streams.stdout, false), (streams.stderr, true)];
        let outputs = outputs.map(|(from, is_error)| thread::spawn(move || copy(from, is_error)));
        let end = agent.wait(request.clone());
        // What it printed last may still be on its way.
        for output in outputs {
            let _ = output.join();
        }
        let _ = agent.delete(request);
        let _ = ended.send(Some(end));
    });
    let end = detached.recv();
    drop(raw);
    match end {
        Ok(Some(end)) => Ok(i32::try_from(end?.exit_code).unwrap_or(255)),
        _ => Ok(0),
    }
}

fn copy(from: Option<File>, is_error: bool) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        show(buffer.get(..count).unwrap_or_default(), is_error);
    }
}

/// Passes on what is typed, to its end, which is that of `to`; says whether the user wants to leave.
fn type_into(mut to: File, tty: bool) -> bool {
    let mut keys = Keys::default();
    let mut buffer = vec![0; 32 << 10];
    while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
        let typed = buffer.get(..count).unwrap_or_default();
        let (typed, leave) = match tty {
            true => keys.take(typed),
            false => (typed.to_vec(), false),
        };
        let sent = to.write_all(&typed);
        if leave || sent.is_err() {
            return leave;
        }
    }
    false
}
