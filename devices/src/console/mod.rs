//! Where a serial console leads on the host: standard streams, a file, a socket, a pty.
//!
//! A [`Console`] makes the UART, owns its host side, and is a subscriber of the event loop: no
//! threads. The host side never makes a vCPU wait, and the guest never makes us read more than a
//! few KiB that it has not taken.

use std::collections::VecDeque;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::{info, warn};
use rustix::event::PollFlags;
use vmm_sys_util::eventfd::EventFd;

use crate::legacy::Serial;
use crate::listener::Listener;

mod escape;
mod input;
mod output;
mod pty;
mod shared;
pub mod terminal;

pub use output::ConsoleOutput;

use escape::{Command, Escape, HELP};
use input::Input;
use output::Sink;
use pty::Pty;
use shared::ready;
use terminal::RawTerminal;

/// Bytes of input that we hold for a guest that does not take them. More stays where it is.
const PENDING: usize = 4 << 10;
/// How long the end of a VM waits for the host to take the last of the output.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// What a program is told that connects to a console's socket while another is connected.
const BUSY: &[u8] = b"another client has this console\r\n";

// What an event is about.
const TIMER: u32 = 0;
const ROOM: u32 = 1;
const INPUT: u32 = 2;
const OUTPUT: u32 = 3;
const LISTENER: u32 = 4;

/// Why a console cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// No event or timer descriptors.
    #[error("the host has no descriptors left for the console")]
    Descriptors(#[source] io::Error),
    /// Standard input or output is closed or unusable.
    #[error("standard input or output cannot be used for the console")]
    Streams(#[source] io::Error),
    /// The terminal does not do as it is told.
    #[error("the terminal cannot be switched to raw mode")]
    Terminal(#[source] io::Error),
    /// The output file cannot be opened.
    #[error("cannot open {} for the console's output", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The socket cannot be listened on.
    #[error(
        "cannot listen on the console's socket {}; remove what is there or name another", path.display()
    )]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The host gives no pseudo-terminal.
    #[error("cannot open a pseudo-terminal for the console; is /dev/pts mounted?")]
    Pty(#[source] io::Error),
}

/// What the host side is, beyond a place to read from and one to write to.
enum Host {
    /// Nothing that needs care.
    Plain,
    /// The user's terminal, raw while it is ours, and what to do when the user wants to leave.
    Terminal {
        escape: Escape,
        _raw: RawTerminal,
        on_quit: Box<dyn FnMut() + Send>,
    },
    /// Clients come and go.
    Socket(Listener),
    /// Both ends of a pseudo-terminal, to keep it alive.
    Pty(Pty),
}

/// How input is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    /// Not at all: there is none, or enough of it is here.
    Off,
    /// By the event loop.
    Polled,
    /// It is a file and always there: it is read when the guest has room.
    Always,
}

/// A UART and its host side.
pub struct Console {
    serial: Arc<Mutex<Serial>>,
    host: Host,
    input: Option<Input>,
    watch: Watch,
    /// Input that the guest has not taken.
    pending: VecDeque<u8>,
    /// The sink's descriptor, while the event loop watches it.
    output_watched: Option<RawFd>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("serial", &self.serial)
            .field("input", &self.input)
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

impl Console {
    /// A UART that nobody listens to. `irq` is its irqfd, in non-blocking mode, here and below.
    pub fn null(irq: EventFd) -> Result<Self, ConsoleError> {
        let output = ConsoleOutput::discard().map_err(ConsoleError::Descriptors)?;
        Self::new(irq, output, Host::Plain, None)
    }

    /// The standard streams. If input is a terminal that is ours it becomes raw, and Ctrl-a x calls
    /// `on_quit` on the event loop's thread. The end of input is the end of input, nothing more.
    pub fn stdio(
        irq: EventFd,
        on_quit: impl FnMut() + Send + 'static,
    ) -> Result<Self, ConsoleError> {
        let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
        let sink = Sink::shared(stdout).map_err(ConsoleError::Streams)?;
        let mut input = Some(Input::shared(stdin).map_err(ConsoleError::Streams)?);
        let host = if terminal::is_ours(stdin) {
            Host::Terminal {
                escape: Escape::default(),
                _raw: RawTerminal::enter(stdin).map_err(ConsoleError::Terminal)?,
                on_quit: Box::new(on_quit),
            }
        } else {
            if rustix::termios::isatty(stdin) {
                info!("the console takes no input: the terminal is another job's");
                input = None;
            }
            Host::Plain
        };
        Self::with_sink(irq, sink, host, input)
    }

