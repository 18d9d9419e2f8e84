//! Free page hinting (virtio 1.2, section 5.5.6.6): at the device's wish the driver goes through all
//! its free memory, in a run with a number.
//!
//! A hint says that a block is free now, not that it stays so: a driver that is short of memory
//! takes back what it hinted without a word, while the device may not have looked yet (Linux does).
//! What the device throws away then is somebody's. So the queue is synchronous: the driver keeps a
//! block to itself until its kick is served, and only what is seen within that kick is thrown away.

use super::{Chain, Discarder, QueueError};

/// The driver is at the end of a run; no run is wanted.
const STOP: u32 = 0;
/// The driver may use again what it hinted.
const DONE: u32 = 1;

/// Runs of hints.
#[derive(Debug)]
pub(super) struct Hinting {
    /// What the configuration shows: STOP, DONE or the number of the run that is wanted.
    wanted: u32,
    /// The number of the last run.
    last: u32,
    /// The driver has begun the run that is wanted.
    is_begun: bool,
}

impl Hinting {
    /// No run is wanted yet.
    pub(super) fn new() -> Self {
        Self {
            wanted: STOP,
            last: DONE,
            is_begun: false,
        }
    }

    /// What the configuration shows.
    pub(super) fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Asks for a run, instead of the one that may be under way.
    pub(super) fn start(&mut self) {
        self.last = self.last.wrapping_add(1).max(DONE + 1);
        self.wanted = self.last;
        self.is_begun = false;
    }

    /// A new driver begins anew.
    pub(super) fn reset(&mut self) {
        self.wanted = STOP;
        self.is_begun = false;
    }

    /// What the driver sent: the number of a run that it begins, STOP at its end, or blocks of the
    /// run. `discarder` is there if the driver waits for us. Returns whether the configuration is
    /// another now.
    pub(super) fn take(
        &mut self,
        chain: &mut Chain,
        discarder: Option<&mut Discarder>,
    ) -> Result<bool, QueueError> {
        if !chain.readable.is_empty() && !chain.writable.is_empty() {
            return Err(QueueError::Request("a hint with data in it"));
        }
        let mut number = [0; 4];
        let is_running = self.wanted > DONE;
        if chain.readable.read(&mut number) == number.len() && is_running {
            let number = u32::from_le_bytes(number);
            let is_end = number == STOP && self.is_begun;
            self.is_begun = number == self.wanted;
            if is_end {
                self.wanted = DONE;
                return Ok(true);
            }
        }
        if let Some(discarder) = discarder.filter(|_| is_running && self.is_begun) {
            discarder.pieces(chain.writable.iovecs());
        }
        Ok(false)
    }
}
