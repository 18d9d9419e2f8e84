//! A look for the guest's answer before the thread sleeps.
//!
//! A guest that is asked something mostly answers at once, and first says that it has room again.
//! Kicks for both, each an exit of the guest and a wake-up here, cost more than the answer itself.
//! So who has given the guest a little looks for a moment whether something comes back, and leaves
//! the CPU to whoever wants it meanwhile. It is what KVM does for a vCPU that halts
//! (Documentation/virt/kvm/halt-polling.rst), and bounded in the same way: looks that are in vain
//! become rare.

use std::thread;
use std::time::{Duration, Instant};

use crate::virtio::VirtQueue;

/// How long a look takes if nothing comes.
const TIME: Duration = Duration::from_micros(50);
/// A look that took longer was in vain whatever it found: others needed the CPU, and a kick would
/// have told us sooner.
const LATE: Duration = Duration::from_micros(200);
/// Occasions that are let pass at most after looks in vain.
const MAX_PASSED: u32 = 1023;

/// Whether looks have been worth it.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Occasions to let pass before the next look.
    passes: u32,
    /// How many there were after the last look in vain; 0 after one that was not.
    penalty: u32,
}

impl Look {
    /// On an occasion to look: whether to do so.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.passes == 0;
        self.passes = self.passes.saturating_sub(1);
        is_due
    }

    /// Looks until there is a chain in `queue`, whose kicks should be off, or time is up.
    pub(super) fn wait(&mut self, queue: &VirtQueue) {
        let start = Instant::now();
        // The guest may have answered already, on a CPU of its own or while it had ours.
        let mut is_there = queue.has_chain();
        while !is_there && start.elapsed() <= TIME {
            // With a single CPU it is the guest that goes on here.
            thread::yield_now();
            is_there = queue.has_chain();
        }
        self.learn(is_there && start.elapsed() <= LATE);
    }

    fn learn(&mut self, is_worth_it: bool) {
        self.penalty = match is_worth_it {
            true => 0,
            false => (self.penalty * 2 + 1).min(MAX_PASSED),
        };
        self.passes = self.penalty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a guest that never answers costs the host a CPU, or one that does again is not
    /// noticed.
    #[test]
    fn looks_in_vain_become_rare_and_no_rarer() {
        let mut look = Look::default();
        let mut passed = |is_worth_it| {
            let count = (0..).take_while(|_| !look.is_due()).count();
            look.learn(is_worth_it);
            count
        };
        let counts: Vec<_> = (0..13).map(|_| passed(false)).collect();
        assert_eq!(counts[..5], [0, 1, 3, 7, 15]);
        assert_eq!(counts[10..], [1023; 3]);
        assert_eq!((passed(true), passed(true)), (1023, 0));
    }
}
