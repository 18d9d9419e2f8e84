//! `exec`: one more process in a container.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use oci_spec::runtime::{Capabilities, Process, Spec};

use super::cli::Global;
use super::control;
use super::create::{CreateError, Shim, code_of, write_pid};
use super::descriptors;
use super::store::{Container, Status};
use crate::cli::{Changed, Signals};
use crate::state::{self, StateError, new_id};

/// Between looks at a container that is frozen.
const LOOK: Duration = Duration::from_millis(20);

/// Why there is no process.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecError {
    /// What the process is.
    #[error(transparent)]
    File(#[from] StateError),
    /// The process that stands for it.
    #[error(transparent)]
    Shim(#[from] CreateError),
    /// The container.
    #[error(transparent)]
    Control(Box<control::Error>),
    /// Not in this state.
    #[error("cannot exec in a container that is {0}")]
    Status(&'static str),
    /// An option that cannot be.
    #[error("{0}")]
    Option(String),
    /// The process that stands for it is lost.
    #[error("cannot wait for the process")]
    Wait(#[source] io::Error),
}

impl From<control::Error> for ExecError {
    fn from(error: control::Error) -> Self {
        Self::Control(Box::new(error))
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file with the process, as of the specification
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// A Unix socket that gets the terminal
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,
    /// Write the number of the process that stands for it to a file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Leave it running
    #[arg(short, long)]
    detach: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// User
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// More groups
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// More capabilities
    #[arg(short, long, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// It may not gain privileges
    #[arg(long)]
    no_new_privs: bool,
    /// Taken for runc's sake: there is no AppArmor in the guest
    #[arg(long, value_name = "PROFILE", hide = true)]
    apparmor: Option<String>,
    /// Taken for runc's sake: there is no SELinux in the guest
    #[arg(long, value_name = "LABEL", hide = true)]
    process_label: Option<String>,
    /// Descriptors for the process; a VM can have none, so none of them may be open
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    preserve_fds: u32,
    /// Wait for a frozen container to be thawed
    #[arg(long)]
    ignore_paused: bool,
    /// A cgroup below the container's, as in its /sys/fs/cgroup
    #[arg(long, value_name = "PATH", default_value = "/")]
    cgroup: String,
    /// The container's ID, then command and arguments; what stands behind the ID is no option
    #[arg(
        value_names = ["ID", "COMMAND"],
        required = true,
        num_args = 1..,
        trailing_var_arg = true
    )]
    words: Vec<String>,
}

impl Args {
    fn id(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

pub(super) fn exec(global: &Global, args: &Args) -> Result<ExitCode, ExecError> {
    let descriptors = descriptors::find(args.preserve_fds);
    let signals = (!args.detach).then(Signals::block);
    let container = ready(global, args)?;
    let spec: Spec = state::load(&container.spec())?;
    let affinity = spec.process().as_ref();
    let affinity = affinity.and_then(|process| process.exec_cpu_affinity().clone());
    let process: Process = match &args.process {
        Some(path) => state::load(path)?,
        None => new_process(spec, args)?,
    };
    let has_terminal = process.terminal() == Some(true);
    check(args, has_terminal)?;
    let mut process = process;
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    if process.exec_cpu_affinity().is_none() {
        process.set_exec_cpu_affinity(affinity);
    }
    let file = container.dir.join(format!("process-{}.json", new_id()));
    state::save(&file, &process)?;
    let mut options: Vec<std::ffi::OsString> = vec!["--dir".into(), container.dir.clone().into()];
    options.extend(["--process".into(), file.clone().into()]);
    options.extend(["--cgroup".into(), args.cgroup.clone().into()]);
    if let Some(socket) = &args.console_socket {
        options.extend(["--console-socket".into(), socket.into()]);
    }
    let started = Shim::start("exec-shim", &options, &descriptors, None).and_then(|mut shim| {
        let ready = shim.ready();
        let ready = ready.and_then(|_| write_pid(args.pid_file.as_deref(), shim.child.id()));
        ready.map(|()| shim)
    });
    let _ = std::fs::remove_file(&file);
    let mut shim = started?;
    let Some(signals) = signals else {
        return Ok(ExitCode::SUCCESS);
    };
    let raw = Changed::raw(has_terminal && args.console_socket.is_none());
    // Its terminal is ours, but not its own: it hears of sizes and signals from us.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(shim.child.id()).unwrap_or(0));
    signals.pass_on(
        move |_, _| {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGWINCH);
        },
        move |number| {
            if let Ok(signal) = nix::sys::signal::Signal::try_from(number) {
                let _ = nix::sys::signal::kill(pid, signal);
            }
        },
    );
    let end = shim.child.wait().map_err(ExecError::Wait)?;
    drop(raw);
    Ok(code_of(end))
}

/// The container, once a process can be run in it.
fn ready(global: &Global, args: &Args) -> Result<Container, ExecError> {
    loop {
        let container = control::running(global, args.id())?;
        match container.status() {
            Status::Paused if args.ignore_paused => std::thread::sleep(LOOK),
            Status::Paused => {
                return Err(ExecError::Status(
                    "paused (use --ignore-paused to override)",
                ));
            }
            Status::Creating => return Err(ExecError::Status("creating")),
            _ => return Ok(container),
        }
    }
}

fn check(args: &Args, has_terminal: bool) -> Result<(), ExecError> {
    let why = match (has_terminal, &args.console_socket) {
        (true, None) if args.detach => {
            "the process has a terminal, and there is no --console-socket to hand it out at"
        }
        (false, Some(_)) => "there is a --console-socket, but the process has no terminal",
        _ => return Ok(()),
    };
    Err(ExecError::Option(why.into()))
}

/// The container's own process with what is asked for instead.
fn new_process(spec: Spec, args: &Args) -> Result<Process, ExecError> {
    let mut process = spec.process().clone().unwrap_or_default();
    if args.command().is_empty() {
        return Err(ExecError::Option(
            "there is neither --process nor a command".into(),
        ));
    }
    process.set_args(Some(args.command().to_vec()));
    process.set_terminal(Some(args.tty));
    if let Some(dir) = &args.cwd {
        process.set_cwd(dir.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    let mut user = process.user().clone();
    if let Some(text) = &args.user {
        let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
        let bad =
            || ExecError::Option(format!("--user {text}: UID[:GID], in numbers, is expected"));
        user.set_uid(uid.parse().map_err(|_| bad())?);
        user.set_gid(gid.parse().map_err(|_| bad())?);
    }
    if !args.additional_gids.is_empty() {
        user.set_additional_gids(Some(args.additional_gids.clone()));
    }
    process.set_user(user);
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if !args.cap.is_empty() {
        let mut all = process.capabilities().clone().unwrap_or_default();
        let more = args.cap.iter().map(|name| {
            let name = name.trim_start_matches("CAP_");
            name.parse::<oci_spec::runtime::Capability>()
                .map_err(|_| ExecError::Option(format!("--cap: there is no capability {name}")))
        });
        let more = more.collect::<Result<Vec<_>, _>>()?;
        let with = |set: &Option<Capabilities>| {
            let all = set.iter().flatten().copied();
            Some(all.chain(more.iter().copied()).collect())
        };
        let (bounding, effective) = (with(all.bounding()), with(all.effective()));
        let permitted = with(all.permitted());
        all.set_bounding(bounding);
        all.set_effective(effective);
        all.set_permitted(permitted);
        process.set_capabilities(Some(all));
    }
    Ok(process)
}
