//! Who a process is and what it may: user and groups, capabilities, limits.

use std::fs;
use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use crate::error::{Context, Error, Result};
use crate::spec::{Capabilities, Process};

/// Raises what the resource limits may be raised to, which root of a user namespace may not do later.
pub fn allow_limits(process: &Process) -> Result<()> {
    for limit in process.rlimits.iter().flatten() {
        // One that is none is refused when it is set.
        let Some(resource) = resource(&limit.kind) else {
            continue;
        };
        let about = || format!("raise {} to {}", limit.kind, limit.hard);
        let (soft, hard) = getrlimit(resource).context(about)?;
        if hard < limit.hard {
            setrlimit(resource, soft, limit.hard).context(about)?;
        }
    }
    Ok(())
}

/// Sets the resource limits.
pub fn set_limits(process: &Process) -> Result<()> {
    for limit in process.rlimits.iter().flatten() {
        let resource = resource(&limit.kind)
            .ok_or_else(|| Error::invalid("process.rlimits", format!("{} is none", limit.kind)))?;
        setrlimit(resource, limit.soft, limit.hard).context(|| {
            format!(
                "set {} to {} (at most {})",
                limit.kind, limit.soft, limit.hard
            )
        })?;
    }
    Ok(())
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name.strip_prefix("RLIMIT_")? {
        "AS" => Resource::RLIMIT_AS,
        "CORE" => Resource::RLIMIT_CORE,
        "CPU" => Resource::RLIMIT_CPU,
        "DATA" => Resource::RLIMIT_DATA,
        "FSIZE" => Resource::RLIMIT_FSIZE,
        "LOCKS" => Resource::RLIMIT_LOCKS,
        "MEMLOCK" => Resource::RLIMIT_MEMLOCK,
        "MSGQUEUE" => Resource::RLIMIT_MSGQUEUE,
        "NICE" => Resource::RLIMIT_NICE,
        "NOFILE" => Resource::RLIMIT_NOFILE,
        "NPROC" => Resource::RLIMIT_NPROC,
        "RSS" => Resource::RLIMIT_RSS,
        "RTPRIO" => Resource::RLIMIT_RTPRIO,
        "RTTIME" => Resource::RLIMIT_RTTIME,
        "SIGPENDING" => Resource::RLIMIT_SIGPENDING,
        "STACK" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}

fn set_of(names: Option<&Vec<String>>) -> Result<CapsHashSet> {
    let parse = |name: &String| {
        name.parse::<Capability>().map_err(|_| {
            Error::invalid(
                "process.capabilities",
                format!("this kernel knows no {name}"),
            )
        })
    };
    names.into_iter().flatten().map(parse).collect()
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the options that are passed here take a number and no pointers.
    match unsafe { libc::prctl(option, value, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forbids the process and all it starts to gain privileges by executing a program.
pub fn set_no_new_privileges() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).context(|| "set no_new_privs".into())
}

/// Becomes the user, with exactly the capabilities that the configuration names.
pub fn become_user(process: &Process) -> Result<()> {
    let none = Capabilities::default();
    let wanted = process.capabilities.as_ref().unwrap_or(&none);
    let bounding = set_of(wanted.bounding.as_ref())?;
    let sets = [
        // In this order each step is allowed by what is left of the one before.
        (CapSet::Effective, set_of(wanted.effective.as_ref())?),
        (CapSet::Inheritable, set_of(wanted.inheritable.as_ref())?),
        (CapSet::Permitted, set_of(wanted.permitted.as_ref())?),
    ];
    let refuse = |doing: &str, error: caps::errors::CapsError| Error::System {
        doing: doing.to_owned(),
        source: io::Error::other(error.to_string()),
    };
    for cap in caps::all() {
        if !bounding.contains(&cap) {
            caps::drop(None, CapSet::Bounding, cap)
                .map_err(|error| refuse("lower the bounding capabilities", error))?;
        }
    }
    prctl(libc::PR_SET_KEEPCAPS, 1).context(|| "keep capabilities".into())?;
    set_ids(process)?;
    prctl(libc::PR_SET_KEEPCAPS, 0).context(|| "stop keeping capabilities".into())?;
    for (set, value) in &sets {
        caps::set(None, *set, value)
            .map_err(|error| refuse(&format!("set the {set:?} capabilities"), error))?;
    }
    for cap in set_of(wanted.ambient.as_ref())? {
        caps::raise(None, CapSet::Ambient, cap)
            .map_err(|error| refuse(&format!("raise {cap} as ambient"), error))?;
    }
    Ok(())
}

fn set_ids(process: &Process) -> Result<()> {
    let user = &process.user;
    let groups: Vec<_> = user
        .additional_gids
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    // Where groups cannot be set (in some user namespaces), there are none to be lost either.
    match setgroups(&groups) {
        Err(nix::Error::EPERM) if groups.is_empty() => {}
        result => result.context(|| format!("set the groups {groups:?}"))?,
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).context(|| format!("become group {gid}"))?;
    setresuid(uid, uid, uid).context(|| format!("become user {uid}"))
}

/// The home directory of a user, by the container's /etc/passwd.
pub fn home_of(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    home_in(&passwd, uid).unwrap_or("/").to_owned()
}

fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.nth(2)?.parse() == Ok(uid)).then(|| fields.nth(2))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, programs get the wrong $HOME.
    #[test]
    fn homes_are_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nu:x:7:8:,,:/home/u:\n";
        assert_eq!(home_in(passwd, 0), Some("/root"));
        assert_eq!(home_in(passwd, 7), Some("/home/u"));
        assert_eq!(home_in(passwd, 8), None);
    }

    /// If it fails, a capability or limit is taken for another or an unknown one is passed over.
    #[test]
    fn names_are_checked() {
        let names = vec!["CAP_KILL".to_owned(), "CAP_CHECKPOINT_RESTORE".to_owned()];
        assert_eq!(set_of(Some(&names)).unwrap().len(), 2);
        assert!(set_of(Some(&vec!["CAP_NONE".to_owned()])).is_err());
        assert_eq!(resource("RLIMIT_NPROC"), Some(Resource::RLIMIT_NPROC));
        assert_eq!(resource("NPROC"), None);
    }
}
