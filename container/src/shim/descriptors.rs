//! How many descriptors the shim may have: as many as it is allowed, for a published port and each who is
//! connected take some. What it starts for a container has the limit that we were started with.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises our limit.
pub(super) fn raise() {
    let before = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: before.maximum,
        ..before
    };
    if setrlimit(Resource::Nofile, most).is_ok() {
        let _ = BEFORE.set(before);
    }
}

/// Gives a command the limit from before.
pub(super) fn restore(command: &mut Command) {
    let Some(before) = BEFORE.get().copied() else {
        return;
    };
    // SAFETY: between fork and exec the closure makes one system call and nothing else.
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::Nofile, before)?));
    }
}