    /// Output to the file `path`, at its end if `append`, else from its start. No input.
    pub fn file(irq: EventFd, path: &Path, append: bool) -> Result<Self, ConsoleError> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(append)
            .truncate(!append)
            // A named pipe that nobody reads is an error and not a wait without end.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| ConsoleError::File {
                path: path.to_owned(),
                source,
            })?;
        Self::with_sink(irq, Sink::own(file), Host::Plain, None)
    }

    /// A Unix socket at `path` for one client at a time. While there is none the newest 64 KiB of
    /// output are kept for the next.
    pub fn socket(irq: EventFd, path: &Path) -> Result<Self, ConsoleError> {
        let socket = Listener::listen(path).map_err(|source| ConsoleError::Socket {
            path: path.to_owned(),
            source,
        })?;
        info!("the console is at {}", socket.path().display());
        let output = ConsoleOutput::new().map_err(ConsoleError::Descriptors)?;
        Self::new(irq, output, Host::Socket(socket), None)
    }

    /// A new pseudo-terminal, at [`Self::pty_path`].
    pub fn pty(irq: EventFd) -> Result<Self, ConsoleError> {
        let pty = Pty::open().map_err(ConsoleError::Pty)?;
        info!("the console is at {}", pty.path().display());
        let ours = || pty.host().try_clone_to_owned().map_err(ConsoleError::Pty);
        let (sink, input) = (Sink::own(ours()?), Input::own(ours()?));
        Self::with_sink(irq, sink, Host::Pty(pty), Some(input))
    }

    fn with_sink(
        irq: EventFd,
        sink: Sink,
        host: Host,
        input: Option<Input>,
    ) -> Result<Self, ConsoleError> {
        let mut output = ConsoleOutput::new().map_err(ConsoleError::Descriptors)?;
        output.attach(sink);
        Self::new(irq, output, host, input)
    }

    fn new(
        irq: EventFd,
        output: ConsoleOutput,
        host: Host,
        input: Option<Input>,
    ) -> Result<Self, ConsoleError> {
        let serial = Serial::new(irq, output).map_err(ConsoleError::Descriptors)?;
        Ok(Self {
            serial: Arc::new(Mutex::new(serial)),
            host,
            input,
            watch: Watch::Off,
            pending: VecDeque::new(),
            output_watched: None,
        })
    }

    /// The UART, to be put on the bus.
    pub fn serial(&self) -> Arc<Mutex<Serial>> {
        Arc::clone(&self.serial)
    }

    /// Where the pseudo-terminal is, if the console is one.
    pub fn pty_path(&self) -> Option<&Path> {
        match &self.host {
            Host::Pty(pty) => Some(pty.path()),
            _ => None,
        }
    }

    /// The end: writes what is left, for at most half a second, and gives back the terminal. A
    /// socket's file goes when the console is dropped, which does all this too.
    pub fn finish(&mut self) {
        let time = match self.host {
            // Nobody may ever have opened it.
            Host::Pty(_) => Duration::ZERO,
            _ => LAST_WORDS,
        };
        lock(&self.serial).output().drain(time);
        if let Host::Terminal { .. } = self.host {
            self.host = Host::Plain;
        }
    }

    /// Gives the guest what input it takes, and reads more where there is more: once if the event
    /// loop says that the input is `readable`, as long as the guest takes it if it is always there.
    fn pump(&mut self, mut readable: bool, ops: &mut EventOps) {
        loop {
            if !self.pending.is_empty() {
                let bytes = self.pending.make_contiguous();
                let taken = lock(&self.serial).receive(bytes);
                self.pending.drain(..taken);
            }
            let wanted = match self.watch {
                Watch::Always => self.pending.is_empty(),
                _ => std::mem::take(&mut readable) && self.pending.len() < PENDING,
            };
            if !wanted || !self.read(ops) {
                return;
            }
        }
    }

    /// Reads input once. False if there was none; at its end it is closed.
    fn read(&mut self, ops: &mut EventOps) -> bool {
        let Some(input) = &mut self.input else {
            return false;
        };
        let mut bytes = [0; PENDING];
        let room = PENDING - self.pending.len().min(PENDING);
        match input.read(&mut bytes[..room]) {
            Ok(n) if n > 0 => {
                self.take(&bytes[..n]);
                true
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
            // The end, or a terminal that hung up, or a client that is gone.
            Ok(_) | Err(_) => {
                self.close_input(ops);
                if self.has_client_gone() {
                    self.close_sink(ops);
                }
                false
            }
        }
    }

    /// Takes what was typed, but for the monitor's own keys.
    fn take(&mut self, typed: &[u8]) {
        let Host::Terminal {
            escape, on_quit, ..
        } = &mut self.host
        else {
            self.pending.extend(typed);
            return;
        };
        let command = |command| match command {
            Command::Quit => on_quit(),
            Command::Help => {
                let mut serial = lock(&self.serial);
                HELP.iter().for_each(|&byte| serial.output().push(byte));
            }
        };
        escape.filter(typed, |byte| self.pending.push_back(byte), command);
    }

    /// Has the event loop watch the input while we have room for it, and only then: a hang-up is
    /// reported for as long as it is watched.
    fn watch_input(&mut self, ops: &mut EventOps) {
        let Some(input) = &self.input else {
            return;
        };
        let events = Events::with_data(&input.as_fd(), INPUT, EventSet::IN);
        match (self.watch, self.pending.len() < PENDING) {
            (Watch::Off, true) => match ops.add(events) {
                Ok(()) => self.watch = Watch::Polled,
                Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EPERM => {
                    self.watch = Watch::Always;
                    self.pump(false, ops);
                }
                Err(e) => {
                    warn!("the console takes no input any more: {e}");
                    self.input = None;
                }
            },
            (Watch::Polled, false) => {
                forget(ops, events);
                self.watch = Watch::Off;
            }
            _ => {}
        }
    }

    /// Has the event loop watch a sink that takes no more, until it does.
    fn watch_output(&mut self, ops: &mut EventOps) {
        let wanted = lock(&self.serial)
            .output()
            .blocked()
            .map(|fd| fd.as_raw_fd());
        if wanted == self.output_watched {
            return;
        }
        self.unwatch_output(ops);
        if let Some(fd) = wanted {
            match ops.add(Events::with_data_raw(fd, OUTPUT, EventSet::OUT)) {
                Ok(()) => self.output_watched = Some(fd),
                Err(e) => warn!("the console's output stops here: {e}"),
            }
        }
    }

    fn unwatch_output(&mut self, ops: &mut EventOps) {
        if let Some(fd) = self.output_watched.take() {
            forget(ops, Events::empty_raw(fd));
        }
    }

    fn close_input(&mut self, ops: &mut EventOps) {
        if let Some(input) = self.input.take()
            && self.watch == Watch::Polled
        {
            forget(ops, Events::empty(&input.as_fd()));
        }
        self.watch = Watch::Off;
    }

    fn close_sink(&mut self, ops: &mut EventOps) {
        self.unwatch_output(ops);
        lock(&self.serial).output().detach();
    }

    /// Whether a socket's client closed its end altogether, and not only for sending.
    fn has_client_gone(&self) -> bool {
        let mut serial = lock(&self.serial);
        let sink = serial.output().sink();
        matches!(self.host, Host::Socket(_))
            && sink.is_some_and(|fd| ready(fd, PollFlags::empty(), Duration::ZERO))
    }

    /// Lets clients in, or rather one.
    fn accept(&mut self, ops: &mut EventOps) {
        loop {
            if self.has_client_gone() {
                self.close_input(ops);
                self.close_sink(ops);
            }
            let Host::Socket(socket) = &self.host else {
                return;
            };
            let busy = lock(&self.serial).output().attached();
            let Ok(mut client) = socket.accept() else {
                return;
            };
            if busy {
                let _ = client.write(BUSY);
                continue;
            }
            if let Ok(sink) = client.try_clone() {
                self.close_input(ops);
                lock(&self.serial).output().attach(Sink::own(sink));
                self.input = Some(Input::own(client));
            }
        }
    }
}

