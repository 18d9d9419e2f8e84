//! Asks a container again and again whether it is well.

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::{Client, api};
use oci_spec::runtime::{Process as Program, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Shim;
use super::process::{Executed, Process};
use super::session::{self, Session, Streams, process, signal};
use crate::options::Health;
use crate::state::{self, Events, Now, Probe, Status, Wellness, new_id};

/// How much of what a check prints is kept, in bytes.
const MAX_OUTPUT: usize = 4096;
/// How many answers are kept.
const KEPT: usize = 5;
/// How long a check that was killed may take to end.
const KILL: Duration = Duration::from_secs(10);

/// How long the last output of one may take.
const LAST: Duration = Duration::from_secs(1);

const STARTING: &str = "starting";
const HEALTHY: &str = "healthy";
const UNHEALTHY: &str = "unhealthy";

/// Of a container that has just started.
pub(super) fn starting() -> Wellness {
    Wellness {
        status: STARTING.into(),
        failing_streak: 0,
        log: Vec::new(),
    }
}

/// What a container is after one more answer. `lenient`: it is still starting, so that failures do not
/// count.
fn judge(before: &mut Wellness, answer: Probe, lenient: bool, retries: u32) {
    if answer.exit_code == 0 {
        before.failing_streak = 0;
        before.status = HEALTHY.into();
    } else if !(lenient && before.status == STARTING) {
        before.failing_streak += 1;
        if before.failing_streak >= retries {
            before.status = UNHEALTHY.into();
        }
    }
    before.log.push(answer);
    let surplus = before.log.len().saturating_sub(KEPT);
    before.log.drain(..surplus);
}

impl Shim {
    /// Asks until the other end of `over` is gone.
    pub(super) fn watch_health(&self, session: &Session, health: &Health, over: &Receiver<()>) {
        let started = Instant::now();
        while over.recv_timeout(health.interval) == Err(RecvTimeoutError::Timeout) {
            // Who is frozen cannot answer.
            if self.life().state.status != Status::Running {
                continue;
            }
            let start = Now::text();
            let (exit_code, output) = match self.ask(session, health) {
                Ok(answer) => answer,
                Err(why) => (-1, why),
            };
            // It was not the check that failed.
            if over.try_recv() == Err(TryRecvError::Disconnected) {
                return;
            }
            let answer = Probe {
                start,
                end: Now::text(),
                exit_code,
                output,
            };
            let lenient = started.elapsed() < health.start_period;
            let mut changed = None;
            self.change(|life| {
                let wellness = life.state.health.get_or_insert_with(starting);
                let before = wellness.status.clone();
                judge(wellness, answer, lenient, health.retries);
                changed = Some(wellness.status.clone()).filter(|now| *now != before);
            });
            if let Some(status) = changed {
                let action = format!("health_status: {status}");
                Events::write(&self.container.record, &action, None);
            }
        }
    }

    /// Runs the command once. Gives its exit code and what it printed, or why it did not run.
    fn ask(&self, session: &Session, health: &Health) -> Result<(i32, String), String> {
        let path = self.container.bundle().join("config.json");
        let spec: Spec = state::load(&path).map_err(|error| crate::describe(&error))?;
        let mut command = spec.process().clone().unwrap_or_default();
        command.set_args(Some(health.command.clone()));
        command.set_terminal(Some(false));
        let (check, streams) = match session {
            Session::Vm(vm) => in_vm(vm.agent(), &self.container.record.id, &command)?,
            Session::Process(process) => on_the_host(process, command)?,
        };

        let (over, running) = io::pipe().map_err(|error| error.to_string())?;
        thread::scope(|scope| {
            let reading = thread::Builder::new();
            let reading = reading.spawn_scoped(scope, move || beginnings(streams, &over));
            let reading = reading.map_err(|error| error.to_string())?;
            let ended = check.wait(health.timeout);
            if ended.is_none() {
                check.kill();
                let _ = check.wait(KILL);
            }
            drop(running);
            let text = reading.join().unwrap_or_default();
            match ended {
                Some(ended) => ended.map(|code| (code, text)),
                None => {
                    let limit = health.timeout.as_secs_f64();
                    Err(format!("the check did not end within {limit} s"))
                }
            }
        })
    }
}

/// A check that runs.
trait Check: Send + Sync {
    /// Its exit code, when it has ended; nothing if that takes too long.
    fn wait(&self, patience: Duration) -> Option<Result<i32, String>>;
    /// Ends it, if it has not ended.
    fn kill(&self);
}

type Started = Result<(Arc<dyn Check>, Streams), String>;

/// By the agent, which is told when nobody wants to know more.
struct InVm {
    agent: Arc<Client>,
    id: String,
    exec: String,
}

impl Check for InVm {
    fn wait(&self, patience: Duration) -> Option<Result<i32, String>> {
        let request = process(&self.id, &self.exec);
        Some(match self.agent.wait_within(patience, request) {
            Ok(ended) => Ok(i32::try_from(ended.exit_code).unwrap_or(-1)),
            Err(error) if error.is_silent() => return None,
            Err(error) => Err(crate::describe(&error)),
        })
    }

    fn kill(&self) {
        let mut kill = signal(&self.id, libc::SIGKILL);
        kill.exec.clone_from(&self.exec);
        let _ = self.agent.signal(kill);
    }
}

impl Drop for InVm {
    fn drop(&mut self) {
        let _ = self.agent.delete(process(&self.id, &self.exec));
    }
}

fn in_vm(agent: &Arc<Client>, id: &str, command: &Program) -> Started {
    let exec = new_id();
    let mut request = api::ExecRequest::new();
    (request.id, request.exec) = (id.to_owned(), exec.clone());
    request.process = serde_json::to_vec(command).map_err(|error| error.to_string())?;
    let mut wanted = api::Streams::new();
    wanted.token.clone_from(&exec);
    (wanted.stdout, wanted.stderr) = (true, true);
    request.streams = Some(wanted).into();
    let streams = session::exec(agent, request).map_err(|error| crate::describe(&error))?;
    let (agent, id) = (Arc::clone(agent), id.to_owned());
    Ok((Arc::new(InVm { agent, id, exec }), streams))
}

/// By the host's runtime, which leaves it to us.
impl Check for Executed {
    fn wait(&self, patience: Duration) -> Option<Result<i32, String>> {
        Executed::wait(self, patience).map(Ok)
    }

    fn kill(&self) {
        Executed::kill(self);
    }
}

fn on_the_host(process: &Process, command: Program) -> Started {
    let started = process.exec(command);
    let (check, streams) = started.map_err(|error| crate::describe(&error))?;
    Ok((Arc::new(check), streams))
}

/// The first of what is printed; the rest is read and forgotten. What the check left running may hold
/// its streams open: some time after the other end of `over` is gone nobody listens any more.
fn beginnings(streams: Streams, over: &PipeReader) -> String {
    let mut open: Vec<(usize, File)> = [streams.stdout, streams.stderr]
        .into_iter()
        .enumerate()
        .filter_map(|(at, from)| Some((at, from?)))
        .collect();
    let mut kept = [const { Vec::new() }; 2];
    let mut buffer = [0; MAX_OUTPUT];
    let mut until = None;
    while !open.is_empty() {
        let left = until.map(|until: Instant| until.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            break;
        }
        let fds = open.iter().map(|(_, from)| from.as_fd());
        let over = until.is_none().then(|| over.as_fd());
        let mut polled: Vec<PollFd> = fds
            .chain(over)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(polled);
        if until.is_none() && ready.last() == Some(&true) {
            until = Some(Instant::now() + LAST);
        }
        let mut ready = ready.into_iter();
        open.retain_mut(|(at, from)| {
            if ready.next() != Some(true) {
                return true;
            }
            let Ok(count @ 1..) = from.read(&mut buffer) else {
                return false;
            };
            if let Some(kept) = kept.get_mut(*at) {
                let room = MAX_OUTPUT.saturating_sub(kept.len()).min(count);
                kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
            }
            true
        });
    }
    String::from_utf8_lossy(&kept.concat()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;

    /// If it fails, containers are called unwell that are not, or well that are not.
    #[test]
    fn failures_in_a_row_make_it_unwell() {
        let mut now = starting();
        let mut answer = |code, lenient| {
            let answer = Probe {
                start: String::new(),
                end: String::new(),
                exit_code: code,
                output: String::new(),
            };
            judge(&mut now, answer, lenient, 2);
            (now.status.clone(), now.failing_streak, now.log.len())
        };
        assert_eq!(answer(1, true), (STARTING.into(), 0, 1));
        assert_eq!(answer(1, false), (STARTING.into(), 1, 2));
        assert_eq!(answer(0, false), (HEALTHY.into(), 0, 3));
        // It has started, however long it may take.
        assert_eq!(answer(1, true), (HEALTHY.into(), 1, 4));
        assert_eq!(answer(-1, false), (UNHEALTHY.into(), 2, 5));
        assert_eq!(answer(0, false), (HEALTHY.into(), 0, 5));
    }

    /// If it fails, a check that leaves something in the background, silent or not, takes a thread and two
    /// descriptors of the shim each time; or what it said itself is lost.
    #[test]
    fn what_is_left_in_the_background_is_not_listened_to() {
        let (stdout, mut chatter) = io::pipe().unwrap();
        let (stderr, mut silent) = io::pipe().unwrap();
        chatter.write_all(b"one ").unwrap();
        silent.write_all(b"two").unwrap();
        let streams = Streams {
            stdout: Some(File::from(OwnedFd::from(stdout))),
            stderr: Some(File::from(OwnedFd::from(stderr))),
            ..Streams::default()
        };
        let (over, running) = io::pipe().unwrap();
        let reading = thread::spawn(move || beginnings(streams, &over));
        thread::sleep(Duration::from_millis(50));
        assert!(!reading.is_finished());
        drop(running);
        // Until nobody reads it any more.
        while chatter.write_all(&[b'x'; 512]).is_ok() {}
        let mut ends = [PollFd::new(&silent, PollFlags::empty())];
        let patience = Timespec::try_from(Duration::from_secs(60)).unwrap();
        assert_eq!(poll(&mut ends, Some(&patience)).unwrap(), 1);
        assert!(ends[0].revents().contains(PollFlags::ERR));
        let text = reading.join().unwrap();
        assert!(
            text.starts_with("one xxx") && text.ends_with("two"),
            "{text}"
        );
        assert_eq!(text.len(), MAX_OUTPUT + 3);
    }
}
