//! Asks a container again and again whether it is well.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::{Client, api};
use oci_spec::runtime::Spec;

use super::Shim;
use super::session::{self, process, signal};
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
    pub(super) fn watch_health(&self, agent: &Arc<Client>, health: &Health, over: &Receiver<()>) {
        let started = Instant::now();
        while over.recv_timeout(health.interval) == Err(RecvTimeoutError::Timeout) {
            // Who is frozen cannot answer.
            if self.life().state.status != Status::Running {
                continue;
            }
            let start = Now::text();
            let (exit_code, output) = match self.ask(agent, health) {
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
    fn ask(&self, agent: &Arc<Client>, health: &Health) -> Result<(i32, String), String> {
        let (id, exec) = (&self.container.record.id, new_id());
        let path = self.container.bundle().join("config.json");
        let spec: Spec = state::load(&path).map_err(|error| crate::describe(&error))?;
        let mut command = spec.process().clone().unwrap_or_default();
        command.set_args(Some(health.command.clone()));
        command.set_terminal(Some(false));
        let mut request = api::ExecRequest::new();
        (request.id, request.exec) = (id.clone(), exec.clone());
        request.process = serde_json::to_vec(&command).map_err(|error| error.to_string())?;
        let mut wanted = api::Streams::new();
        wanted.token.clone_from(&exec);
        (wanted.stdout, wanted.stderr) = (true, true);
        request.streams = Some(wanted).into();
        let streams = session::exec(agent, request).map_err(|error| crate::describe(&error))?;

        let (sender, output) = channel();
        for from in [streams.stdout, streams.stderr] {
            let sender = sender.clone();
            thread::spawn(move || {
                let _ = sender.send(beginning(from));
            });
        }
        let (sender, end) = channel();
        let (theirs, asked) = (Arc::clone(agent), process(id, &exec));
        thread::spawn(move || {
            let _ = sender.send(theirs.wait(asked));
        });
        let answer = match end.recv_timeout(health.timeout) {
            Ok(Ok(ended)) => {
                // What it left running may hold them open.
                let text = [(), ()].map(|()| output.recv_timeout(LAST).unwrap_or_default());
                let text = text.concat();
                let text = String::from_utf8_lossy(&text).into_owned();
                Ok((i32::try_from(ended.exit_code).unwrap_or(-1), text))
            }
            Ok(Err(error)) => Err(crate::describe(&error)),
            Err(_) => {
                let mut kill = signal(id, libc::SIGKILL);
                kill.exec.clone_from(&exec);
                // It may have ended meanwhile.
                let _ = agent.signal(kill);
                let _ = end.recv_timeout(KILL);
                let limit = health.timeout.as_secs_f64();
                Err(format!("the check did not end within {limit} s"))
            }
        };
        let _ = agent.delete(process(id, &exec));
        answer
    }
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
