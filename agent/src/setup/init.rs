//! A first process that does what the kernel expects of one, for programs that do not: it reaps what is
//! left to it, and gets the signals that the program would never see as PID 1.

use std::process::exit;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, setpgid, tcsetpgrp};

use crate::error::{Context, Result};

/// What it is called in the container.
const NAME: &std::ffi::CStr = c"cofferdam-init";

/// Signals that the kernel sends for what a process does itself; blocked, they would kill it unseen.
const OWN: [Signal; 5] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGILL,
    Signal::SIGTRAP,
];

/// Forks. The child goes on, to become the program; this process stays, passes signals on to it, reaps,
/// and ends as it has ended. With a `terminal` the child is its foreground.
pub fn stay_behind(terminal: bool) -> Result<()> {
    // Before there is a child: no signal may be lost.
    let mut signals = SigSet::all();
    OWN.into_iter().for_each(|signal| signals.remove(signal));
    signals.thread_block().context(|| "block signals".into())?;
    // SAFETY: this process has one thread, so the child's memory is as consistent as its own.
    match unsafe { fork() }.context(|| "start the program below an init process".into())? {
        ForkResult::Child => {
            let alone = Pid::from_raw(0);
            setpgid(alone, alone).context(|| "make a process group".into())?;
            if terminal {
                tcsetpgrp(std::io::stdin(), getpid())
                    .context(|| "give the program the terminal".into())?;
            }
            Ok(())
        }
        ForkResult::Parent { child } => {
            // What is open besides the standard streams is the child's.
            // SAFETY: no descriptor is used any more, and no destructor will run.
            unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
            // SAFETY: the name is a string with its end, and is only read.
            unsafe { libc::prctl(libc::PR_SET_NAME, NAME.as_ptr()) };
            exit(watch(child, &signals))
        }
    }
}

/// Gives the child's exit code, as a shell has it.
fn watch(child: Pid, signals: &SigSet) -> i32 {
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return 128 + signal as i32;
            }
            // It was waited for already, which nobody else does.
            Err(Errno::ECHILD) => return 255,
            Ok(WaitStatus::StillAlive) | Err(_) => pass_on(child, signals),
            Ok(_) => {}
        }
    }
}

/// Waits for a signal, and passes it on unless it tells of a child. Real-time ones, too, which nix does
/// not know.
fn pass_on(child: Pid, signals: &SigSet) {
    // SAFETY: the set is a valid one, and nothing is asked for but the number.
    let signal = unsafe { libc::sigwaitinfo(signals.as_ref(), std::ptr::null_mut()) };
    if signal > 0 && signal != libc::SIGCHLD {
        // SAFETY: it takes two numbers. The child is not waited for yet, so its number is its own.
        unsafe { libc::kill(child.as_raw(), signal) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a container with an init process ends with another exit code than its program, or
    /// before it.
    #[test]
    fn it_ends_as_its_child() {
        let end = |act: fn()| {
            // SAFETY: the child calls what is safe after a fork: kill, fork, _exit.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    act();
                    // SAFETY: it ends the process, and runs nothing.
                    unsafe { libc::_exit(7) }
                }
                ForkResult::Parent { child } => child,
            }
        };
        let status = |child| match waitpid(child, None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("{other:?}"),
        };
        // Each in a process of its own: others of the test have children, too.
        for (act, expected) in [
            ((|| {}) as fn(), 7),
            (
                || {
                    // SAFETY: they take numbers.
                    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                },
                128 + 9,
            ),
        ] {
            // SAFETY: as above; the parent of the child waits in `watch`, which allocates nothing.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let mut signals = SigSet::empty();
                    signals.add(Signal::SIGCHLD);
                    signals.thread_block().unwrap();
                    let code = watch(end(act), &signals);
                    // SAFETY: it ends the process, and runs nothing.
                    unsafe { libc::_exit(code) }
                }
                ForkResult::Parent { child } => assert_eq!(status(child), expected),
            }
        }
    }
}
