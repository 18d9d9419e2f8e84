//! Asks a container again and again whether it is well.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::{Client, api};
use oci_spec::runtime::{Process as Program, Spec};

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

        let (sender, output) = channel();
        for from in [streams.stdout, streams.stderr] {
            let sender = sender.clone();
            thread::spawn(move || {
                let _ = sender.send(beginning(from));
            });
        }
        let (sender, end) = channel();
        let waited = Arc::clone(&check);
        thread::spawn(move || {
            let _ = sender.send(waited.wait());
        });
        match end.recv_timeout(health.timeout) {
            Ok(ended) => {
                // What it left running may hold them open.
                let text = [(), ()].map(|()| output.recv_timeout(LAST).unwrap_or_default());
                let text = text.concat();
                let text = String::from_utf8_lossy(&text).into_owned();
                ended.map(|code| (code, text))
            }
            Err(_) => {
                check.kill();
                let _ = end.recv_timeout(KILL);
                let limit = health.timeout.as_secs_f64();
                Err(format!("the check did not end within {limit} s"))
            }
        }
    }
}

/// A check that runs.
trait Check: Send + Sync {
    /// Its exit code, when it has ended.
    fn wait(&self) -> Result<i32, String>;
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
    fn wait(&self) -> Result<i32, String> {
        let ended = self.agent.wait(process(&self.id, &self.exec));
        let ended = ended.map_err(|error| crate::describe(&error))?;
        Ok(i32::try_from(ended.exit_code).unwrap_or(-1))
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
    fn wait(&self) -> Result<i32, String> {
        Ok(Executed::wait(self))
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

/// The first of what is printed; the rest is read and forgotten.
fn beginning(from: Option<File>) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    let Some(mut from) = from else { return kept };
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let room = MAX_OUTPUT.saturating_sub(kept.len()).min(count);
        // A vector takes all.
        let _ = kept.write_all(buffer.get(..room).unwrap_or_default());
    }
    kept
}

#[cfg(test)]
mod tests {
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
}
