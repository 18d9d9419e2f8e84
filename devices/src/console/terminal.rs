//! The terminal in raw mode, and the way back on every way out.
//!
//! The modes as they were are kept in the process, not in an object: a process ends in more ways
//! than by dropping what it owns.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};
use vmm_sys_util::signal::{block_signal, unblock_signal};

/// The terminal and its modes before we changed them. Set once, then only read: [`restore`] may
/// be called in a signal handler, where a lock could be held already.
static SAVED: OnceLock<(OwnedFd, Termios)> = OnceLock::new();
static RAW: AtomicBool = AtomicBool::new(false);

/// Whether the terminal is raw now. Then a line that is printed must end in `\r\n`.
pub fn is_raw() -> bool {
    RAW.load(Ordering::Acquire)
}

/// Gives the terminal back the modes that it had. For any way out: it does nothing if there is
/// nothing to do, may be called twice, and is safe in a signal handler.
pub fn restore() {
    if !RAW.swap(false, Ordering::AcqRel) {
        return;
    }
    if let Some((terminal, modes)) = SAVED.get() {
        // In the background, changing modes would stop us before we end.
        let blocked = block_signal(libc::SIGTTOU).is_ok();
        // There is nobody left to tell if it fails: the terminal is gone.
        let _ = tcsetattr(terminal, OptionalActions::Now, modes);
        if blocked {
            let _ = unblock_signal(libc::SIGTTOU);
        }
    }
}

extern "C" fn restore_at_exit() {
    restore();
}

/// The terminal is raw while this lives.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes `terminal` raw: each key goes to the guest, none to the shell or to us as a signal.
    /// From now on the modes come back when this is dropped, when the process exits or panics, and
    /// when [`restore`] is called. A process has one terminal: the first.
    pub fn enter(terminal: impl AsFd) -> io::Result<Self> {
        let modes = tcgetattr(&terminal)?;
        let mut raw = modes.clone();
        raw.make_raw();
        if SAVED.get().is_none() {
            let kept = terminal.as_fd().try_clone_to_owned()?;
            if SAVED.set((kept, modes)).is_ok() {
                restore_on_every_way_out();
            }
        }
        RAW.store(true, Ordering::Release);
        tcsetattr(&terminal, OptionalActions::Now, &raw).inspect_err(|_| restore())?;
        Ok(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

fn restore_on_every_way_out() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        hook(info);
    }));
    // SAFETY: the function is 'static, takes nothing, and neither unwinds nor calls exit.
    // If there is no place for it, the guard and the panic hook remain.
    unsafe { libc::atexit(restore_at_exit) };
}

/// Whether `fd` is a terminal that is ours to read: a process in the background that touches its
/// terminal is stopped.
pub(super) fn is_ours(fd: BorrowedFd<'_>) -> bool {
    // A terminal that is not our controlling terminal has no foreground for us, and stops nobody.
    isatty(fd) && tcgetpgrp(fd).map_or(true, |group| group == rustix::process::getpgrp())
}

#[cfg(test)]
mod tests {
    use super::super::pty::Pty;
    use super::*;

    /// If it fails, the user's shell is left without echo. One test: the state is the process's.
    #[test]
    fn the_modes_come_back_on_every_way_out() {
        use rustix::termios::LocalModes;
        let pty = Pty::open().unwrap();
        let terminal = pty.terminal();
        let mut cooked = tcgetattr(terminal).unwrap();
        cooked.local_modes |= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        tcsetattr(terminal, OptionalActions::Now, &cooked).unwrap();
        let is_cooked =
            || tcgetattr(terminal).unwrap().local_modes == cooked.local_modes && !is_raw();
        assert!(is_cooked());

        let guard = RawTerminal::enter(terminal).unwrap();
        assert!(is_raw() && !is_cooked());
        drop(guard);
        assert!(is_cooked(), "dropped");

        let guard = RawTerminal::enter(terminal).unwrap();
        assert!(!is_cooked());
        restore();
        restore();
        assert!(is_cooked(), "restored");
        drop(guard);

        let guard = RawTerminal::enter(terminal).unwrap();
        let result = std::thread::spawn(|| panic!("a panic that the test wants")).join();
        assert!(result.is_err() && is_cooked(), "panicked");
        drop(guard);
    }
}