fn lock(serial: &Mutex<Serial>) -> MutexGuard<'_, Serial> {
    serial.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a descriptor back from the event loop.
fn forget(ops: &mut EventOps, events: Events) {
    // It fails only for what is not there.
    let _ = ops.remove(events);
}

impl MutEventSubscriber for Console {
    fn init(&mut self, ops: &mut EventOps) {
        let mut wanted = {
            let mut serial = lock(&self.serial);
            let room = Events::with_data(serial.room(), ROOM, EventSet::IN);
            let timer = Events::with_data(&serial.output().timer(), TIMER, EventSet::IN);
            vec![room, timer]
        };
        if let Host::Socket(socket) = &self.host {
            // Edge-triggered: one that cannot be accepted for want of descriptors is left waiting
            // instead of keeping the loop busy.
            let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
            wanted.push(Events::with_data(&socket.as_fd(), LISTENER, set));
        }
        for events in wanted {
            if let Err(e) = ops.add(events) {
                warn!("the console does not work in full: {e}");
            }
        }
        self.watch_input(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            TIMER => lock(&self.serial).output().timer_fired(),
            OUTPUT => lock(&self.serial).output().unblock(),
            ROOM => {
                // Level-triggered: reading it is what silences it.
                let _ = lock(&self.serial).room().read();
                self.pump(false, ops);
            }
            INPUT => self.pump(true, ops),
            LISTENER => self.accept(ops),
            _ => {}
        }
        if lock(&self.serial).output().gone() {
            if let Host::Socket(_) = self.host {
                self.close_input(ops);
            }
            self.close_sink(ops);
        }
        self.watch_input(ops);
        self.watch_output(ops);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests;
