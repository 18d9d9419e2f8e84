//! A virtio device, or a lane of one, as a member of an event loop.

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::Lane;

/// Brings the driver's kicks, and what the host side says, to a device or to a lane of one. The
/// same code runs on the monitor's main loop and on a worker's own `EventManager`.
pub struct Subscriber<L: ?Sized> {
    name: String,
    lane: Arc<Mutex<L>>,
    /// Queues with what they are kicked by.
    kicks: Vec<(usize, Arc<EventFd>)>,
}

impl<L: Lane + ?Sized> Subscriber<L> {
    /// Brings `kicks`, each with its queue's number, to `lane`. `name` is for messages.
    pub fn new(name: String, lane: Arc<Mutex<L>>, kicks: Vec<(usize, Arc<EventFd>)>) -> Self {
        Self { name, lane, kicks }
    }
}

impl<L: Lane + ?Sized> MutEventSubscriber for Subscriber<L> {
    fn init(&mut self, ops: &mut EventOps) {
        for (_, kick) in &self.kicks {
            // Edge-triggered: each kick is an event of its own, and nobody reads the counter, which
            // has room for more kicks than there will ever be.
            let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
            if let Err(error) = ops.add(Events::new(kick.as_ref(), set)) {
                log::error!("{}: kicks will not arrive: {error}", self.name);
            }
        }
        let mut lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        lane.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // The data of a device's own events are its own; a kick is known by its descriptor.
        let is_kicked = |(_, kick): &&(usize, Arc<EventFd>)| kick.as_raw_fd() == events.fd();
        let kicked = self.kicks.iter().find(is_kicked);
        let mut lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        match kicked {
            Some((queue, _)) => lane.kick(*queue, ops),
            None => lane.host_event(events, ops),
        }
    }
}

impl<L: ?Sized> fmt::Debug for Subscriber<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subscriber({}, {} queues)", self.name, self.kicks.len())
    }
}
