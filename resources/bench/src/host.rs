//! Process start to the first `KVM_RUN` on the host's own `/dev/kvm`, in wall time.
//!
//! The monitor says itself when it is there, in a record of its log at level `info`; what is timed
//! is from before the process exists to that record's coming. So the logging is part of the time,
//! some 20 µs, and nothing traces the monitor, which would cost far more.

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::boot::now;
use crate::report::{Figure, Host};
use crate::rows::GUEST_MEMORY_MIB;

/// Boots that are timed, after one that is not.
const RUNS: u32 = 21;
/// What the record says.
const MARK: &str = "first KVM_RUN";
/// Longest that it may take to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no figure of the host's.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The monitor did not start.
    #[error("cannot start the monitor on this host")]
    Start(#[source] io::Error),
    /// It never said that it enters the guest.
    #[error("the monitor's log has no '{MARK}' on this host; it says: {0:?}")]
    NoMark(String),
}

/// Starts the monitor `RUNS` times on this machine.
pub fn measure(monitor: &Path, kernel: &Path, initrd: &Path) -> Result<Host, HostError> {
    let mut command = Command::new(monitor);
    command
        .arg("boot")
        .arg("--kernel")
        .arg(kernel)
        .arg("--initrd")
        .arg(initrd);
    command.arg("--memory").arg(format!("{GUEST_MEMORY_MIB}M"));
    command.args(["--no-rng", "--log-level", "info", "--cmdline", "quiet"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    first_entry(&mut command)?;
    let nanos = (0..RUNS)
        .map(|_| first_entry(&mut command))
        .collect::<Result<Vec<_>, _>>()?;
    let first_entry_ms =
        Figure::from_nanos(&nanos).ok_or_else(|| HostError::NoMark(String::new()))?;
    Ok(Host {
        runs: RUNS,
        first_entry_ms,
    })
}

/// Starts the monitor once; returns ns to the mark.
fn first_entry(command: &mut Command) -> Result<u64, HostError> {
    let started = now();
    let mut child = command.spawn().map_err(HostError::Start)?;
    let found = wait_for_mark(&mut child);
    // It runs no further than this, or has ended already.
    let _ = child.kill();
    let _ = child.wait();
    found.map(|time| time - started)
}

/// Reads the log on a thread of its own, so that a monitor that says nothing does not hold us.
fn wait_for_mark(child: &mut Child) -> Result<u64, HostError> {
    let log = child
        .stderr
        .take()
        .ok_or_else(|| HostError::NoMark(String::new()))?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            if sender.send((now(), line)).is_err() {
                break;
            }
        }
    });
    let mut said = String::new();
    while let Ok((time, line)) = receiver.recv_timeout(PATIENCE) {
        if line.contains(MARK) {
            return Ok(time);
        }
        said.push_str(&line);
    }
    Err(HostError::NoMark(said))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stderr(Stdio::piped());
        command
    }

    /// If it fails, the figure is not that of the record.
    #[test]
    fn the_record_is_timed() {
        let script =
            "echo other >&2; sleep 0.1; echo '[ 0.1 INFO boot] first KVM_RUN' >&2; sleep 9";
        let nanos = first_entry(&mut shell(script)).unwrap();
        assert!((100_000_000..5_000_000_000).contains(&nanos), "{nanos}");
    }

    /// If it fails, a monitor that never gets there has a figure, or its words are lost.
    #[test]
    fn without_the_record_there_is_no_figure() {
        let error = first_entry(&mut shell("echo no KVM >&2"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("no KVM"), "{error}");
    }
}
