//! A virtio device as a member of an event loop.

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::VirtioDevice;
use super::mmio::lock;

/// Brings the driver's kicks, and what the device's host side says, to a device. The same code
/// runs on the monitor's main loop and on a worker's own `EventManager`.
pub struct Subscriber {
    name: String,
    device: Arc<Mutex<dyn VirtioDevice>>,
    kicks: Vec<Arc<EventFd>>,
}

impl Subscriber {
    /// Brings `kicks`, one for each queue in their order, to `device`. `name` is for messages.
    pub fn new(
        name: String,
        device: Arc<Mutex<dyn VirtioDevice>>,
        kicks: Vec<Arc<EventFd>>,
    ) -> Self {
        Self {
            name,
            device,
            kicks,
        }
    }

    /// The queue that the event is a kick of; the data of a device's own events are its own.
    fn kicked_queue(&self, events: &Events) -> Option<usize> {
        let is_kicked = |kick: &Arc<EventFd>| kick.as_raw_fd() == events.fd();
        self.kicks.iter().position(is_kicked)
    }
}

impl MutEventSubscriber for Subscriber {
    fn init(&mut self, ops: &mut EventOps) {
        for kick in &self.kicks {
            if let Err(error) = ops.add(Events::new(kick.as_ref(), EventSet::IN)) {
                log::error!("{}: kicks will not arrive: {error}", self.name);
            }
        }
        lock(&self.device).register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self.kicked_queue(&events) {
            Some(queue) => {
                // Taken back before the device looks at the ring, so that a kick in between is seen.
                // A counter that is empty already means that somebody else took it: still a kick.
                let _ = self.kicks.get(queue).map(|kick| kick.read());
                lock(&self.device).kick(queue, ops);
            }
            None => lock(&self.device).host_event(events, ops),
        }
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subscriber({}, {} queues)", self.name, self.kicks.len())
    }
}
