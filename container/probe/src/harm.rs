//! Harm, within limits, and a neighbour who says how he felt it.

use std::fs;
use std::io::{self, BufRead};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::say;

/// Between two beats of the neighbour.
const BEAT: Duration = Duration::from_millis(20);
const MIB: usize = 1 << 20;

/// A neighbour: starts a process again and again. For each line of input, and at its end, says how many
/// it started since the one before, and how long the longest pause was.
pub fn pulse() -> io::Result<()> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for _ in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    let (mut beats, mut longest, mut last) = (0_u64, Duration::ZERO, Instant::now());
    loop {
        let asked = lines.recv_timeout(BEAT);
        crate::work::spawn()?;
        beats += 1;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if asked == Err(RecvTimeoutError::Timeout) {
            continue;
        }
        say("beats", beats)?;
        say("longest_ms", longest.as_secs_f64() * 1e3)?;
        if asked.is_err() {
            return Ok(());
        }
        (beats, longest) = (0, Duration::ZERO);
    }
}

/// A fork bomb: processes that stay, until no more can be started, there are `most`, or the time is
/// over. They all go with this one.
pub fn fork(most: u32, time: Duration) -> io::Result<()> {
    let started = Instant::now();
    let mut children = Vec::new();
    let mut refused = 0;
    while children.len() < most as usize && started.elapsed() < time {
        // SAFETY: this program has one thread; the child only waits for its end.
        match unsafe { libc::fork() } {
            -1 => {
                refused = io::Error::last_os_error().raw_os_error().unwrap_or(0);
                break;
            }
            // SAFETY: they take no pointers, and the child never returns.
            0 => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            },
            child => children.push(child),
        }
    }
    say("processes", children.len())?;
    say("refused", refused)?;
    for child in &children {
        // SAFETY: the child is ours and not waited for, so the number is its own.
        unsafe { libc::kill(*child, libc::SIGKILL) };
    }
    for child in children {
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
    Ok(())
}

/// Takes memory, a mebibyte at a time, until somebody kills it or it has `most`.
pub fn eat(most: usize) -> io::Result<()> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    while all.len() < most {
        // Not zero: the kernel has zeros without giving memory for them.
        all.push(vec![1; MIB]);
        if all.len().is_multiple_of(8) {
            say("mib", all.len())?;
        }
    }
    say("not_stopped", all.len())
}

/// Panics the kernel, if it is not the one that was booted as `host`.
pub fn panic(host: &str) -> io::Result<()> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    if host.len() != 36 || boot.trim().len() != 36 || boot.trim() == host {
        return Err(io::Error::other("this is the host's kernel: not done"));
    }
    fs::write("/proc/sysrq-trigger", "c")?;
    thread::sleep(Duration::from_secs(30));
    Err(io::Error::other("the kernel lives on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, the host's own kernel may be panicked by a test of a guest's.
    #[test]
    fn the_hosts_kernel_is_spared() {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert!(
            panic(boot.trim())
                .unwrap_err()
                .to_string()
                .contains("not done")
        );
        // Who does not know which is the host's, does nothing.
        assert!(panic("").is_err());
    }

    /// If it fails, a fork bomb does not keep to its limit.
    #[test]
    fn a_bomb_has_an_end() {
        fork(3, Duration::from_secs(5)).unwrap();
    }
}
