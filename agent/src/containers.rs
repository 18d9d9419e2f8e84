//! The containers and their processes: what there is, what has ended, what has happened.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_agent_protocol::api;
use cofferdam_agent_protocol::stream::Name;
use cofferdam_root::RootDir;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::channel::{Order, Task};
use crate::error::{Context, Error, Result};
use crate::rootfs::Mounts;
use crate::spawn::{Prepared, prepare};
use crate::spec::{self, Seccomp, Spec};
use crate::streams::{Live, Waiting, names_of, numbers_of};

/// How many ended processes of a container's are remembered that nobody has asked to forget.
const MAX_ENDED: usize = 256;

/// How many events are remembered.
const MAX_EVENTS: usize = 1024;

/// How long what was killed may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// All of them.
#[derive(Debug)]
pub struct Containers {
    state: Mutex<State>,
    /// Something in the state has changed that somebody may wait for.
    changed: Condvar,
    /// Connections that wait for their process.
    pub waiting: Waiting,
    /// What the main loop waits for; files of containers are added with their key.
    pub epoll: Epoll,
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<String, Container>,
    /// Names of what is being made, container and exec.
    reserved: BTreeSet<(String, String)>,
    /// Processes that ended while others were being made, whose numbers are not known yet.
    unclaimed: Vec<(i32, Ended)>,
    events: VecDeque<api::Event>,
    last_event: u64,
    last_key: u64,
}

#[derive(Debug)]
struct Container {
    /// By which the main loop knows its file.
    key: u64,
    init: Process,
    execs: BTreeMap<String, Process>,
    cgroup: Cgroup,
    /// Of memory: the kernel tells when it changes.
    events: File,
    oom_kills: u64,
    paused: bool,
    has_pid_namespace: bool,
    namespaces: Vec<String>,
    seccomp: Option<Seccomp>,
    /// Where something is mounted in it.
    points: Vec<PathBuf>,
    /// Dropped last: undoes the mounts.
    mounts: Mounts,
}

#[derive(Debug)]
struct Process {
    pid: i32,
    status: Status,
    token: String,
    names: Vec<Name>,
    terminal: Option<OwnedFd>,
    /// What of its streams is to be ended with it.
    live: Live,
}

#[derive(Debug)]
enum Status {
    Created(Box<Prepared>),
    Running,
    Ended(Ended),
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
struct Ended {
    code: i32,
    /// 0: by itself.
    signal: i32,
    unix_ns: i64,
    oom: bool,
}

/// Holds a name while its container or process is being made.
struct Reservation<'a> {
    containers: &'a Containers,
    name: (String, String),
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = self.containers.lock();
        state.reserved.remove(&self.name);
        if state.reserved.is_empty() {
            state.unclaimed.clear();
        }
    }
}

fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// What a container or process is called in errors.
fn describe(id: &str, exec: &str) -> String {
    if exec.is_empty() {
        format!("container {id}")
    } else {
        format!("process {exec} in container {id}")
    }
}

fn size_of_terminal(size: &api::Size) -> Option<(u16, u16)> {
    let clamp = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    (size.rows != 0 && size.columns != 0).then(|| (clamp(size.rows), clamp(size.columns)))
}

/// Where something is mounted in a container, or may be, as paths without links.
fn points(root: &RootDir, spec: &Spec, directories: &[String]) -> Vec<PathBuf> {
    let mounts = spec.mounts.iter().map(|mount| &mount.destination);
    let all = mounts.chain(directories);
    all.map(|path| root.resolve(path).unwrap_or_else(|_| path.into()))
        .collect()
}

impl Container {
    fn process(&mut self, id: &str, exec: &str) -> Result<&mut Process> {
        if exec.is_empty() {
            return Ok(&mut self.init);
        }
        let missing = || Error::NotFound(describe(id, exec));
        self.execs.get_mut(exec).ok_or_else(missing)
    }

