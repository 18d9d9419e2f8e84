//! virtio-blk (virtio 1.2, section 5.2): a disk in a raw image file or on a block device.
//!
//! A [`BlockQueue`] takes requests from the driver, checks them, and has an engine carry them out
//! straight between the disk and guest memory: one by one, or many at once through `io_uring`.

mod disk;
mod engine;
mod limits;
pub(super) mod lock;
mod queue;
mod request;
#[cfg(test)]
mod tests;
mod throttle;
mod uring;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, Events};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device::{Lane, Lanes};
use super::{ActivateError, Activation, Interrupt, VirtioDevice};
use disk::Growth;
use queue::BlockQueue;
use request::{Serial, Target};
use throttle::Throttle;

pub use disk::{Cache, Disk, DiskError, DiskOptions, SECTOR_SIZE};
pub use engine::EngineKind;
pub use lock::Holder;
pub use throttle::DiskLimits;

/// Queues of a device at most.
pub const MAX_QUEUES: usize = 64;

/// What a block device is to be like.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// The serial number that the guest reads; what is over 20 bytes of it is left out.
    pub serial: String,
    /// What carries requests out.
    pub engine: EngineKind,
    /// How many queues there are: 1 to [`MAX_QUEUES`].
    pub queues: usize,
    /// Whether each queue is served by a thread of its own. So it is if there are several.
    pub has_workers: bool,
    /// How fast the driver may go, on all queues together.
    pub limits: DiskLimits,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            serial: String::new(),
            engine: EngineKind::Auto,
            queues: 1,
            has_workers: false,
            limits: DiskLimits::default(),
        }
    }
}

