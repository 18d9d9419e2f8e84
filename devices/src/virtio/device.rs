//! What a virtio device is, apart from the transport that carries it.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events};

use super::{Interrupt, VirtQueue};
use crate::GuestMemory;

/// Why a device could not take up its work. The transport answers with DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver set up another number of queues than the device has.
    #[error("the driver enabled {found} queues of {wanted}")]
    Queues {
        /// Queues that the driver enabled.
        found: usize,
        /// Queues that the device needs.
        wanted: usize,
    },
    /// The device's back end refused.
    #[error("the back end cannot start")]
    Backend(#[source] std::io::Error),
}

/// What a driver that has set DRIVER_OK hands to the device. The device owns it until reset.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory that the queues and their buffers lie in.
    pub mem: GuestMemory,
    /// The features that both sides agreed on.
    pub features: u64,
    /// The device's queues, in the device's order, checked and ready: those before the first that
    /// the driver left out.
    pub queues: Vec<VirtQueue>,
    /// For configuration changes; the queues have a handle of their own for used buffers.
    pub interrupt: Interrupt,
}

impl Activation {
    /// The queues of a device that has `N` and needs them all.
    pub fn into_queues<const N: usize>(self) -> Result<[VirtQueue; N], ActivateError> {
        self.queues
            .try_into()
            .map_err(|queues: Vec<VirtQueue>| ActivateError::Queues {
                found: queues.len(),
                wanted: N,
            })
    }
}

/// A virtio device (virtio 1.2, section 5). It knows neither its transport nor its thread: the
/// transport asks for identity, features and configuration, and hands over the queues at
/// DRIVER_OK; the event loop tells it of kicks and of what its host side has to say.
///
/// Inactive, a device holds its configuration; active, also the queues; `reset` takes them back.
pub trait VirtioDevice: Send {
    /// The device type number (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// The largest size of each queue, in entries.
    fn queue_sizes(&self) -> &[u16];

    /// The device's own features and those of its rings. VIRTIO_F_VERSION_1 is the transport's.
    fn features(&self) -> u64;

    /// The device's configuration space from byte `offset` on. What lies outside reads as zeros,
    /// which `data` holds already. The transport asks at the start, after a reset and after each
    /// write of the driver; of any other change the device tells by [`Interrupt::config_change`].
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes to the configuration space. Most devices have nothing to write to.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// DRIVER_OK: the device may use its queues from now on. Right after it each queue is kicked
    /// once, so that the device can begin on its own thread, whatever the driver does.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver resets the device: it finishes or forgets what is in flight, touches guest memory
    /// no more, and drops the queues. Called in any state.
    fn reset(&mut self);

    /// The event loop starts: the device registers the descriptors of its host side, if any.
    fn register(&mut self, _ops: &mut EventOps) {}

    /// The driver kicked `queue`. May come at any time, also late, when the device is inactive.
    fn kick(&mut self, queue: usize, ops: &mut EventOps);

    /// Whether the driver's kicks of `queue` must be served before its vCPU goes on. Each is then an
    /// exit to user space and comes to [`Self::kick_now`], not to [`Self::kick`]; that one is still
    /// called for what the queue left itself to do ([`VirtQueue::kick_again`]).
    fn is_synchronous(&self, _queue: usize) -> bool {
        false
    }

    /// The driver kicked `queue`, which is synchronous: its vCPU waits.
    fn kick_now(&mut self, _queue: usize) {}

    /// A descriptor that `register` or `kick` added has something to say; also when the device is
    /// inactive, and then it must be silenced, since the loop would call again at once.
    fn host_event(&mut self, _events: Events, _ops: &mut EventOps) {}

    /// The parts of the device that run on threads of their own, with the queues that each serves;
    /// always the same ones. The device itself is not told of these queues' kicks.
    fn lanes(&self) -> Lanes {
        Vec::new()
    }
}

/// A device's lanes, each with the queues that it serves.
pub type Lanes = Vec<(Range<usize>, Arc<Mutex<dyn Lane>>)>;

/// A part of a device that serves some of its queues under a lock of its own. The device hands it
/// its queues at activation and takes them back at reset; the methods are those of
/// [`VirtioDevice`], for these queues only.
pub trait Lane: Send {
    /// The lane's event loop starts.
    fn register(&mut self, _ops: &mut EventOps) {}

    /// The driver kicked `queue`, counted as the device counts.
    fn kick(&mut self, queue: usize, ops: &mut EventOps);

    /// A descriptor that the lane added has something to say.
    fn host_event(&mut self, _events: Events, _ops: &mut EventOps) {}
}

impl<D: VirtioDevice + ?Sized> Lane for D {
    fn register(&mut self, ops: &mut EventOps) {
        VirtioDevice::register(self, ops);
    }

    fn kick(&mut self, queue: usize, ops: &mut EventOps) {
        VirtioDevice::kick(self, queue, ops);
    }

    fn host_event(&mut self, events: Events, ops: &mut EventOps) {
        VirtioDevice::host_event(self, events, ops);
    }
}