    /// Who left a process to itself does not have it forgotten when it has ended.
    fn forget_oldest(&mut self) {
        let ended = self
            .execs
            .iter()
            .filter_map(|(exec, process)| match process.status {
                Status::Ended(how) => Some((how.unix_ns, exec)),
                _ => None,
            });
        let mut ended: Vec<_> = ended.collect();
        ended.sort();
        let surplus = ended.len().saturating_sub(MAX_ENDED);
        let surplus: Vec<String> = ended
            .iter()
            .take(surplus)
            .map(|(_, exec)| (*exec).clone())
            .collect();
        for exec in surplus {
            self.execs.remove(&exec);
        }
    }
}

impl State {
    fn container(&mut self, id: &str) -> Result<&mut Container> {
        let missing = || Error::NotFound(describe(id, ""));
        self.containers.get_mut(id).ok_or_else(missing)
    }

    fn process(&mut self, id: &str, exec: &str) -> Result<&mut Process> {
        self.container(id)?.process(id, exec)
    }

    fn event(&mut self, id: &str, exec: &str, kind: api::event::Kind) {
        self.last_event += 1;
        let mut event = api::Event::new();
        event.sequence = self.last_event;
        event.id = id.to_owned();
        event.exec = exec.to_owned();
        event.unix_ns = now();
        event.kind = Some(kind);
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The process has ended; if somebody has its number, that one learns of it.
    fn ended(&mut self, pid: i32, how: Ended) -> bool {
        let mut found = None;
        for (id, container) in &mut self.containers {
            let init = ("", &mut container.init);
            let execs = container
                .execs
                .iter_mut()
                .map(|(exec, process)| (exec.as_str(), process));
            for (exec, process) in std::iter::once(init).chain(execs) {
                if process.pid != pid || matches!(process.status, Status::Ended(_)) {
                    continue;
                }
                let mut how = how;
                how.oom = container.cgroup.oom_kills() > 0;
                process.status = Status::Ended(how);
                std::mem::take(&mut process.live).end();
                process.terminal = None;
                found = Some((id.clone(), exec.to_owned(), how));
            }
            // Without a namespace of their own, what it has started does not end with it.
            if found.as_ref().is_some_and(|(_, exec, _)| exec.is_empty())
                && !container.has_pid_namespace
            {
                let _ = container.cgroup.kill();
            }
            if found.is_some() {
                container.forget_oldest();
                break;
            }
        }
        let Some((id, exec, how)) = found else {
            return false;
        };
        self.event(&id, &exec, api::event::Kind::Exit(how.response()));
        true
    }
}

impl Ended {
    fn response(self) -> api::WaitResponse {
        let mut response = api::WaitResponse::new();
        response.exit_code = self.code.unsigned_abs();
        response.signal = self.signal.unsigned_abs();
        response.exited_unix_ns = self.unix_ns;
        response.oom = self.oom;
        response
    }
}

impl Containers {
    /// None yet.
    pub fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        Ok(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            waiting: Waiting::default(),
            epoll: epoll.context(|| "make an epoll".into())?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name for what is about to be made.
    fn reserve(&self, id: &str, exec: &str) -> Result<Reservation<'_>> {
        let name = (id.to_owned(), exec.to_owned());
        for part in [id, exec] {
            let good = part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
            if !good || part.len() > 200 || part.starts_with('.') {
                let why = "a name has letters, digits, _, - and . (not first), 200 at most";
                return Err(Error::invalid(format!("name {part:?}"), why));
            }
        }
        if id.is_empty() {
            return Err(Error::invalid("id", "it is empty"));
        }
        let mut state = self.lock();
        if state.process(id, exec).is_ok() || !state.reserved.insert(name.clone()) {
            let what = describe(id, exec);
            return Err(Error::State {
                what,
                why: "exists already".into(),
            });
        }
        Ok(Reservation {
            containers: self,
            name,
        })
    }

