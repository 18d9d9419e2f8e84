//! The shim: one small process for each container that runs. It starts the monitor, holds the
//! container's streams, keeps its state, and answers at a socket. No daemon is needed: whoever wants
//! something of a container asks its shim, or the agent in its VM.

mod bundle;
mod clock;
mod descriptors;
mod drain;
mod health;
mod journal;
mod monitor;
mod output;
mod process;
mod rootfs;
mod server;
mod session;
mod spawn;
mod visit;
pub mod wire;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

pub use bundle::{Bundle, HOSTNAME, HOSTS, RESOLV_CONF, find_init};
pub use output::{LogLine, Stream};
pub use process::{
    ProcessError, delete as delete_process, exec as exec_process, find_runtime,
    update as update_process,
};
pub use rootfs::ROOTFS;
pub use session::{
    Guest, Plan, Session, SessionError, Streams, container, exec, process, signal, size,
};

use cofferdam::config::LogConfig;
use cofferdam::telemetry;

use crate::create::{self, CreateError};
use crate::networks::{Link, LinkError};
use crate::state::{Container, Containers, Events, Lock, Now, State, StateError, Status};
use output::{Log, Output};
use session::End;
use wire::Failure;

/// The word on our command line that makes a process a shim. It is no command for people.
pub const COMMAND: &str = "shim";
/// Behind the container's ID: without running it, for its files.
pub const VISIT: &str = "--visit";
/// What a shim writes to its standard output when its socket is there.
pub const READY: &str = "ready\n";
/// How long the last output of a container that ended may take, and the last words to clients.
const LAST: Duration = Duration::from_secs(5);
/// Between the end of a container and its next start; it doubles each time.
const RESTART: Duration = Duration::from_millis(100);
/// And at most.
const LONGEST_RESTART: Duration = Duration::from_secs(60);

