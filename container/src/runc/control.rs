//! Commands about containers that there are.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::{Client, ClientError, api};
use oci_spec::runtime::{LinuxResources, Spec};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::cgroup::{self, CgroupError};
use super::cli::Global;
use super::create::CreateError;
use super::exec::ExecError;
use super::hooks::{self, HookError};
use super::store::{Container, Record, Status, StoreError};
use super::{limits, look, names};
use crate::cli::signal as parse_signal;
use crate::json;
use crate::mirror::{self, Mirror, MirrorError};
use crate::shim::{container as of_container, process as of_process, signal};
use crate::state::{self, StateError, new_id};

/// How long the guest may take to kill a process before its VM is.
const KILL: Duration = Duration::from_secs(10);
/// How long the end of a container may take after that.
const END: Duration = Duration::from_secs(40);
/// How long `start` waits for a `create` that is at work: longer than that may take.
const CREATE: Duration = Duration::from_secs(150);
/// Between looks at what others do.
const LOOK: Duration = Duration::from_millis(5);
const SIGKILL: i32 = Signal::KILL.as_raw();

/// Why a container does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// What is written down.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of ours.
    #[error(transparent)]
    File(#[from] StateError),
    /// It is not made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A process in it.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The agent says no.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// Engines look for these words.
    #[error("container not running")]
    NotRunning,
    /// Not in this state.
    #[error("cannot {action} a container that is {status}")]
    Status {
        /// What was asked.
        action: &'static str,
        /// What it is.
        status: &'static str,
    },
    /// It does not go.
    #[error("cannot delete container {0}: its process {1} does not end")]
    Stuck(String, u32),
    /// A hook in the container.
    #[error("the startContainer hook {path} failed ({code})")]
    StartHook {
        /// Its program.
        path: String,
        /// How it ended.
        code: u32,
    },
    /// A hook on the host.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The network.
    #[error(transparent)]
    Network(#[from] MirrorError),
    /// The host's cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A word of the command line.
    #[error("{0}")]
    Argument(String),
    /// Our streams.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

pub(super) fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::Io { action, source }
}

/// A container.
#[derive(Debug, clap::Args)]
pub(super) struct Id {
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct KillArgs {
    /// All processes in it, not only the first
    #[arg(short, long)]
    all: bool,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
    /// Its name or number
    #[arg(value_name = "SIGNAL", default_value = "TERM", value_parser = parse_signal)]
    signal: i32,
}

#[derive(Debug, clap::Args)]
pub(super) struct DeleteArgs {
    /// Kill it first, if it runs
    #[arg(short, long)]
    force: bool,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct UpdateArgs {
    /// A file with linux.resources of the specification; - is standard input
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Bytes of memory, with b, k, m or g behind if not bytes
    #[arg(short, long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    memory: Option<i64>,
    /// Bytes of memory that it is kept to when the guest is short of it
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    memory_reservation: Option<i64>,
    /// Bytes of memory and swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    memory_swap: Option<i64>,
    /// Microseconds that a quota is for
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// Microseconds of a CPU in each period
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Microseconds that it may save from periods before
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_burst: Option<u64>,
    /// Its weight among others
    #[arg(long, value_name = "WEIGHT")]
    cpu_share: Option<u64>,
    /// 1: it runs when nobody else wants to
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    cpu_idle: Option<i64>,
    /// The host's CPUs that its VM may run on
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// The host's nodes of memory that its VM may be in
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Its weight among others at the host's disks, from 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Processes at most
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

/// What is written down in a container's directory.
pub(super) fn record(dir: &Path) -> Result<Record, StateError> {
    state::load(&dir.join("state.json"))
}

/// The agent in a container's VM.
pub(super) fn agent(container: &Container) -> Result<Client, Error> {
    Ok(Client::connect(&container.vsock())?.0)
}

fn find(global: &Global, id: &str) -> Result<Container, Error> {
    Ok(global.store().find(id)?)
}

/// Who creates and starts containers without waiting in between finds it created all the same.
pub(super) fn start(global: &Global, id: &Id) -> Result<(), Error> {
    let begun = Instant::now();
    loop {
        let container = find(global, &id.id)?;
        if container.status() != Status::Creating || begun.elapsed() > CREATE {
            return start_one(container);
        }
        thread::sleep(LOOK);
    }
}

pub(super) fn start_one(mut container: Container) -> Result<(), Error> {
    let status = container.status();
    if status != Status::Created {
        return Err(Error::Status {
            action: "start",
            status: status.name(),
        });
    }
    let agent = agent(&container)?;
    if !container.record.is_on_host_network {
        mirror(&mut container, &agent)?;
    }
    if let Err(error) = start_hooks(&container, &agent) {
        stop(&container);
        // As with runc, whose start does not wait for what the hooks in the container do.
        poststart(&container).err().iter().for_each(warn);
        return Err(error);
    }
    agent.start(of_container(&container.record.id))?;
    container.record.status = Status::Running;
    container.save()?;
    poststart(&container).inspect_err(|_| stop(&container))?;
    Ok(())
}

/// Runs the poststart hooks, for which it runs, however soon its process ended.
fn poststart(container: &Container) -> Result<(), HookError> {
    let mut state = container.state();
    state["status"] = Status::Running.name().into();
    state["pid"] = container.record.pid.into();
    let hooks = container.record.hooks.poststart();
    hooks::run("poststart", hooks, &state, &container.record.bundle)
}

/// Ends a container that failed to start; it is there until it is deleted.
fn stop(container: &Container) {
    let _ = kill_one(container, SIGKILL, false);
}

/// A failure when nothing can be undone any more.
fn warn(error: &impl std::error::Error) {
    let _ = writeln!(
        io::stderr(),
        "level=warning msg={:?}",
        crate::describe(error)
    );
}

/// Tells the guest what has changed in the container's network namespace since it was made.
fn mirror(container: &mut Container, agent: &Client) -> Result<(), Error> {
    let netns = container.netns();
    let before = &container.record.network;
    let nameservers = names::servers(container.record.resolv_conf.as_deref());
    let (now, is_new) = mirror::within(&netns, || {
        let mut now = Mirror::scan()?;
        now.nameservers = nameservers;
        let is_new = now.since(before)?;
        Ok::<_, MirrorError>((now, is_new))
    })??;
    if is_new {
        agent.network(now.request())?;
        container.record.network = now;
    }
    Ok(())
}

/// Runs the startContainer hooks, which are programs of the container's, in it.
fn start_hooks(container: &Container, agent: &Client) -> Result<(), Error> {
    let Some(hooks) = container.record.hooks.start_container() else {
        return Ok(());
    };
    let spec: Spec = state::load(&container.spec())?;
    let state = container.state().to_string();
    for hook in hooks {
        let path = hook.path().display().to_string();
        let mut args = vec![path.clone()];
        args.extend(hook.args().iter().flatten().skip(1).cloned());
        let mut process = spec.process().clone().unwrap_or_default();
        process.set_args(Some(args));
        if hook.env().is_some() {
            process.set_env(hook.env().clone());
        }
        process.set_terminal(Some(false));
        // That is for who is executed later.
        process.set_exec_cpu_affinity(None);
        let mut request = api::ExecRequest::new();
        request.id.clone_from(&container.record.id);
        request.exec = new_id();
        let json = serde_json::to_vec(&process);
        request.process = json.map_err(|e| io_error("cannot write JSON")(e.into()))?;
        let mut streams = api::Streams::new();
        (streams.token, streams.stdin) = (new_id(), true);
        request.streams = Some(streams).into();
        let about = of_process(&container.record.id, &request.exec);
        let streams = crate::shim::exec(agent, request)?;
        // It need not read it.
        let _ = streams
            .stdin
            .map(|mut stdin| stdin.write_all(state.as_bytes()));
        let code = agent.wait(about.clone())?.exit_code;
        agent.delete(about)?;
        if code != 0 {
            return Err(Error::StartHook { path, code });
        }
    }
    Ok(())
}

pub(super) fn state(global: &Global, id: &Id) -> Result<(), Error> {
    let state = find(global, &id.id)?.state();
    look::print(&format!("{state:#}\n"))
}

pub(super) fn kill(global: &Global, args: &KillArgs) -> Result<(), Error> {
    let container = find(global, &args.id)?;
    kill_one(&container, args.signal, args.all)
}

fn kill_one(container: &Container, number: i32, all: bool) -> Result<(), Error> {
    if container.status() == Status::Stopped {
        return Err(Error::NotRunning);
    }
    let mut request = signal(&container.record.id, number);
    request.all = all;
    let (done, is_done) = channel();
    let theirs = container.clone();
    thread::spawn(move || {
        let sent = agent(&theirs).and_then(|agent| Ok(agent.signal(request)?));
        let _ = done.send(sent);
    });
    let sent = is_done.recv_timeout(KILL);
    match sent {
        Ok(Ok(_)) if number == SIGKILL && !all => {
            wait_for_end(container);
            Ok(())
        }
        Ok(Ok(_)) => Ok(()),
        // Whatever the guest says of it: KILL ends the container.
        _ if number == SIGKILL => {
            end(container);
            Ok(())
        }
        Ok(Err(Error::Agent(error))) if error.is_not_found() || is_over(&error) => {
            Err(Error::NotRunning)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::Argument(
            "the guest does not answer; KILL ends it".into(),
        )),
    }
}

/// After KILL: who deletes the container next need not know that its process ends in another kernel.
fn wait_for_end(container: &Container) {
    let begun = Instant::now();
    while container.status() != Status::Stopped && begun.elapsed() < KILL {
        thread::sleep(LOOK);
    }
}

/// Whether the agent says that the process has ended.
fn is_over(error: &ClientError) -> bool {
    matches!(error, ClientError::Failed { message, .. } if message.contains("has ended"))
}

/// Ends the process that stands for a container, and with it its VM.
fn end(container: &Container) {
    let pid = i32::try_from(container.record.pid)
        .ok()
        .and_then(Pid::from_raw);
    // The number is still its own: it holds the lock.
    if let Some(pid) = pid
        && container.is_held()
    {
        let _ = kill_process(pid, Signal::KILL);
    }
}

pub(super) fn delete(global: &Global, args: &DeleteArgs) -> Result<(), Error> {
    delete_one(global, &args.id, args.force)
}

pub(super) fn delete_one(global: &Global, id: &str, force: bool) -> Result<(), Error> {
    let container = match find(global, id) {
        Err(Error::Store(StoreError::Unknown(_))) if force => {
            return Ok(global.store().sweep(id)?);
        }
        found => found?,
    };
    match container.status() {
        Status::Stopped => {}
        Status::Created | Status::Creating => end(&container),
        _ if force => kill_one(&container, SIGKILL, false).or_else(|error| match error {
            Error::NotRunning => Ok(()),
            other => Err(other),
        })?,
        status => {
            return Err(Error::Status {
                action: "delete",
                status: status.name(),
            });
        }
    }
    let begun = Instant::now();
    while container.is_held() {
        if begun.elapsed() > KILL {
            end(&container);
        }
        if begun.elapsed() > END {
            return Err(Error::Stuck(id.to_owned(), container.record.pid));
        }
        thread::sleep(LOOK);
    }
    clean_up(&container)
}

/// Removes what is left of a container that has stopped.
pub(super) fn clean_up(container: &Container) -> Result<(), Error> {
    if let Some(cgroup) = &container.record.cgroup {
        cgroup::remove(cgroup, &container.dir)?;
    }
    if let Some(scope) = &container.record.scope {
        // Empty, it goes in any case; now its name is free for the next. With somebody in it we do not get
        // here: to stop it would kill him.
        scope.stop().err().iter().for_each(warn);
    }
    if let Some(mount) = container.record.root_mount {
        super::rootfs::unbind(&container.record.rootfs, mount);
    }
    let state = container.state();
    container.remove()?;
    let hooks = container.record.hooks.poststop();
    let failed = hooks::run_all("poststop", hooks, &state, Path::new("/"));
    failed.iter().for_each(warn);
    Ok(())
}

/// A container that runs.
pub(super) fn running(global: &Global, id: &str) -> Result<Container, Error> {
    let container = find(global, id)?;
    match container.status() {
        Status::Stopped => Err(Error::NotRunning),
        _ => Ok(container),
    }
}

pub(super) fn pause(global: &Global, id: &Id, pause: bool) -> Result<(), Error> {
    let mut container = running(global, &id.id)?;
    let request = of_container(&container.record.id);
    let (wanted, then, action) = match pause {
        true => (Status::Running, Status::Paused, "pause"),
        false => (Status::Paused, Status::Running, "resume"),
    };
    let status = container.status();
    if status != wanted {
        let status = status.name();
        return Err(Error::Status { action, status });
    }
    let agent = agent(&container)?;
    match pause {
        true => agent.pause(request)?,
        false => agent.resume(request)?,
    };
    container.record.status = then;
    Ok(container.save()?)
}

pub(super) fn update(global: &Global, args: &UpdateArgs) -> Result<(), Error> {
    let container = running(global, &args.id)?;
    let mut resources = match &args.resources {
        Some(path) => read_json(path)?,
        None => json!({}),
    };
    parse_resources(&resources)?;
    let flags = [
        (args.memory.map(Value::from), "memory", "limit"),
        (
            args.memory_reservation.map(Value::from),
            "memory",
            "reservation",
        ),
        (args.memory_swap.map(Value::from), "memory", "swap"),
        (args.cpu_period.map(Value::from), "cpu", "period"),
        (args.cpu_quota.map(Value::from), "cpu", "quota"),
        (args.cpu_burst.map(Value::from), "cpu", "burst"),
        (args.cpu_share.map(Value::from), "cpu", "shares"),
        (args.cpu_idle.map(Value::from), "cpu", "idle"),
        (args.cpuset_cpus.clone().map(Value::from), "cpu", "cpus"),
        (args.cpuset_mems.clone().map(Value::from), "cpu", "mems"),
        (args.blkio_weight.map(Value::from), "blockIO", "weight"),
        (args.pids_limit.map(Value::from), "pids", "limit"),
    ];
    for (value, part, field) in flags {
        if let Some(value) = value {
            resources[part][field] = value;
        }
    }
    let of_the_host = parse_resources(&resources)?;
    // What names the host's own CPUs and disks.
    if let Some(all) = resources.as_object_mut() {
        all.retain(|key, _| {
            !["blockIO", "hugepageLimits", "network", "rdma"].contains(&key.as_str())
        });
    }
    if let Some(cpu) = resources.get_mut("cpu").and_then(Value::as_object_mut) {
        cpu.retain(|key, _| key != "cpus" && key != "mems");
        // 0 is what engines say for what shall stay.
        let means_zero = |key: &str| ["burst", "idle"].contains(&key);
        cpu.retain(|key, value| means_zero(key) || value.as_i64() != Some(0));
    }
    if let Some(unified) = resources.get_mut("unified").and_then(Value::as_object_mut) {
        unified.retain(|file, _| !limits::is_of_the_host(file));
    }
    if let Some(memory) = resources.get_mut("memory").and_then(Value::as_object_mut) {
        memory.retain(|_, value| value.as_i64() != Some(0));
    }
    let limit = resources["memory"]["limit"].as_u64();
    let has = container.record.memory;
    if limit.is_some_and(|limit| limit > has) {
        return Err(Error::Argument(format!(
            "memory: the VM was made for {has} bytes, and a running one does not grow; make the \
             container anew with that limit"
        )));
    }
    let mut request = api::UpdateRequest::new();
    request.id.clone_from(&container.record.id);
    request.resources = resources.to_string().into_bytes();
    agent(&container)?.update(request)?;
    if let Some(dir) = &container.record.cgroup {
        cgroup::apply(dir, &of_the_host)?;
        cgroup::pace(dir, &of_the_host)?;
    }
    Ok(())
}

/// A number of bytes, as runc takes it.
fn bytes(text: &str) -> Result<i64, String> {
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match lower.get(number.len()..).unwrap_or_default() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err("bytes are expected, with k, m, g or t behind if not bytes".into()),
    };
    let number: i64 = number.parse().map_err(|_| "no number".to_owned())?;
    number.checked_mul(factor).ok_or("too large".into())
}

fn parse_resources(resources: &Value) -> Result<LinuxResources, Error> {
    let parsed: LinuxResources = json::from_value(resources.clone())
        .map_err(|error| Error::Argument(format!("the resources: {error}")))?;
    limits::check(&parsed).map_err(|bad| Error::Argument(format!("{}: {bad}", bad.field())))?;
    Ok(parsed)
}

fn read_json(path: &Path) -> Result<Value, Error> {
    let mut text = Vec::new();
    let read = match path == Path::new("-") {
        true => io::stdin().read_to_end(&mut text).map(drop),
        false => std::fs::read(path).map(|all| text = all),
    };
    let parsed = read.and_then(|()| Ok(json::from_slice(&text)?));
    parsed.map_err(io_error(format!("cannot read {}", path.display())))
}
