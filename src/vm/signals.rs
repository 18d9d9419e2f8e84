//! Signals to the monitor: the first asks the guest to power off, a second one does not ask; one of
//! another kind says that disks have grown.

use std::io;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::sync::{Arc, Mutex, PoisonError};

/// The signals that end a VM.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// The signal that says that disks may have another size.
const RESIZE: Signal = Signal::SIGUSR1;

/// The signals that have come. Clones see the same ones.
#[derive(Clone, Debug, Default)]
pub struct Received(Arc<Mutex<Vec<u8>>>);

impl Received {
    /// Whether a signal's number is the one that says that disks may have another size.
    pub fn is_resize(number: u8) -> bool {
        i32::from(number) == RESIZE as i32
    }

    /// The next signal's number, in the order of arrival.
    pub fn take(&self) -> Option<u8> {
        let mut signals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!signals.is_empty()).then(|| signals.remove(0))
    }
}

/// Turns signals into events of the main loop.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    received: Received,
}

impl Signals {
    /// From now on, and in all threads started from now on, the signals wait for the main loop.
    pub fn new() -> io::Result<(Self, Received)> {
        let set: SigSet = ENDING.into_iter().chain([RESIZE]).collect();
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let received = Received::default();
        Ok((
            Self {
                fd,
                received: received.clone(),
            },
            received,
        ))
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        while let Ok(Some(info)) = self.fd.read_signal() {
            let number = u8::try_from(info.ssi_signo).unwrap_or(u8::MAX);
            self.received
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(number);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.fd, EventSet::IN)) {
            log::error!("signals will not be heard: {error}");
        }
    }
}
