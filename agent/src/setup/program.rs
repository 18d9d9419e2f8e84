//! The last step: which program it is, and becoming it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, signal};
use nix::unistd::{AccessFlags, access, execve};

use crate::error::{Context, Error, Result};
use crate::setup::privileges::home_of;
use crate::spec::Process;

/// What a process without a PATH looks through, as engines have it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program that is there, ready to be executed.
#[derive(Debug)]
pub struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

fn c_string(what: &str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid(what, "there is a zero byte in it"))
}

impl Program {
    /// Finds the program, as the user and in the directory that it is for.
    pub fn find(process: &Process) -> Result<Self> {
        let args = process.args.as_deref().unwrap_or_default();
        let name = args.first().filter(|name| !name.is_empty());
        let name =
            name.ok_or_else(|| Error::invalid("process.args", "there is no program in it"))?;
        let mut env = last_of_each(process.env.as_deref().unwrap_or_default());
        let value = |env: &[String], name: &str| {
            let found = env
                .iter()
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            found.map(str::to_owned)
        };
        if value(&env, "HOME").is_none_or(|home| home.is_empty()) {
            env.retain(|pair| !pair.starts_with("HOME="));
            env.push(format!("HOME={}", home_of(process.user.uid)));
        }
        let strings = |what: &str, texts: &[String]| -> Result<Vec<CString>> {
            texts.iter().map(|text| c_string(what, text)).collect()
        };
        let all = strings("process.args", args)?;
        let path = value(&env, "PATH").unwrap_or_else(|| DEFAULT_PATH.to_owned());
        Ok(Self {
            path: c_string("process.env", &search(name, &path)?)?,
            args: all,
            env: strings("process.env", &env)?,
        })
    }

    /// Becomes it, with the dispositions and the mask of signals that a program starts with.
    pub fn execute(&self) -> Result<Infallible> {
        // SAFETY: no handler is installed, and nothing else in this process relies on this one.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }
            .context(|| "reset the signal SIGPIPE".into())?;
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
            .context(|| "unblock signals".into())?;
        execve(&self.path, &self.args, &self.env).map_err(|error| Error::NotExecutable {
            program: self.path.to_string_lossy().into_owned(),
            source: error.into(),
        })
    }
}

/// The variables, of those with one name the last: programs would take the first.
fn last_of_each(env: &[String]) -> Vec<String> {
    let name = |pair: &'_ String| pair.split_once('=').map(|(name, _)| name.to_owned());
    let mut seen = BTreeSet::new();
    let mut kept: Vec<_> = env
        .iter()
        .rev()
        .filter(|pair| name(pair).is_none_or(|name| seen.insert(name)))
        .cloned()
        .collect();
    kept.reverse();
    kept
}

/// The path of a program: as execvp(3) looks for it.
fn search(name: &str, path: &str) -> Result<String> {
    let mut found = None;
    let candidates: Vec<_> = if name.contains('/') {
        vec![name.to_owned()]
    } else {
        let directory = |dir: &str| {
            if dir.is_empty() {
                ".".to_owned()
            } else {
                dir.to_owned()
            }
        };
        path.split(':')
            .map(|dir| format!("{}/{name}", directory(dir)))
            .collect()
    };
    for candidate in candidates {
        match check(Path::new(&candidate)) {
            Ok(true) => return Ok(candidate),
            Ok(false) => {}
            // Further down the path there may be one that is.
            Err(source) => {
                found = Some(Error::NotExecutable {
                    program: candidate,
                    source,
                })
            }
        }
    }
    Err(found.unwrap_or_else(|| Error::NoProgram(name.to_owned())))
}

/// Whether nothing is at a path, rather than something that cannot be looked at.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Whether it is there; an error if it is and cannot be executed.
fn check(path: &Path) -> io::Result<bool> {
    let about = match path.metadata() {
        Err(error) if is_absent(&error) => return Ok(false),
        Err(error) => return Err(error),
        Ok(about) => about,
    };
    if about.is_dir() || about.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    access(path, AccessFlags::X_OK)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, programs are not found, or the host cannot tell a missing one (127) from one that
    /// is not executable (126).
    #[test]
    fn programs_are_looked_for_as_a_shell_does() {
        assert_eq!(search("sh", "/nowhere:/bin").unwrap(), "/bin/sh");
        assert_eq!(search("/bin/sh", "").unwrap(), "/bin/sh");
        assert!(matches!(
            search("sh", "/nowhere").unwrap_err(),
            Error::NoProgram(_)
        ));
        assert!(matches!(
            search("/nowhere/sh", "/bin").unwrap_err(),
            Error::NoProgram(_)
        ));
        let error = search("/etc/passwd", "").unwrap_err();
        assert!(matches!(error, Error::NotExecutable { .. }));
        assert!(matches!(
            search("passwd", "/etc:/x").unwrap_err(),
            Error::NotExecutable { .. }
        ));
        assert!(matches!(
            search("/etc", "").unwrap_err(),
            Error::NotExecutable { .. }
        ));
    }

    /// If it fails, $HOME is missing, or a process's own is overwritten.
    #[test]
    fn home_is_set_where_it_is_missing() {
        let with = |env: &[&str]| {
            let process = Process {
                args: Some(vec!["/bin/sh".into()]),
                env: Some(env.iter().map(|pair| (*pair).to_owned()).collect()),
                ..Process::default()
            };
            let env = Program::find(&process).unwrap().env;
            env.into_iter()
                .map(|pair| pair.into_string().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(with(&["A=b"]), ["A=b", "HOME=/root"]);
        assert_eq!(with(&["HOME=/x"]), ["HOME=/x"]);
        let twice = ["A=1", "HOME=/x", "odd", "A=2", "odd"];
        assert_eq!(with(&twice), ["HOME=/x", "odd", "A=2", "odd"]);
    }
}
