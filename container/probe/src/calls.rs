//! Which system calls the kernel here answers.
//!
//! Each is made once, in a process of its own, with arguments that make no sense (all bits set), so that
//! it is refused before it does anything. What counts is who refuses: a kernel that looked at the
//! arguments was reached.

use std::io;
use std::time::{Duration, Instant};

use crate::say;

/// Beyond the last that Linux had when this was written (6.18: 470).
const LAST: libc::c_long = 480;
/// A call that has not come back by now waits in the kernel: it was reached.
const PATIENCE: Duration = Duration::from_millis(300);
/// Exit codes of the child: an errno as it is, or this, for a call that did something.
const DONE: i32 = 0;

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The kernel did it, or found fault with the arguments.
    Answered,
    /// EPERM: by the kernel for want of a capability, or by a filter before the kernel's own code.
    Refused,
    /// ENOSYS: not in this kernel, or a filter pretends so.
    Absent,
    /// SIGSYS: by a filter.
    Killed,
}

/// Says how many calls are answered, refused, and not there; and whether a filter is in force.
pub fn count() -> io::Result<()> {
    let mut counts = [0_u32; 4];
    // But one, which as root would hang up the terminal.
    for number in (0..=LAST).filter(|number| *number != libc::SYS_vhangup) {
        let answer = try_in_child(number)?;
        counts[answer as usize] += 1;
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or("0").trim().to_owned()
    };
    say("filter", field("Seccomp:"))?;
    for (answer, name) in [
        (Answer::Answered, "answered"),
        (Answer::Refused, "refused"),
        (Answer::Absent, "absent"),
        (Answer::Killed, "killed"),
    ] {
        say(name, counts[answer as usize])?;
    }
    Ok(())
}

/// What the call with this number is given: senseless, but for those that say "no such call" of what
/// they do not know.
fn arguments(number: libc::c_long) -> [libc::c_long; 6] {
    match number {
        // Wake nobody at no address; read no descriptors.
        libc::SYS_futex => [-1, libc::FUTEX_WAKE as libc::c_long, -1, -1, -1, -1],
        libc::SYS_modify_ldt => [0, -1, 0, -1, -1, -1],
        _ => [-1; 6],
    }
}

fn try_in_child(number: libc::c_long) -> io::Result<Answer> {
    let [a, b, c, d, e, f] = arguments(number);
    // SAFETY: this program has one thread. The child makes one system call and ends.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: every argument is an invalid pointer, descriptor, length or flag, so that the
            // kernel refuses the call or does what harms nobody but this process, which ends now.
            unsafe {
                let result = libc::syscall(number, a, b, c, d, e, f);
                let code = if result == -1 {
                    *libc::__errno_location()
                } else {
                    DONE
                };
                libc::_exit(code);
            }
        }
        _ => {}
    }
    judge(child)
}

/// Waits for the child, not for ever.
fn judge(child: libc::pid_t) -> io::Result<Answer> {
    let started = Instant::now();
    let mut flags = libc::WNOHANG;
    let mut waits = 0_u64;
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes one int to `status`, which outlives the call.
        match unsafe { libc::waitpid(child, &mut status, flags | libc::__WALL) } {
            0 if started.elapsed() < PATIENCE => {
                waits += 1;
                std::thread::sleep(Duration::from_micros((50 * waits).min(5000)));
            }
            0 => {
                // SAFETY: the child is ours and not waited for, so the number is its own.
                unsafe { libc::kill(child, libc::SIGKILL) };
                flags = 0;
            }
            -1 => return Err(io::Error::last_os_error()),
            _ => return Ok(answer(status)),
        }
    }
}

fn answer(status: libc::c_int) -> Answer {
    if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS {
        return Answer::Killed;
    }
    // Other signals, too: of a call that crashed its process, or did not come back.
    if !libc::WIFEXITED(status) {
        return Answer::Answered;
    }
    match libc::WEXITSTATUS(status) {
        libc::EPERM => Answer::Refused,
        libc::ENOSYS => Answer::Absent,
        _ => Answer::Answered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, calls that are there count as absent, or the other way round.
    #[test]
    fn answers_are_told_apart() {
        assert_eq!(try_in_child(libc::SYS_read).unwrap(), Answer::Answered);
        assert_eq!(try_in_child(libc::SYS_futex).unwrap(), Answer::Answered);
        assert_eq!(try_in_child(libc::SYS_pause).unwrap(), Answer::Answered);
        assert_eq!(
            try_in_child(libc::SYS_exit_group).unwrap(),
            Answer::Answered
        );
        assert_eq!(try_in_child(100_000).unwrap(), Answer::Absent);
        assert_eq!(answer(libc::SIGSYS), Answer::Killed);
        assert_eq!(answer(libc::EPERM << 8), Answer::Refused);
    }
}
