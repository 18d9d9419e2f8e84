//! A container's user namespace.

use std::fs;
use std::io::{Read, Write};
use std::process::exit;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{ForkResult, Gid, Uid, fork, getpid, setgroups, setresgid, setresuid};

use crate::error::{Context, Error, Result};
use crate::spec::{IdMapping, Linux};

/// Goes on in a child that is root of a new user namespace.
pub fn create(linux: &Linux) -> Result<()> {
    let (uids, gids) = (
        lines(linux.uid_mappings.as_deref()),
        lines(linux.gid_mappings.as_deref()),
    );
    if uids.is_empty() || gids.is_empty() {
        let why = "a user namespace takes uidMappings and gidMappings";
        return Err(Error::invalid("linux", why));
    }
    // Who maps is outside, so it takes two: the child says when, the parent when it is done.
    let (mut wants, want) = std::io::pipe().context(|| "make a pipe".into())?;
    let (mut answered, mut answer) = std::io::pipe().context(|| "make a pipe".into())?;
    // SAFETY: this process has one thread, so the child's memory is as consistent as its own.
    match unsafe { fork() }.context(|| "make a process".into())? {
        ForkResult::Parent { child } => {
            drop(want);
            let _ = wants.read(&mut [0]);
            let map = || -> std::io::Result<()> {
                fs::write(format!("/proc/{child}/uid_map"), &uids)?;
                fs::write(format!("/proc/{child}/gid_map"), &gids)
            };
            let text = map()
                .map_err(|error| error.to_string())
                .err()
                .unwrap_or_default();
            let _ = answer.write_all(text.as_bytes());
            exit(0);
        }
        ForkResult::Child => {
            drop((wants, answer));
            let result = unshare(CloneFlags::CLONE_NEWUSER);
            result.context(|| format!("make a user namespace for process {}", getpid()))?;
            drop(want);
            let mut text = String::new();
            answered
                .read_to_string(&mut text)
                .context(|| "read a pipe".into())?;
            if !text.is_empty() {
                return Err(Error::invalid(
                    "linux.uidMappings or linux.gidMappings",
                    text,
                ));
            }
            be_root()
        }
    }
}

/// Becomes root in the namespace.
pub fn be_root() -> Result<()> {
    let doing = || "become root in the user namespace".to_owned();
    setgroups(&[]).context(doing)?;
    setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).context(doing)?;
    setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).context(doing)
}

/// As /proc/PID/uid_map takes them.
fn lines(mappings: Option<&[IdMapping]>) -> String {
    let line = |one: &IdMapping| format!("{} {} {}\n", one.container_id, one.host_id, one.size);
    mappings.unwrap_or_default().iter().map(line).collect()
}