    /// Makes a container, up to where its program would be executed. Gives its process's number.
    pub fn create(&self, request: &api::CreateRequest) -> Result<i32> {
        let id = request.id.as_str();
        let _reservation = self.reserve(id, "")?;
        let mut spec: Spec =
            serde_json::from_slice(&request.spec).map_err(|error| Error::invalid("spec", error))?;
        let missing = || Error::invalid("spec.process", "there is none");
        let process = spec.process.take().ok_or_else(missing)?;
        let names = names_of(&request.streams, process.terminal)?;
        let rootfs = request.rootfs.as_ref();
        let rootfs = rootfs.ok_or_else(|| Error::invalid("rootfs", "there is none"))?;
        let mounts = Mounts::new(id, rootfs, &request.storages)?;
        let root = mounts.root()?;
        for path in &request.directories {
            root.make_directory(path)
                .context(|| format!("make the directory {path}"))?;
        }
        let cgroup = Undo(Some(Cgroup::create(id, spec.linux.resources.as_ref())?));
        let order = Order {
            process,
            cgroup: cgroup.path(),
            size: size_of_terminal(&request.size),
            descriptors: numbers_of(&names),
            task: Task::Create {
                rootfs: mounts.rootfs().display().to_string(),
                spec: Box::new(spec),
                init: request.init,
            },
        };
        let mut prepared = prepare(&order, &names)?;
        let Task::Create { spec, .. } = order.task else {
            return Err(missing());
        };
        let points = points(&root, &spec, &request.directories);
        let namespaces = spec
            .linux
            .namespaces
            .into_iter()
            .flatten()
            .map(|one| one.kind);
        let namespaces: Vec<_> = namespaces.collect();
        let events = File::open(PathBuf::from(cgroup.path()).join("memory.events"))
            .context(|| "watch the container's memory".into())?;
        let pid = prepared.pid;
        let mut state = self.lock();
        state.last_key += 1;
        let key = state.last_key;
        self.epoll
            .add(&events, EpollEvent::new(EpollFlags::EPOLLPRI, key))
            .context(|| "watch the container's memory".into())?;
        let container = Container {
            key,
            init: Process {
                pid,
                token: request.streams.token.clone(),
                names,
                terminal: prepared.terminal.take(),
                live: Live::default(),
                status: Status::Created(Box::new(prepared)),
            },
            execs: BTreeMap::new(),
            cgroup: cgroup.keep()?,
            events,
            oom_kills: 0,
            paused: false,
            has_pid_namespace: namespaces.iter().any(|kind| kind == "pid"),
            namespaces,
            seccomp: spec.linux.seccomp,
            points,
            mounts,
        };
        state.containers.insert(id.to_owned(), container);
        self.claim(&mut state, pid);
        Ok(pid)
    }

    /// Gives a process that is now known the end that it may have had before.
    fn claim(&self, state: &mut State, pid: i32) {
        if let Some(at) = state.unclaimed.iter().position(|(other, _)| *other == pid) {
            let (_, how) = state.unclaimed.swap_remove(at);
            state.ended(pid, how);
            self.changed.notify_all();
        }
    }

    /// Executes a container's program, once its streams are there.
    pub fn start(&self, id: &str) -> Result<()> {
        let (token, names) = {
            let mut state = self.lock();
            let process = state.process(id, "")?;
            if !matches!(process.status, Status::Created(_)) {
                let what = describe(id, "");
                return Err(Error::State {
                    what,
                    why: "was started already".into(),
                });
            }
            (process.token.clone(), process.names.clone())
        };
        let connections = self.waiting.take(&token, &names)?;
        let prepared = {
            let mut state = self.lock();
            let process = state.process(id, "")?;
            match std::mem::replace(&mut process.status, Status::Running) {
                Status::Created(prepared) => prepared,
                other => {
                    process.status = other;
                    let what = describe(id, "");
                    return Err(Error::State {
                        what,
                        why: "was started already".into(),
                    });
                }
            }
        };
        let live = prepared.start(connections)?;
        self.keep(id, "", live);
        Ok(())
    }

    fn keep(&self, id: &str, exec: &str, live: Live) {
        match self.lock().process(id, exec) {
            Ok(process) if !matches!(process.status, Status::Ended(_)) => process.live = live,
            _ => live.end(),
        }
    }

    /// Runs one more process in a container. Gives its number.
    pub fn exec(&self, request: &api::ExecRequest) -> Result<i32> {
        let done = self.run_exec(request);
        if done.is_err() {
            // They wait for nobody any more.
            self.waiting.forget(&request.streams.token);
        }
        done
    }

