//! Hooks: programs that a configuration names, to be run on the host as a container comes and goes.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;
use serde_json::Value;

/// How long we sleep between looks at a hook that has a timeout.
const LOOK: Duration = Duration::from_millis(5);

/// Why a hook was none.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    /// It cannot be run.
    #[error("cannot run the {kind} hook {path}")]
    Run {
        /// When it is run.
        kind: &'static str,
        /// Its program.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("the {kind} hook {path} failed ({status}): {said}")]
    Failed {
        /// When it is run.
        kind: &'static str,
        /// Its program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// It took too long.
    #[error("the {kind} hook {path} did not end within {seconds} s")]
    Slow {
        /// When it is run.
        kind: &'static str,
        /// Its program.
        path: PathBuf,
        /// Its timeout.
        seconds: i64,
    },
}

/// Runs hooks in order, to the first that fails. Each reads the container's `state`.
pub(super) fn run(
    kind: &'static str,
    hooks: &Option<Vec<Hook>>,
    state: &Value,
    dir: &Path,
) -> Result<(), HookError> {
    hooks
        .iter()
        .flatten()
        .try_for_each(|hook| run_one(kind, hook, state, dir))
}

/// Runs hooks in order, all of them whatever becomes of one. Gives what failed.
pub(super) fn run_all(
    kind: &'static str,
    hooks: &Option<Vec<Hook>>,
    state: &Value,
    dir: &Path,
) -> Vec<HookError> {
    let hooks = hooks.iter().flatten();
    hooks
        .filter_map(|hook| run_one(kind, hook, state, dir).err())
        .collect()
}

fn run_one(kind: &'static str, hook: &Hook, state: &Value, dir: &Path) -> Result<(), HookError> {
    let path = hook.path().clone();
    let failed = |source| HookError::Run {
        kind,
        path: path.clone(),
        source,
    };
    let mut child = start(hook, dir).map_err(failed)?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let text = state.to_string();
    // A hook need not read its input, and may say more than a pipe holds.
    let writer = thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(text.as_bytes())));
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(4096).read_to_end(&mut said);
        }
        String::from_utf8_lossy(&said).trim().to_owned()
    });
    let end = wait(&mut child, hook.timeout()).map_err(failed)?;
    let Some(status) = end else {
        let seconds = hook.timeout().unwrap_or(0);
        return Err(HookError::Slow {
            kind,
            path,
            seconds,
        });
    };
    let _ = writer.join();
    if status.success() {
        return Ok(());
    }
    let said = reader.join().unwrap_or_default();
    Err(HookError::Failed {
        kind,
        path,
        status,
        said,
    })
}

fn start(hook: &Hook, dir: &Path) -> io::Result<Child> {
    let mut command = Command::new(hook.path());
    let mut args = hook.args().iter().flatten();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args);
    if let Some(env) = hook.env() {
        command.env_clear();
        command.envs(env.iter().filter_map(|pair| pair.split_once('=')));
    }
    command.current_dir(dir).stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn()
}

/// Waits for the end; kills what takes longer than it may, and gives nothing then.
fn wait(child: &mut Child, timeout: Option<i64>) -> io::Result<Option<ExitStatus>> {
    let seconds = timeout.and_then(|seconds| u64::try_from(seconds).ok());
    let Some(seconds) = seconds.filter(|seconds| *seconds > 0) else {
        return child.wait().map(Some);
    };
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<i64>) -> Option<Vec<Hook>> {
        let hook = serde_json::json!({"path": "/bin/sh", "args": ["hook", "-c", script],
            "env": ["A=b"], "timeout": timeout});
        Some(vec![crate::json::from_value(hook).unwrap()])
    }

    /// If it fails, hooks do not know which container they are for, or their failure is not seen.
    #[test]
    fn hooks_read_the_state() {
        let dir = std::env::temp_dir();
        let state = serde_json::json!({"id": "one"});
        let run = |script: &str, timeout| run("poststop", &hook(script, timeout), &state, &dir);
        run(
            "read state; [ \"$state\" = '{\"id\":\"one\"}' ] && [ $A = b ]",
            None,
        )
        .unwrap();
        run("exit 0", Some(5)).unwrap();
        let error = run("echo words >&2; exit 3", None).unwrap_err().to_string();
        assert!(error.contains("words") && error.contains('3'), "{error}");
        let error = run("exec sleep 100", Some(1)).unwrap_err().to_string();
        assert!(error.contains("1 s"), "{error}");
        assert!(super::run("prestart", &None, &state, &dir).is_ok());
        let two = hook("exit 1", None).into_iter().flatten();
        let two = Some(two.clone().chain(two).collect());
        assert_eq!(run_all("poststop", &two, &state, &dir).len(), 2);
    }
}
