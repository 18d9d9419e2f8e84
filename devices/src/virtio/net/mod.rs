//! virtio-net (virtio 1.2, section 5.1) on a tap, or on a stream to another process.
//!
//! Frames go between guest memory and the host by one system call each. A tap's vnet header is
//! virtio's own: checksums and segmentation are left to whoever can do them best.

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, Events};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::{ActivateError, Activation, Lane, Lanes, VirtQueue, VirtioDevice};

mod backend;
mod control;
mod link;
mod mac;
mod pair;
mod rx;
mod stream;
mod tap;
mod tx;

pub use backend::Backend;
pub use link::{NetCounters, NetLimits};
pub use mac::{MacAddress, MacError};
pub use stream::Stream;
pub use tap::{Tap, TapError, bring_up};

use link::{Limiters, Port};
use pair::Pair;
use rx::Shape;
use tap::HEADER;

/// Entries of each receive and transmit queue.
const QUEUE_SIZE: u16 = 256;
/// Entries of the control queue.
const CONTROL_SIZE: u16 = 64;
/// Frames that one event moves at most, so that the other queue and other devices get their turn.
const BUDGET: usize = 64;
/// Bytes of an Ethernet header with a VLAN tag.
const ETHERNET: usize = 18;
/// Bytes of the longest frame with its header: 64 KiB of TCP or UDP to be cut up by its receiver.
const MAX_FRAME: usize = HEADER + ETHERNET + 65535;
/// Bytes of the longest packet where nothing else is said.
const DEFAULT_MTU: u16 = 1500;

/// The offloads of frames to the guest, and what the tap calls them.
const GUEST_OFFLOADS: [(u32, u32); 6] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_USO4, libc::TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, libc::TUN_F_USO6),
];
/// The offloads of frames from the guest, and what a tap knows that takes them.
const HOST_OFFLOADS: [(u32, u32); 5] = [
    (VIRTIO_NET_F_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_HOST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_HOST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_HOST_ECN, libc::TUN_F_TSO_ECN),
    (VIRTIO_NET_F_HOST_USO, libc::TUN_F_USO4),
];
/// Each of these lets the tap hand over more than the MTU in one frame.
const GUEST_SEGMENTATION: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

/// How a network device looks to its driver.
#[derive(Clone, Copy, Debug)]
pub struct NetOptions {
    /// The guest's address.
    pub mac: MacAddress,
    /// Bytes of the longest packet that the driver is told of, 68 to 65535; should be the tap's.
    pub mtu: Option<u16>,
    /// How fast frames may go.
    pub limits: NetLimits,
}

/// A network device.
pub struct Net {
    port: Arc<Port>,
    pairs: Vec<Arc<Mutex<Pair>>>,
    /// What all of the back ends know of offloads.
    offloads: u32,
    queue_sizes: Vec<u16>,
    control: Option<VirtQueue>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("port", &self.port)
            .field("is_active", &lock(&self.pairs[0]).is_active())
            .finish_non_exhaustive()
    }
}

impl Net {
    /// A device with a queue pair for each of `backends`, which are queues of the same tap if there
    /// are several; then each pair has a lane of its own. Fails without a back end, or where the
    /// host gives no timer for the limits.
    pub fn new(backends: Vec<Backend>, options: &NetOptions) -> io::Result<Self> {
        let count = u16::try_from(backends.len()).map_err(io::Error::other)?;
        let first = backends.first().ok_or(ErrorKind::InvalidInput)?;
        let offloads = first.offloads();
        let port = Arc::new(Port {
            mac: options.mac,
            mtu: options.mtu,
            pairs: count,
            is_up: AtomicBool::new(true),
            counters: Arc::default(),
        });
        let limiters = Limiters::new(&options.limits)?;
        let pair = |backend| {
            let pair = Pair::new(backend, limiters.share()?, port.clone());
            Ok(Arc::new(Mutex::new(pair)))
        };
        let pairs: Vec<_> = backends.into_iter().map(pair).collect::<io::Result<_>>()?;
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * pairs.len()];
        if count > 1 {
            queue_sizes.push(CONTROL_SIZE);
        }
        Ok(Self {
            port,
            pairs,
            offloads,
            queue_sizes,
            control: None,
        })
    }

    /// What the device lost. The counters go on counting.
    pub fn counters(&self) -> Arc<NetCounters> {
        self.port.counters.clone()
    }

    fn has_lanes(&self) -> bool {
        self.pairs.len() > 1
    }

    /// The longest frame that the host gives to a driver with these features.
    fn longest_frame(&self, features: u64) -> usize {
        if features & GUEST_SEGMENTATION != 0 {
            return MAX_FRAME;
        }
        let mtu = self.port.mtu.unwrap_or(DEFAULT_MTU).max(DEFAULT_MTU);
        HEADER + ETHERNET + usize::from(mtu)
    }

    fn serve_control(&mut self) {
        let pairs = &self.pairs;
        if let Some(control) = &mut self.control {
            control.drain(|chain| control::serve(chain, |count| use_pairs(pairs, count)));
        }
    }
}

