//! virtio-vsock (virtio 1.2, section 5.10) on Unix sockets of the host, by Firecracker's convention:
//! who connects to the device's socket and says `CONNECT port` is connected to the guest's port, and
//! the guest's connections to port N of the host arrive at the socket whose path ends in `_N`.
//!
//! Data goes between guest memory and the Unix socket by one system call a packet. Nothing waits
//! for a program that is slow: what it does not take is held, within the credit that the guest was
//! given, and what it sends stays in its socket until the guest has room.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::{ActivateError, Activation, QueueError, VirtQueue, VirtioDevice};
use crate::listener::Listener;
use crate::log_limit::log_limited;

mod client;
mod connection;
mod credit;
mod hub;
mod look;
mod packet;
mod rx;
mod timer;
mod tx;

use hub::Hub;
use look::Look;
use rx::Rx;
use timer::Timer;
use tx::Tx;

/// Stream sockets (VIRTIO_VSOCK_F_STREAM).
const F_STREAM: u32 = 0;
/// Number of the transmit queue; before it is the receive queue, behind it the one for events.
const TX_QUEUE: usize = 1;
/// Entries of each queue.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// Packets, or clients, that one event deals with at most, so that others get their turn.
const BUDGET: usize = 64;
/// How often it is looked who has waited too long; nothing there needs to be more exact.
const TICK: Duration = Duration::from_secs(1);
/// How long the guest may wait at most to be told that its packets were taken.
const LATE: Duration = Duration::from_millis(10);
/// The least address that a guest can have; those below are the host's and everybody's.
const FIRST_CID: u64 = 3;
/// Bytes of the longest path of a Unix socket.
const MAX_PATH: usize = 107;
/// Bytes that a port makes a path longer at most.
const MAX_SUFFIX: usize = "_4294967295".len();

/// Why there can be no vsock device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// An address that no guest can have.
    #[error("vsock: the address (cid) {0} is outside 3 to 4294967294")]
    Cid(u64),
    /// No room for a port behind the path.
    #[error(
        "vsock: the path {} has {} bytes; with a port behind it a socket's path has room for {}",
        path.display(), path.as_os_str().len(), MAX_PATH - MAX_SUFFIX
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be listened on.
    #[error("vsock: cannot listen at {}; remove what is there or name another path", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No timer.
    #[error("vsock: the host gives no timer")]
    Timer(#[source] io::Error),
}

/// The queues of an active device.
#[derive(Debug)]
struct Active {
    rx: Rx,
    tx: Tx,
    look: Look,
    /// Has nothing to say before there are snapshots.
    _event: VirtQueue,
}

impl Active {
    fn receive(
        &mut self,
        work: impl FnOnce(&mut Rx) -> Result<(), QueueError>,
    ) -> Result<(), Broken> {
        work(&mut self.rx).map_err(|error| {
            self.rx.queue().fail(&error);
            Broken
        })
    }

    fn transmit(
        &mut self,
        work: impl FnOnce(&mut Tx) -> Result<(), QueueError>,
    ) -> Result<(), Broken> {
        work(&mut self.tx).map_err(|error| {
            self.tx.queue().fail(&error);
            Broken
        })
    }

    /// Gives the guest what there is for it, and tells it so; if that is a little, its answer may come
    /// at once (see [`Look`]).
    fn pump(&mut self, hub: &mut Hub, late: &mut Timer, ops: &mut EventOps) -> Result<(), Broken> {
        self.give(hub, ops)?;
        let is_look_due = self.rx.take_asked() && self.look.is_due();
        if is_look_due {
            self.tx.queue().disable_kicks();
        }
        self.tell(late);
        if is_look_due {
            self.look.wait(self.tx.queue());
            self.transmit(|tx| tx.run(hub, ops))?;
            self.give(hub, ops)?;
            self.tell(late);
        }
        Ok(())
    }

    fn give(&mut self, hub: &mut Hub, ops: &mut EventOps) -> Result<(), Broken> {
        self.receive(|rx| rx.run(hub, ops))?;
        if self.tx.is_blocked && !hub.is_full() {
            self.transmit(|tx| tx.run(hub, ops))?;
            self.receive(|rx| rx.run(hub, ops))?;
        }
        Ok(())
    }

    /// Tells the guest what it was given. That its own packets were taken it is told at the same
    /// time, or, if there is nothing for it, when there are many or `late` ticks: an interrupt for
    /// each would cost it more than to hold on to a few packets.
    fn tell(&mut self, late: &mut Timer) {
        let (rx, tx) = (self.rx.queue(), self.tx.queue());
        if rx.unsignalled() > 0 || tx.unsignalled() >= tx.size().div_ceil(8) {
            rx.signal_with(tx);
        } else if tx.unsignalled() > 0 {
            late.start();
        }
    }
}

