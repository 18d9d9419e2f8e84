//! virtio-blk (virtio 1.2, section 5.2): a disk in a raw image file or on a block device.
//!
//! Requests are carried out one by one, by `preadv` and `pwritev` straight between the disk and
//! guest memory.

mod disk;
mod limits;
mod lock;
mod request;
#[cfg(test)]
mod tests;

use std::io;

use event_manager::EventOps;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::{ActivateError, Activation, VirtQueue, VirtioDevice};
use request::{Serial, Target};

pub use disk::{Cache, Disk, DiskError, DiskOptions, SECTOR_SIZE};
pub use lock::Holder;

/// A block device: a disk, and the queue of a driver that uses it.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    serial: Serial,
    active: Option<Active>,
}

/// What a driver set up.
#[derive(Debug)]
struct Active {
    queue: VirtQueue,
    is_write_through: bool,
}

impl Block {
    /// A device for `disk`. The guest reads `serial` as the disk's serial number; what is over 20
    /// bytes of it is left out.
    pub fn new(disk: Disk, serial: &str) -> Self {
        let mut padded = Serial::default();
        for (to, from) in padded.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Self {
            disk,
            serial: padded,
            active: None,
        }
    }

    /// The disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Brings what the guest wrote to stable storage, as its own flush does: for the monitor's end.
    pub fn flush(&self) -> io::Result<()> {
        self.disk.flush()
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
        &[limits::QUEUE_SIZE]
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
        let [queue] = activation.into_queues()?;
        self.active = Some(Active {
            queue,
            is_write_through: !knows_flush && self.disk.cache() == Cache::Writeback,
        });
        Ok(())
    }

    fn reset(&mut self) {
        // Nothing is in flight: a request is carried out before the lock is free.
        self.active = None;
    }

    fn kick(&mut self, _queue: usize, _ops: &mut EventOps) {
        if let Some(active) = &mut self.active {
            let target = Target {
                disk: &self.disk,
                serial: &self.serial,
                is_write_through: active.is_write_through,
            };
            active.queue.drain(|chain| target.serve(chain));
        }
    }
}
