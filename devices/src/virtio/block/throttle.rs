//! Rate limits of a disk: reads and writes apart.

use std::collections::VecDeque;
use std::io;

use event_manager::EventOps;

use super::engine::DEPTH;
use super::request::{Direction, Request};
use crate::virtio::rate_limit::{RateLimiter, RateLimits};

/// How fast a disk's driver may read and write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Reads.
    pub read: RateLimits,
    /// Writes, writes of zeroes, and discards, which count as no bytes. Flushes are not limited.
    pub write: RateLimits,
}

/// Holds back requests of a direction that has used up its rate; those of the other pass.
#[derive(Debug)]
pub(super) struct Throttle {
    gates: [Gate; 2],
}

/// One direction.
#[derive(Debug)]
struct Gate {
    limiter: Option<RateLimiter>,
    /// Requests that wait, in the driver's order.
    held: VecDeque<Request>,
}

impl Gate {
    fn new(limiter: io::Result<Option<RateLimiter>>) -> io::Result<Self> {
        Ok(Self {
            limiter: limiter?,
            held: VecDeque::new(),
        })
    }

    fn admits(&mut self, bytes: u64) -> bool {
        self.limiter.as_mut().is_none_or(|l| l.admit(bytes))
    }
}

impl Throttle {
    /// A throttle of its own, with nothing used up.
    pub(super) fn new(limits: DiskLimits) -> io::Result<Self> {
        let gate = |limits: RateLimits| {
            let limiter = limits.is_limited().then(|| RateLimiter::new(limits));
            Gate::new(limiter.transpose())
        };
        Ok(Self {
            gates: [gate(limits.read)?, gate(limits.write)?],
        })
    }

    /// One for another queue, which uses up the same rates.
    pub(super) fn share(&self) -> io::Result<Self> {
        let gate =
            |gate: &Gate| Gate::new(gate.limiter.as_ref().map(RateLimiter::share).transpose());
        let [read, write] = &self.gates;
        Ok(Self {
            gates: [gate(read)?, gate(write)?],
        })
    }

    /// Adds its timers to an event loop; then it is time for [`Self::release`].
    pub(super) fn watch(&self, ops: &mut EventOps) {
        for limiter in self.gates.iter().filter_map(|gate| gate.limiter.as_ref()) {
            if let Err(error) = limiter.watch(ops, 0) {
                log::error!("a disk's rate limit has no timer: {error}");
            }
        }
    }

    /// Whether it can hold another request.
    pub(super) fn has_room(&self) -> bool {
        self.gates.iter().map(|gate| gate.held.len()).sum::<usize>() < DEPTH
    }

    /// Gives a new request back if it may go now; else holds it.
    pub(super) fn admit(&mut self, request: Request) -> Option<Request> {
        let Some((direction, bytes)) = request.cost() else {
            return Some(request);
        };
        let gate = self.gate(direction);
        if gate.held.is_empty() && gate.admits(bytes) {
            return Some(request);
        }
        gate.held.push_back(request);
        None
    }

    /// A request that was held and may go now.
    pub(super) fn release(&mut self) -> Option<Request> {
        self.gates.iter_mut().find_map(|gate| {
            let (_, bytes) = gate.held.front()?.cost()?;
            if gate.admits(bytes) {
                gate.held.pop_front()
            } else {
                None
            }
        })
    }

    /// Forgets what is held.
    pub(super) fn cancel(&mut self) {
        for gate in &mut self.gates {
            gate.held.clear();
            if let Some(limiter) = &mut gate.limiter {
                limiter.cancel();
            }
        }
    }

    fn gate(&mut self, direction: Direction) -> &mut Gate {
        let [read, write] = &mut self.gates;
        match direction {
            Direction::Read => read,
            Direction::Write => write,
        }
    }
}