/// A ring is broken; it was said, and the device stops.
struct Broken;

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    listener: Listener,
    /// Whether the event loop watches the listener.
    is_listening: bool,
    hub: Hub,
    /// Ticks when the guest has to be told what became of its packets.
    late: Timer,
    active: Option<Active>,
}

impl Vsock {
    /// A device of a guest whose address is `cid` (3 or more), on the Unix socket at `path`, which is
    /// made, for this user only, and goes with the device. A socket there that nobody listens on any
    /// more is replaced.
    pub fn new(cid: u64, path: &Path) -> Result<Self, VsockError> {
        check(cid, path)?;
        let listener = Listener::listen(path).map_err(|source| VsockError::Listen {
            path: path.to_owned(),
            source,
        })?;
        let timer = |time| Timer::new(time).map_err(VsockError::Timer);
        Ok(Self {
            hub: Hub::new(cid, listener.path().to_owned(), timer(TICK)?),
            late: timer(LATE)?,
            listener,
            is_listening: false,
            active: None,
        })
    }

    /// Has the event loop say when somebody connects. Who connects before waits.
    fn listen(&mut self, ops: &mut EventOps) {
        if !self.is_listening {
            let result = ops.add(Events::new(&self.listener.as_fd(), EventSet::IN));
            self.is_listening = result.is_ok();
            if let Err(error) = result {
                log::error!("vsock: nobody can connect to the guest: {error}");
            }
        }
    }

    fn stop_listening(&mut self, ops: &mut EventOps) {
        if self.is_listening {
            self.is_listening = ops.remove(Events::empty(&self.listener.as_fd())).is_err();
        }
    }

    /// Lets clients in.
    fn accept(&mut self, ops: &mut EventOps) {
        for _ in 0..BUDGET {
            match self.listener.accept() {
                Ok(client) => self.hub.welcome(client, ops),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Without descriptors, for one: the next tick tries again.
                    log_limited!(warn, "vsock: a client cannot be let in now: {error}");
                    self.stop_listening(ops);
                    self.hub.timer().start();
                    return;
                }
            }
        }
    }

    /// Works on the queues. A broken ring stops the device until its driver resets it.
    fn work(
        &mut self,
        ops: &mut EventOps,
        work: impl FnOnce(&mut Active, &mut Hub, &mut EventOps) -> Result<(), Broken>,
    ) {
        if let Some(active) = &mut self.active {
            let result = work(active, &mut self.hub, ops)
                .and_then(|()| active.pump(&mut self.hub, &mut self.late, ops));
            if result.is_err() {
                self.active = None;
                self.hub.clear();
                self.hub.bury(ops);
            }
        }
    }
}

/// Whether a device can have this address and path, as far as can be said without the host.
pub fn check(cid: u64, path: &Path) -> Result<(), VsockError> {
    if !(FIRST_CID..u64::from(u32::MAX)).contains(&cid) {
        return Err(VsockError::Cid(cid));
    }
    if path.as_os_str().len() > MAX_PATH - MAX_SUFFIX {
        return Err(VsockError::PathTooLong {
            path: path.to_owned(),
        });
    }
    Ok(())
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << F_STREAM | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.hub.cid().to_le_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(config.iter().skip(start)) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let [rx, tx, event] = activation.into_queues()?;
        self.active = Some(Active {
            rx: Rx::new(rx),
            tx: Tx::new(tx),
            look: Look::default(),
            _event: event,
        });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.hub.clear();
    }

    fn register(&mut self, ops: &mut EventOps) {
        for timer in [self.hub.timer(), &mut self.late] {
            if let Err(error) = ops.add(Events::new(timer, EventSet::IN)) {
                log::error!("vsock: a timer will not be heard: {error}");
            }
        }
    }

    fn kick(&mut self, queue: usize, ops: &mut EventOps) {
        self.hub.bury(ops);
        if self.active.is_some() {
            self.listen(ops);
        }
        self.work(ops, |active, hub, ops| match queue {
            TX_QUEUE => active.transmit(|tx| tx.run(hub, ops)),
            // The pump looks at the receive queue in any case.
            _ => Ok(()),
        });
    }

    fn host_event(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        self.hub.bury(ops);
        if fd == self.listener.as_fd().as_raw_fd() {
            match self.active {
                Some(_) => self.accept(ops),
                None => self.stop_listening(ops),
            }
        } else if fd == self.hub.timer().as_raw_fd() {
            self.hub.timer().ticked();
            self.hub.tick(ops);
            if self.active.is_some() {
                self.listen(ops);
            }
        } else if fd == self.late.as_raw_fd() {
            self.late.ticked();
            return self.work(ops, |active, _, _| {
                active.tx.queue().signal();
                Ok(())
            });
        } else {
            self.hub.host_event(events, ops);
        }
        self.work(ops, |_, _, _| Ok(()));
    }
}

#[cfg(test)]
mod tests;