    fn run_exec(&self, request: &api::ExecRequest) -> Result<i32> {
        let (id, exec) = (request.id.as_str(), request.exec.as_str());
        if exec.is_empty() {
            return Err(Error::invalid("exec", "it is empty"));
        }
        let _reservation = self.reserve(id, exec)?;
        let process: spec::Process = serde_json::from_slice(&request.process)
            .map_err(|error| Error::invalid("process", error))?;
        let names = names_of(&request.streams, process.terminal)?;
        let order = {
            let mut state = self.lock();
            let container = state.container(id)?;
            let refuse = |why: &str| Error::State {
                what: describe(id, ""),
                why: why.into(),
            };
            if matches!(container.init.status, Status::Ended(_)) {
                return Err(refuse("has ended"));
            }
            if container.paused {
                return Err(refuse("is paused"));
            }
            Order {
                process,
                cgroup: container.cgroup.below(&request.cgroup)?,
                size: size_of_terminal(&request.size),
                descriptors: numbers_of(&names),
                task: Task::Exec {
                    init: container.init.pid,
                    namespaces: container.namespaces.clone(),
                    seccomp: container.seccomp.clone(),
                },
            }
        };
        let token = request.streams.token.as_str();
        let connections = self.waiting.take(token, &names)?;
        let mut prepared = prepare(&order, &names)?;
        let pid = prepared.pid;
        let terminal = prepared.terminal.take();
        let live = prepared.start(connections)?;
        let process = Process {
            pid,
            status: Status::Running,
            token: token.to_owned(),
            names,
            terminal,
            live: Live::default(),
        };
        let mut state = self.lock();
        state.container(id)?.execs.insert(exec.to_owned(), process);
        self.claim(&mut state, pid);
        drop(state);
        self.keep(id, exec, live);
        Ok(pid)
    }