/// Why there is no shim.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The container's files.
    #[error(transparent)]
    State(#[from] StateError),
    /// What the container is made of.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Its network.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The container does not run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Its log.
    #[error(transparent)]
    Log(#[from] output::OpenError),
    /// Its socket, or another file.
    #[error("{action}")]
    Io {
        /// What was tried: "cannot listen at …".
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ShimError {
    fn failure(&self) -> Failure {
        match self {
            Self::Session(error) => error.failure(),
            other => Failure {
                code: 125,
                message: crate::describe(other),
            },
        }
    }
}

/// A container in the hands of its shim.
struct Shim {
    container: Container,
    output: Output,
    life: Mutex<Life>,
    changed: Condvar,
}

/// How far it is.
#[derive(Default)]
struct Life {
    /// Somebody wants it to run.
    wanted: bool,
    /// It has run.
    started: bool,
    /// Somebody stopped it, so it does not start again.
    stopped: bool,
    /// Its process has ended, and what it wrote is brought to its disks.
    leaving: bool,
    /// It does not run, and will not.
    ended: bool,
    /// Why it did not start.
    failure: Option<Failure>,
    /// The VM, while there is one.
    session: Option<Arc<Session>>,
    stdin: Option<Arc<fs::File>>,
    state: State,
}

/// Is the shim of the container whose ID is the first of `args` until its end; or, on a [`VISIT`], of
/// its files.
pub fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let id = args.next().unwrap_or_default();
    let id = id.to_str().unwrap_or_default();
    let visit = args.next().is_some_and(|arg| arg == VISIT);
    // No terminal's signals any more. It fails for who leads a session already.
    let _ = rustix::process::setsid();
    descriptors::raise();
    // To shim.log. Without it there is nothing that anybody would miss.
    let _ = telemetry::init(&LogConfig::default());
    let done = match visit {
        true => visit::run(id),
        false => run(id),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cofferdam: {}", crate::describe(&error));
            ExitCode::from(125)
        }
    }
}

fn run(id: &str) -> Result<(), ShimError> {
    let container = Containers::open()?.find(id)?;
    // Before we hold it: then a state that the killed left behind is put right.
    let state = container.state()?;
    let lock = container.lock()?;
    let listener = listen(&container)?;
    let output = Output::new(Log::open(&container)?);
    let state = State {
        shim: std::process::id(),
        exit_code: 0,
        error: String::new(),
        oom_killed: false,
        restarts: 0,
        ..state
    };
    let life = Life {
        state,
        ..Life::default()
    };
    let shim = Arc::new(Shim {
        container,
        output,
        life: Mutex::new(life),
        changed: Condvar::new(),
    });
    let (busy, idle) = channel();
    let theirs = Arc::clone(&shim);
    thread::spawn(move || server::serve(&theirs, &listener, &busy));
    say_ready();
    let theirs = Arc::clone(&shim);
    thread::spawn(move || theirs.watch_starter());

    let (code, rest) = shim.live();
    shim.finish(lock, code);
    // Ends the VM. Nobody waits for that who needs nothing that it has.
    drop(rest);
    // Those who are told the end have heard it when all senders are gone.
    let _ = idle.recv_timeout(LAST);
    Ok(())
}

/// Held by who still talks with a client.
type Busy = Sender<()>;

/// Makes the directory of the container's sockets.
fn make_run(container: &Container) -> Result<(), ShimError> {
    let mut dir = fs::DirBuilder::new();
    let made = dir.recursive(true).mode(0o700).create(&container.run);
    made.map_err(|source| ShimError::Io {
        action: format!("cannot make the directory {}", container.run.display()),
        source,
    })
}

fn listen(container: &Container) -> Result<UnixListener, ShimError> {
    make_run(container)?;
    let path = container.socket();
    let listen = || {
        // Of a shim that was killed; we have the lock.
        let _ = fs::remove_file(&path);
        UnixListener::bind(&path)
    };
    listen().map_err(|source| ShimError::Io {
        action: format!("cannot listen at {}", path.display()),
        source,
    })
}

/// Tells who started us that the socket is there.
fn say_ready() {
    let mut out = io::stdout();
    let _ = out.write_all(READY.as_bytes()).and_then(|()| out.flush());
}

impl Shim {
    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something holds of the container's life.
    fn wait_until(&self, mut holds: impl FnMut(&Life) -> bool) -> MutexGuard<'_, Life> {
        let life = self.life();
        let done = self.changed.wait_while(life, |life| !holds(life));
        done.unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the container's life, and writes its state down.
    fn change(&self, change: impl FnOnce(&mut Life)) {
        let mut life = self.life();
        let before = life.state.clone();
        change(&mut life);
        // Of one that is removed in a moment nobody reads it.
        let is_read = !self.container.record.options.rm || life.state.finished.is_none();
        if life.state != before
            && is_read
            && let Err(error) = self.container.set_state(&life.state)
        {
            log::error!("the state is lost: {}", crate::describe(&error));
        }
        drop(life);
        self.changed.notify_all();
    }

    /// Who started us holds our standard input until he has said that the container shall run. If he
    /// dies before, it shall not.
    fn watch_starter(&self) {
        let _ = io::stdin().read(&mut [0]);
        self.change(|life| {
            if !life.wanted {
                life.failure = Some(Failure {
                    code: 125,
                    message: "who started the container is gone".into(),
                });
            }
        });
    }

    /// Runs the container, again and again if its policy says so. Gives its last exit code, and what is
    /// still to be dropped.
    fn live(&self) -> (i32, Option<Arc<Session>>) {
        let mut pause = RESTART;
        let mut container = self.container.clone();
        loop {
            let mut rest = None;
            let code = match self.live_once(&container) {
                Ok((end, left)) => {
                    self.ended(&end);
                    rest = left;
                    end.code
                }
                Err(error) => {
                    let failure = error.failure();
                    let code = i32::from(failure.code);
                    self.change(|life| {
                        life.state.exit_code = code;
                        life.state.error.clone_from(&failure.message);
                        life.failure = Some(failure);
                        life.session = None;
                        life.stdin = None;
                    });
                    code
                }
            };
            // `update` may have changed what is asked for.
            if let Ok(record) = self.container.record_now() {
                container.record = record;
            }
            let life = self.life();
            let policy = container.record.options.restart;
            let again = life.started && !life.stopped && policy.applies(code, life.state.restarts);
            drop(life);
            if !again {
                return (code, rest);
            }
            drop(rest);
            self.change(|life| {
                life.state.status = Status::Restarting;
                life.state.restarts += 1;
                life.failure = None;
            });
            let life = self.life();
            let paused = self
                .changed
                .wait_timeout_while(life, pause, |life| !life.stopped);
            if paused.unwrap_or_else(PoisonError::into_inner).0.stopped {
                return (code, None);
            }
            pause = (pause * 2).min(LONGEST_RESTART);
        }
    }

    fn ended(&self, end: &End) {
        self.change(|life| {
            life.state.pid = 0;
            life.state.attached = None;
            life.state.cgroup = None;
            life.state.exit_code = end.code;
            life.state.oom_killed = end.oom;
            life.state.error = end.error.clone().unwrap_or_default();
            life.state.finished = Some(Now::text());
            life.leaving = false;
            life.session = None;
            life.stdin = None;
        });
        Events::write(&self.container.record, "die", Some(end.code));
    }

    /// Gives how it ended, and the session if that may go later.
    fn live_once(&self, container: &Container) -> Result<(End, Option<Arc<Session>>), ShimError> {
        // Both are held for as long as it lives.
        let _volumes = create::hold_volumes(container)?;
        let (mut plan, ports) = create::plan(container)?;
        let vm = plan.vm_size();
        let link = Link::connect(container, &mut plan, &ports)?;
        let is_temporary = self.container.record.options.rm;
        let goes_later = is_temporary && plan.is_alone();
        let keep = !is_temporary || plan.has_volumes();
        let (session, streams) = Session::boot(plan)?;
        if let Some(link) = &link {
            link.join()?;
        }
        let session = Arc::new(session);
        self.change(|life| {
            life.session = Some(Arc::clone(&session));
            life.stdin = streams.stdin.map(Arc::new);
            life.state.ports = ports;
            life.state.vm = vm;
            life.state.attached = link.as_ref().map(|link| link.attached.clone());
            life.state.cgroup = session.cgroup().map(Into::into);
        });
        if let Some(failure) = self
            .wait_until(|l| l.wanted || l.failure.is_some())
            .failure
            .clone()
        {
            return Err(ShimError::Io {
                action: "the start was given up".into(),
                source: io::Error::other(failure),
            });
        }
        let (done, all_done) = channel();
        thread::scope(|scope| {
            for (stream, from) in [
                (Stream::Stdout, streams.stdout),
                (Stream::Stderr, streams.stderr),
            ] {
                let (Some(from), done) = (from, done.clone()) else {
                    continue;
                };
                scope.spawn(move || {
                    self.output.pass_on(stream, from);
                    drop(done);
                });
            }
            drop(done);
            let started = session.start();
            if let Err(error) = started {
                // The streams end with it.
                session.kill();
                return Err(error.into());
            }
            self.change(|life| {
                life.started = true;
                life.state.status = Status::Running;
                life.state.pid = session.pid();
                life.state.started = Some(Now::text());
                let health = self.container.record.health.as_ref();
                life.state.health = health.map(|_| health::starting());
            });
            Events::write(&self.container.record, "start", None);
            // While this is held, the container is asked whether it is well.
            let (running, over) = channel::<()>();
            if let Some(health) = &self.container.record.health {
                let session = Arc::clone(&session);
                scope.spawn(move || self.watch_health(&session, health, &over));
            }
            let end = session.wait();
            self.change(|life| life.leaving = true);
            drop(running);
            let _: Result<(), _> = all_done.recv_timeout(LAST);
            if goes_later {
                return Ok((end, Some(session.clone())));
            }
            session.end(keep);
            Ok((end, None))
        })
    }

    /// Writes down that it is over, lets go of the container, and tells everybody.
    fn finish(&self, lock: Lock, code: i32) {
        for path in [self.container.socket(), self.container.vsock()] {
            let _ = fs::remove_file(path);
        }
        self.change(|life| {
            if life.started {
                life.state.status = Status::Exited;
            }
            (life.state.pid, life.state.shim) = (0, 0);
        });
        if self.container.record.options.rm
            && let Err(error) = create::forget(&self.container, &lock)
        {
            log::error!("the container is not removed: {}", crate::describe(&error));
        }
        drop(lock);
        self.change(|life| life.ended = true);
        self.output.end(code);
    }
}
