//! This process's terminal and signals as a container's.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::shim::wire::Frame;

/// What ends a container's run for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Followed {
    /// It ended.
    Ended(i32),
    /// The user left it to itself.
    Detached,
    /// Whoever held it is gone.
    Lost,
}

/// Ctrl-p, Ctrl-q: Docker's keys to leave a container.
const DETACH: [u8; 2] = [0x10, 0x11];

/// Our terminal with other settings than its own. Dropped, it has those again.
#[derive(Debug)]
pub(crate) struct Changed(Option<Termios>);

impl Changed {
    /// Without its own ideas of what keys mean, if standard input is a terminal, and the container has one.
    pub(crate) fn raw(tty: bool) -> Self {
        match tty {
            true => Self::by(Termios::make_raw),
            false => Self(None),
        }
    }

    /// Nothing changes if standard input is no terminal.
    pub(crate) fn by(change: impl FnOnce(&mut Termios)) -> Self {
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(&stdin) else {
            return Self(None);
        };
        let mut changed = before.clone();
        change(&mut changed);
        match tcsetattr(&stdin, OptionalActions::Now, &changed) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }

    /// Whether it is a terminal, and so was changed.
    pub(crate) fn is_changed(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Signals that are passed on; they must be blocked before there is a second thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signals(SigSet);

impl Signals {
    /// Blocks them for this thread and those that it will start.
    pub(crate) fn block() -> Self {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGWINCH,
        ] {
            set.add(signal);
        }
        // It fails for no set that there is.
        let _ = set.thread_block();
        Self(set)
    }

    /// Passes them on, for the rest of this process.
    pub(crate) fn pass_on(
        self,
        resize: impl Fn(u16, u16) + Send + 'static,
        kill: impl Fn(i32) + Send + 'static,
    ) {
        thread::spawn(move || {
            loop {
                match self.0.wait() {
                    Ok(Signal::SIGWINCH) => {
                        if let Some((rows, columns)) = window() {
                            resize(rows, columns);
                        }
                    }
                    Ok(signal) => kill(signal as i32),
                    Err(_) => {}
                }
            }
        });
    }
}

/// Rows and columns of our terminal.
pub(super) fn window() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdin())
        .or_else(|_| tcgetwinsize(io::stdout()))
        .ok()?;
    (size.ws_row != 0 && size.ws_col != 0).then_some((size.ws_row, size.ws_col))
}

/// Looks for the keys that detach in what is typed.
#[derive(Debug, Default)]
pub(in crate::cli) struct Keys {
    /// How many of them were the last to be typed.
    seen: usize,
}

impl Keys {
    /// What is to be passed on of `typed`, and whether the user wants to leave.
    pub(super) fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for &byte in typed {
            if DETACH.get(self.seen) == Some(&byte) {
                self.seen += 1;
                if self.seen == DETACH.len() {
                    return (passed, true);
                }
                continue;
            }
            passed.extend(DETACH.iter().take(self.seen));
            self.seen = 0;
            if DETACH.first() == Some(&byte) {
                self.seen = 1;
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

/// Writes to our standard output or error at once.
pub(super) fn show(data: &[u8], is_error: bool) {
    // Who reads it no more has seen enough; the container goes on.
    let _ = match is_error {
        true => io::stderr().write_all(data),
        false => {
            let mut out = io::stdout();
            out.write_all(data).and_then(|()| out.flush())
        }
    };
}

/// What connects us with a container.
pub(in crate::cli) struct Attachment {
    /// To its shim.
    pub(super) stream: UnixStream,
    /// From it.
    pub(super) reader: Box<dyn Read + Send>,
    /// It has a terminal.
    pub(super) tty: bool,
    /// It gets our input.
    pub(super) input: bool,
}

impl Attachment {
    /// Shows what the container prints and gives it what is typed, until it ends. `kill` passes a
    /// signal of ours on.
    pub(super) fn follow(
        self,
        signals: Signals,
        kill: impl Fn(i32) + Send + 'static,
    ) -> io::Result<Followed> {
        let Self {
            stream,
            mut reader,
            tty,
            input,
        } = self;
        let _raw = Changed::raw(tty && input);
        let detached = Arc::new(AtomicBool::new(false));
        let writer = Arc::new(Mutex::new(stream.try_clone()?));
        let send = |writer: &Mutex<UnixStream>, frame: &Frame| {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            frame.write(&mut *writer)
        };
        if tty && let Some((rows, columns)) = window() {
            let _ = send(&writer, &Frame::Size(rows, columns));
        }
        let to = Arc::clone(&writer);
        let resize = move |rows, columns| {
            if tty {
                let _ = send(&to, &Frame::Size(rows, columns));
            }
        };
        signals.pass_on(resize, kill);
        if input {
            let left = Arc::clone(&detached);
            thread::spawn(move || {
                let mut keys = Keys::default();
                let mut buffer = vec![0; 32 << 10];
                while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
                    let typed = buffer.get(..count).unwrap_or_default();
                    let (typed, leave) = match tty {
                        true => keys.take(typed),
                        false => (typed.to_vec(), false),
                    };
                    let sent = send(&writer, &Frame::Input(typed));
                    if leave {
                        left.store(true, Ordering::Release);
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                    if leave || sent.is_err() {
                        return;
                    }
                }
                let _ = send(&writer, &Frame::InputEnd);
            });
        }
        loop {
            match Frame::read(&mut reader) {
                Ok(Some(Frame::Output(data))) => show(&data, false),
                Ok(Some(Frame::Error(data))) => show(&data, true),
                Ok(Some(Frame::End(code))) => return Ok(Followed::Ended(code)),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) if detached.load(Ordering::Acquire) => {
                    return Ok(Followed::Detached);
                }
                Ok(None) | Err(_) => return Ok(Followed::Lost),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, nobody can leave a container that he is attached to, or what he types is changed.
    #[test]
    fn two_keys_detach() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.take(b"c\x10\x10"), (b"\x10c\x10".to_vec(), false));
        assert_eq!(keys.take(b"\x11rest"), (Vec::new(), true));
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"\x11x"), (b"\x11x".to_vec(), false));
    }
}