/// Why a block device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The host has no `io_uring`, or forbids it.
    #[error("the host gives no io_uring for the disk {path}")]
    IoUring {
        /// The disk.
        path: std::path::PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No timer for a rate limit.
    #[error("the host gives no timer for the limits of the disk {path}")]
    Timer {
        /// The disk.
        path: std::path::PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A block device: a disk, and the queues of a driver that uses it.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    serial: Serial,
    queues: Vec<Arc<Mutex<BlockQueue>>>,
    queue_sizes: Vec<u16>,
    has_workers: bool,
    /// The way to tell an active driver of a change.
    interrupt: Option<Interrupt>,
    /// The size changed while there was no driver to be told.
    is_news: bool,
}

impl Block {
    /// A device for `disk`.
    pub fn new(disk: Disk, options: &BlockOptions) -> Result<Self, BlockError> {
        let mut serial = Serial::default();
        for (to, from) in serial.iter_mut().zip(options.serial.bytes()) {
            *to = from;
        }
        let disk = Arc::new(disk);
        let path = || disk.path().to_owned();
        let io_uring = |source| BlockError::IoUring {
            path: path(),
            source,
        };
        let timer = |source| BlockError::Timer {
            path: path(),
            source,
        };
        let all = Throttle::new(options.limits).map_err(timer)?;
        let count = options.queues.clamp(1, MAX_QUEUES);
        let queues = (0..count).map(|_| {
            let engine = engine::open(options.engine, &disk).map_err(io_uring)?;
            let throttle = all.share().map_err(timer)?;
            Ok(Arc::new(Mutex::new(BlockQueue::new(engine, throttle))))
        });
        Ok(Self {
            queues: queues.collect::<Result<_, BlockError>>()?,
            queue_sizes: vec![limits::QUEUE_SIZE; count],
            has_workers: options.has_workers || count > 1,
            disk,
            serial,
            interrupt: None,
            is_news: false,
        })
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Brings what the guest wrote to stable storage, as its own flush does: for the monitor's end.
    pub fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    /// Looks at the disk's size on the host, and tells the driver if the disk has grown. One that
    /// shrank keeps its size for the guest, and what is behind its end fails.
    pub fn resize(&mut self) {
        let path = self.disk.path().display();
        match self.disk.grow() {
            Ok(Growth::None) => {}
            Ok(Growth::Grown(sectors)) => {
                log::info!("disk {path}: it has grown to {sectors} sectors");
                self.is_news = true;
                self.announce();
            }
            Ok(Growth::Shrunk(sectors)) => log::warn!(
                "disk {path}: it shrank from {} to {sectors} sectors; for the guest it keeps its size, and what is not there cannot be read",
                self.disk.sectors()
            ),
            Err(error) => log::error!("disk {path}: its size cannot be found out: {error}"),
        }
    }

    /// Tells the driver, if there is one, of a change that it does not know.
    fn announce(&mut self) {
        if let Some(interrupt) = self.interrupt.as_ref().filter(|_| self.is_news) {
            interrupt.config_change(&self.config());
            self.is_news = false;
        }
    }

    /// The queues that the device's own thread serves.
    fn own_queues(&self) -> &[Arc<Mutex<BlockQueue>>] {
        if self.has_workers { &[] } else { &self.queues }
    }

    /// `struct virtio_blk_config` (section 5.2.4), up to the last field that a feature of ours
    /// gives a meaning.
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |offset: usize, value: &[u8]| {
            if let Some(field) = config.get_mut(offset..offset + value.len()) {
                field.copy_from_slice(value);
            }
        };
        put(0, &self.disk.sectors().to_le_bytes());
        put(8, &limits::SEGMENT_SIZE.to_le_bytes());
        put(12, &limits::SEGMENTS.to_le_bytes());
        put(20, &512u32.to_le_bytes());
        put(
            34,
            &u16::try_from(self.queues.len()).unwrap_or(1).to_le_bytes(),
        );
        if let Some(alignment) = self.disk.discard_alignment() {
            put(36, &limits::DISCARD_SECTORS.to_le_bytes());
            put(40, &limits::DISCARD_SEGMENTS.to_le_bytes());
            put(44, &alignment.to_le_bytes());
        }
        if !self.disk.is_read_only() {
            put(48, &limits::ZEROES_SECTORS.to_le_bytes());
            put(52, &limits::ZEROES_SEGMENTS.to_le_bytes());
            put(56, &[u8::from(self.disk.discard_alignment().is_some())]);
        }
        config
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH;
        if self.disk.is_read_only() {
            features |= 1 << VIRTIO_BLK_F_RO;
        } else {
            features |= 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        }
        if self.queues.len() > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        if self.disk.discard_alignment().is_some() {
            features |= 1 << VIRTIO_BLK_F_DISCARD;
        }
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let rest = usize::try_from(offset).ok().and_then(|o| config.get(o..));
        for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let knows_flush = activation.features & 1 << VIRTIO_BLK_F_FLUSH != 0;
        let target = Target {
            disk: self.disk.clone(),
            serial: self.serial,
            is_write_through: !knows_flush && self.disk.cache() == Cache::Writeback,
        };
        // A driver with fewer CPUs than there are queues leaves some of them out.
        if activation.queues.is_empty() {
            return Err(ActivateError::Queues {
                found: 0,
                wanted: self.queues.len(),
            });
        }
        self.interrupt = Some(activation.interrupt);
        self.announce();
        for (ours, queue) in self.queues.iter().zip(activation.queues) {
            lock(ours).activate(queue, target.clone());
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.interrupt = None;
        for queue in &self.queues {
            lock(queue).reset();
        }
    }

    fn register(&mut self, ops: &mut EventOps) {
        for queue in self.own_queues() {
            lock(queue).register(ops);
        }
    }

    fn kick(&mut self, queue: usize, _ops: &mut EventOps) {
        if let Some(queue) = self.own_queues().get(queue) {
            lock(queue).run();
        }
    }

    fn host_event(&mut self, _events: Events, _ops: &mut EventOps) {
        for queue in self.own_queues() {
            lock(queue).run();
        }
    }

    fn lanes(&self) -> Lanes {
        if !self.has_workers {
            return Vec::new();
        }
        let lane = |(i, queue): (usize, &Arc<Mutex<BlockQueue>>)| {
            let queue: Arc<Mutex<dyn Lane>> = queue.clone();
            (i..i + 1, queue)
        };
        self.queues.iter().enumerate().map(lane).collect()
    }
}

/// A queue whose lock a panic poisoned is still a queue; what it does next is its own affair.
fn lock(queue: &Mutex<BlockQueue>) -> MutexGuard<'_, BlockQueue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}
