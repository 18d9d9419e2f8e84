//! virtio-net (virtio 1.2, section 5.1) on a tap.
//!
//! Frames go between guest memory and the tap by one system call each, checksums and segmentation
//! are left to whoever can do them best, and the tap's vnet header is virtio's own.

use std::fmt;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};
use log::error;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::{ActivateError, Activation, QueueError, VirtioDevice};

mod link;
mod mac;
mod rx;
mod tap;
mod tx;

pub use link::NetCounters;
pub use mac::{MacAddress, MacError};
pub use tap::{Tap, TapError};

use link::Link;
use rx::{Rx, Shape};
use tap::HEADER;
use tx::Tx;

/// Number of the receive queue; the other one transmits.
const RX_QUEUE: usize = 0;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
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

/// The queues of an active device.
struct Active {
    rx: Rx,
    tx: Tx,
}

impl Active {
    /// Works on the receive queue; false if that has to be the end.
    fn receive(&mut self, work: impl FnOnce(&mut Rx) -> Result<(), QueueError>) -> bool {
        work(&mut self.rx)
            .inspect_err(|error| self.rx.queue().fail(error))
            .is_ok()
    }

    /// The same for the transmit queue.
    fn transmit(&mut self, work: impl FnOnce(&mut Tx) -> Result<(), QueueError>) -> bool {
        work(&mut self.tx)
            .inspect_err(|error| self.tx.queue().fail(error))
            .is_ok()
    }
}

/// A network device.
pub struct Net {
    link: Link,
    mac: MacAddress,
    mtu: Option<u16>,
    active: Option<Active>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("link", &self.link)
            .field("mac", &self.mac)
            .field("mtu", &self.mtu)
            .field("is_active", &self.active.is_some())
            .finish()
    }
}

impl Net {
    /// A device on `tap` whose driver is told `mac` and, if there is one, `mtu`: the bytes of the
    /// longest packet, 68 to 65535, which should be the tap's.
    pub fn new(tap: Tap, mac: MacAddress, mtu: Option<u16>) -> Self {
        Self {
            link: Link::new(tap),
            mac,
            mtu,
            active: None,
        }
    }

    /// What the device lost. The counters go on counting.
    pub fn counters(&self) -> Arc<NetCounters> {
        Arc::clone(self.link.counters())
    }

    /// Works on the queues if there are any. A broken ring stops the whole device until its driver
    /// resets it.
    fn work(&mut self, work: impl FnOnce(&mut Active, &mut Link) -> bool) {
        if let Some(active) = &mut self.active
            && !work(active, &mut self.link)
        {
            self.active = None;
        }
    }

    /// The configuration space up to the MTU (section 5.1.4).
    fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac.bytes());
        // There is no place where the link would be cut: a tap that is down loses frames.
        config[6..8].copy_from_slice(&[VIRTIO_NET_S_LINK_UP.to_le_bytes()[0], 0]);
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    /// The longest frame that the tap gives to a driver with these features.
    fn longest_frame(&self, features: u64) -> usize {
        if features & GUEST_SEGMENTATION != 0 {
            return MAX_FRAME;
        }
        let mtu = self.mtu.unwrap_or(DEFAULT_MTU).max(DEFAULT_MTU);
        HEADER + ETHERNET + usize::from(mtu)
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
        ];
        bits.extend(self.mtu.map(|_| VIRTIO_NET_F_MTU));
        let offloads = GUEST_OFFLOADS.iter().chain(&HOST_OFFLOADS);
        let known = offloads.filter(|(_, tap)| self.link.tap.offloads() & tap != 0);
        bits.extend(known.map(|(bit, _)| bit));
        bits.iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(config.iter().skip(start)) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let has = |bit: u32| features & (1 << bit) != 0;
        let [rx, tx] = activation.into_queues()?;
        let offloads = GUEST_OFFLOADS
            .iter()
            .filter(|(bit, _)| has(*bit))
            .fold(0, |offloads, (_, tap)| offloads | tap);
        self.link
            .tap
            .set_offloads(offloads)
            .map_err(ActivateError::Backend)?;
        let shape = Shape {
            is_mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            longest: self.longest_frame(features),
        };
        self.active = Some(Active {
            rx: Rx::new(rx, shape),
            tx: Tx::new(tx),
        });
        Ok(())
    }

    fn reset(&mut self) {
        // The next driver may know nothing of offloads. It fails where the tap is gone, and then
        // nothing more comes from it.
        let _ = self.link.tap.set_offloads(0);
        self.active = None;
    }

    fn register(&mut self, ops: &mut EventOps) {
        // Edge-triggered: a tap with frames for which there are no buffers, and one that reports an
        // error for as long as it is gone, must not keep the event loop busy.
        let set = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        if let Err(e) = ops.add(Events::new(&self.link.tap, set)) {
            error!("tap {} cannot be watched: {e}", self.link.tap.name());
        }
    }

    fn kick(&mut self, queue: usize, _ops: &mut EventOps) {
        match queue {
            RX_QUEUE => self.work(|active, link| active.receive(|rx| rx.kicked(link))),
            _ => self.work(|active, link| active.transmit(|tx| tx.run(link))),
        }
    }

    fn host_event(&mut self, _events: Events, _ops: &mut EventOps) {
        self.work(|active, link| active.transmit(|tx| tx.writable(link)));
        self.work(|active, link| active.receive(|rx| rx.run(link)));
    }
}

#[cfg(test)]
mod tests;
