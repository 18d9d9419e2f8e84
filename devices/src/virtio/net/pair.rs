//! A receive and a transmit queue, with their way to the host.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use log::error;

use super::backend::Backend;
use super::link::{Limiters, Link, Port};
use super::rx::{Rx, Shape};
use super::tx::Tx;
use crate::virtio::rate_limit::RateLimiter;
use crate::virtio::{Interrupt, Lane, VirtQueue};

/// The queues of an active pair.
struct Active {
    rx: Rx,
    tx: Tx,
}

/// A queue pair.
pub(super) struct Pair {
    pub(super) link: Link,
    active: Option<Active>,
    /// Whether the event loop tells when the host takes frames again.
    waits: bool,
}

impl Pair {
    pub(super) fn new(backend: Backend, limiters: Limiters, port: Arc<Port>) -> Self {
        Self {
            link: Link::new(backend, limiters, port),
            active: None,
            waits: false,
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.active.is_some()
    }

    /// Begins to work on the queues. `offloads` is what the driver takes, a set of TUN_F_*.
    pub(super) fn activate(
        &mut self,
        [rx, tx]: [VirtQueue; 2],
        shape: Shape,
        offloads: u32,
        interrupt: Interrupt,
    ) -> io::Result<()> {
        // What is gone takes no offloads, and the driver learns from the link's state.
        if self.link.is_up() {
            self.link.backend.set_offloads(offloads)?;
        }
        self.link.interrupt = Some(interrupt);
        self.active = Some(Active {
            rx: Rx::new(rx, shape),
            tx: Tx::new(tx),
        });
        Ok(())
    }

    /// Gives the queues back.
    pub(super) fn reset(&mut self) {
        // The next driver may know nothing of offloads. It fails where the tap is gone, and then
        // nothing more comes from it.
        let _ = self.link.backend.set_offloads(0);
        self.link.interrupt = None;
        self.stop();
    }

    fn stop(&mut self) {
        self.active = None;
        self.link.backend.abandon();
        self.link.limiters.cancel();
    }

    /// Edge-triggered: frames for which there are no buffers, and a tap that reports an error for
    /// as long as it is gone, must not keep the event loop busy.
    fn interest(&self) -> Events {
        let mut set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if self.waits {
            set |= EventSet::OUT;
        }
        Events::new(&self.link.backend, set)
    }

    fn kick_rx(&mut self) {
        self.work(|active, link| {
            let result = active.rx.kicked(link);
            active.rx.stop_on(result)
        });
    }

    fn kick_tx(&mut self, ops: &mut EventOps) {
        self.work(|active, link| {
            let result = active.tx.run(link);
            active.tx.stop_on(result)
        });
        self.wait_if_blocked(ops);
    }

    fn receive(&mut self) {
        self.work(|active, link| {
            let result = active.rx.run(link);
            active.rx.stop_on(result)
        });
    }

    fn backend_event(&mut self, set: EventSet, ops: &mut EventOps) {
        if set.contains(EventSet::OUT) {
            self.work(|active, link| {
                let result = active.tx.writable(link);
                active.tx.stop_on(result)
            });
            self.wait_if_blocked(ops);
        }
        self.receive();
        // What came before the end was received, as far as there were buffers.
        if set.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            self.link.gone(None);
        }
    }

    /// Works on the queues if there are any. A broken ring stops them until the driver resets the
    /// device.
    fn work(&mut self, work: impl FnOnce(&mut Active, &mut Link) -> bool) {
        if let Some(active) = &mut self.active
            && !work(active, &mut self.link)
        {
            self.stop();
        }
    }

    /// Only while a frame waits is it news that the host has room.
    fn wait_if_blocked(&mut self, ops: &mut EventOps) {
        let waits = self
            .active
            .as_ref()
            .is_some_and(|active| active.tx.is_blocked());
        if std::mem::replace(&mut self.waits, waits) != waits
            && let Err(e) = ops.modify(self.interest())
        {
            error!("{} cannot be watched: {e}", self.link.backend);
        }
    }
}

impl Lane for Pair {
    fn register(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(self.interest()) {
            error!("{} cannot be watched: {e}", self.link.backend);
        }
        self.link.limiters.watch(ops);
    }

    fn kick(&mut self, queue: usize, ops: &mut EventOps) {
        match queue.is_multiple_of(2) {
            true => self.kick_rx(),
            false => self.kick_tx(ops),
        }
    }

    fn host_event(&mut self, events: Events, ops: &mut EventOps) {
        let is = |limiter: &Option<_>| {
            limiter
                .as_ref()
                .is_some_and(|l: &RateLimiter| l.as_raw_fd() == events.fd())
        };
        if is(&self.link.limiters.rx) {
            self.receive();
        } else if is(&self.link.limiters.tx) {
            self.kick_tx(ops);
        } else {
            self.backend_event(events.event_set(), ops);
        }
    }
}