    /// Takes all processes that have ended, ours and orphans.
    pub fn reap(&self) {
        loop {
            let (pid, code, signal) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code, 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid.as_raw(), 128 + signal as i32, signal as i32)
                }
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return,
                Ok(_) | Err(_) => continue,
            };
            let how = Ended {
                code,
                signal,
                unix_ns: now(),
                oom: false,
            };
            let mut state = self.lock();
            if !state.ended(pid, how) && !state.reserved.is_empty() {
                state.unclaimed.push((pid, how));
            }
            self.changed.notify_all();
        }
    }

    /// The kernel has told something of the memory of the container with this key.
    pub fn memory_event(&self, key: u64) {
        use std::os::unix::fs::FileExt;
        let mut state = self.lock();
        let Some((id, container)) = state.containers.iter_mut().find(|(_, one)| one.key == key)
        else {
            return;
        };
        // Reading it is what lets the kernel tell again.
        let _ = container.events.read_at(&mut [0; 512], 0);
        let kills = container.cgroup.oom_kills();
        if kills > container.oom_kills {
            container.oom_kills = kills;
            let id = id.clone();
            state.event(&id, "", api::event::Kind::Oom(api::Empty::new()));
            self.changed.notify_all();
        }
    }

    /// Blocks until a process has ended.
    pub fn wait_for(&self, id: &str, exec: &str) -> Result<api::WaitResponse> {
        let mut state = self.lock();
        loop {
            if let Status::Ended(how) = state.process(id, exec)?.status {
                return Ok(how.response());
            }
            state = self.wait(state);
        }
    }

    /// Blocks until there is an event after that of this number.
    pub fn event_after(&self, after: u64) -> api::Event {
        let mut state = self.lock();
        loop {
            if let Some(event) = state.events.iter().find(|event| event.sequence > after) {
                return event.clone();
            }
            state = self.wait(state);
        }
    }

    /// Forgets a process that has ended, a container with all that was made for it.
    pub fn delete(&self, id: &str, exec: &str) -> Result<()> {
        let mut state = self.lock();
        let process = state.process(id, exec)?;
        if matches!(process.status, Status::Running) {
            let what = describe(id, exec);
            return Err(Error::State {
                what,
                why: "is still running".into(),
            });
        }
        if !exec.is_empty() {
            let process = state.container(id)?.execs.remove(exec);
            drop(state);
            if let Some(process) = process {
                self.waiting.forget(&process.token);
            }
            return Ok(());
        }
        let cgroup = state.container(id)?.cgroup.clone();
        // One that was never started, and what execs may have left.
        let _ = cgroup.freeze(false);
        cgroup.kill()?;
        let until = Instant::now() + PATIENCE;
        while !matches!(state.process(id, "")?.status, Status::Ended(_)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = describe(id, "");
                return Err(Error::State {
                    what,
                    why: "was killed and does not end".into(),
                });
            }
            let result = self.changed.wait_timeout(state, left);
            state = result.unwrap_or_else(PoisonError::into_inner).0;
        }
        let container = state.containers.remove(id);
        // Who waits for its processes learns that they are gone.
        self.changed.notify_all();
        drop(state);
        cgroup.delete()?;
        if let Some(container) = container {
            for process in container.execs.values().chain([&container.init]) {
                self.waiting.forget(&process.token);
            }
        }
        Ok(())
    }

    /// The number of a process that has not ended.
    pub fn pid(&self, id: &str, exec: &str) -> Result<i32> {
        let mut state = self.lock();
        let process = state.process(id, exec)?;
        if matches!(process.status, Status::Ended(_)) {
            let what = describe(id, exec);
            return Err(Error::State {
                what,
                why: "has ended".into(),
            });
        }
        Ok(process.pid)
    }

    /// The cgroup of a container.
    pub fn cgroup(&self, id: &str) -> Result<Cgroup> {
        Ok(self.lock().container(id)?.cgroup.clone())
    }

    /// Where what a container writes goes, nowhere if its root is read-only; and where something is
    /// mounted in it.
    pub fn changes(&self, id: &str) -> Result<(Option<PathBuf>, Vec<PathBuf>)> {
        let mut state = self.lock();
        let container = state.container(id)?;
        Ok((container.mounts.upper()?, container.points.clone()))
    }

    /// Freezes or thaws a container.
    pub fn freeze(&self, id: &str, frozen: bool) -> Result<()> {
        let cgroup = {
            let mut state = self.lock();
            let container = state.container(id)?;
            container.paused = frozen;
            container.cgroup.clone()
        };
        cgroup.freeze(frozen)
    }

    /// Lets all go on that are frozen.
    pub fn thaw_all(&self) {
        for container in self.lock().containers.values_mut() {
            container.paused = false;
            let _ = container.cgroup.freeze(false);
        }
    }

    /// Whether there is a container whose first process has not ended.
    pub fn any_alive(&self) -> bool {
        let state = self.lock();
        let mut all = state.containers.values();
        all.any(|container| !matches!(container.init.status, Status::Ended(_)))
    }

    /// Undoes all mounts of containers.
    pub fn forget_all(&self) {
        let all = std::mem::take(&mut self.lock().containers);
        drop(all);
    }

    /// Sets the size of a process's terminal.
    pub fn resize(&self, id: &str, exec: &str, size: &api::Size) -> Result<()> {
        let mut state = self.lock();
        let process = state.process(id, exec)?;
        let missing = || Error::invalid(describe(id, exec), "it has no terminal");
        let terminal = process.terminal.as_ref().ok_or_else(missing)?;
        let bad = || Error::invalid("size", "rows or columns are 0");
        crate::setup::resize(terminal, size_of_terminal(size).ok_or_else(bad)?)
    }

    /// Ends a process's standard input.
    pub fn close_stdin(&self, id: &str, exec: &str) -> Result<()> {
        self.lock().process(id, exec)?.live.end_stdin();
        Ok(())
    }
}

/// A cgroup that goes again if what it is for does not come to be.
struct Undo(Option<Cgroup>);

impl Undo {
    fn path(&self) -> String {
        self.0
            .as_ref()
            .map(|cgroup| cgroup.path().display().to_string())
            .unwrap_or_default()
    }

    fn keep(mut self) -> Result<Cgroup> {
        self.0
            .take()
            .ok_or_else(|| Error::invalid("cgroup", "there is none"))
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0.take() {
            let _ = cgroup.kill();
            let _ = cgroup.delete();
        }
    }
}