/// The driver uses the first `count` pairs from now on; false if it has not set them up.
fn use_pairs(pairs: &[Arc<Mutex<Pair>>], count: u16) -> bool {
    let count = usize::from(count);
    let is_there = |pair: &Arc<Mutex<Pair>>| lock(pair).is_active();
    if count == 0
        || !pairs
            .get(..count)
            .is_some_and(|used| used.iter().all(is_there))
    {
        return false;
    }
    attach(pairs, count).is_ok()
}

/// Lets the host's frames come to the first `count` pairs, and to no other.
fn attach(pairs: &[Arc<Mutex<Pair>>], count: usize) -> io::Result<()> {
    let mut pairs = pairs.iter().enumerate();
    pairs.try_for_each(|(i, pair)| lock(pair).link.backend.set_attached(i < count))
}

/// A pair whose lock a panic poisoned is still a pair.
fn lock(pair: &Mutex<Pair>) -> MutexGuard<'_, Pair> {
    pair.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
        ];
        bits.extend(self.port.mtu.map(|_| VIRTIO_NET_F_MTU));
        if self.has_lanes() {
            bits.extend([VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ]);
        }
        let offloads = GUEST_OFFLOADS.iter().chain(&HOST_OFFLOADS);
        let known = offloads.filter(|(_, tap)| self.offloads & tap != 0);
        bits.extend(known.map(|(bit, _)| bit));
        bits.iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.port.config();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(config.iter().skip(start)) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let has = |bit: u32| features & (1 << bit) != 0;
        let mut queues = activation.queues;
        if queues.len() < 2 {
            return Err(ActivateError::Queues {
                found: queues.len(),
                wanted: 2,
            });
        }
        let offloads = GUEST_OFFLOADS
            .iter()
            .filter(|(bit, _)| has(*bit))
            .fold(0, |offloads, (_, tap)| offloads | tap);
        let shape = Shape {
            is_mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            longest: self.longest_frame(features),
        };
        // Behind all pairs. A driver that knows no more than one pair has it as its third queue,
        // and nothing to say on it: we know one command, and that is about pairs.
        self.control = (queues.len() > 2 * self.pairs.len())
            .then(|| queues.pop())
            .flatten();
        let mut queues = queues.into_iter();
        for pair in &self.pairs {
            let (Some(rx), Some(tx)) = (queues.next(), queues.next()) else {
                break;
            };
            lock(pair)
                .activate([rx, tx], shape, offloads, activation.interrupt.clone())
                .map_err(ActivateError::Backend)?;
        }
        // Until the driver says otherwise, or for good, one pair is in use. It fails where the tap is
        // gone, and the driver learns that from the link's state.
        let _ = attach(&self.pairs, 1);
        Ok(())
    }

    fn reset(&mut self) {
        self.control = None;
        self.pairs.iter().for_each(|pair| lock(pair).reset());
    }

    fn register(&mut self, ops: &mut EventOps) {
        if !self.has_lanes() {
            lock(&self.pairs[0]).register(ops);
        }
    }

    fn kick(&mut self, queue: usize, ops: &mut EventOps) {
        match self.has_lanes() {
            true => self.serve_control(),
            false => lock(&self.pairs[0]).kick(queue, ops),
        }
    }

    fn host_event(&mut self, events: Events, ops: &mut EventOps) {
        lock(&self.pairs[0]).host_event(events, ops);
    }

    fn lanes(&self) -> Lanes {
        if !self.has_lanes() {
            return Lanes::new();
        }
        let lane = |(i, pair): (usize, &Arc<Mutex<Pair>>)| {
            let lane: Arc<Mutex<dyn Lane>> = pair.clone();
            (2 * i..2 * i + 2, lane)
        };
        self.pairs.iter().enumerate().map(lane).collect()
    }
}

#[cfg(test)]
mod tests;
