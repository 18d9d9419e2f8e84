//! virtio-pmem (virtio 1.2, section 5.19): a file of the host whose pages are mapped into the guest.
//!
//! The guest reads and writes them as memory, without the device. All that is left to it is to say
//! where they are, and to flush.

mod file;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::EventOps;
use virtio_bindings::virtio_ids::VIRTIO_ID_PMEM;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::Le32;

use super::device::{Lane, Lanes};
use super::{ActivateError, Activation, Chain, QueueError, VirtQueue, VirtioDevice};
use crate::bus::BusDevice;
use crate::log_limit::log_limited;

pub use file::{PmemError, PmemFile};

/// What start and size of the range in the guest are multiples of, in bytes: the least that Linux
/// makes memory of (a subsection), and a huge page of the host.
pub const ALIGNMENT: u64 = 2 << 20;

/// Entries of the queue.
const QUEUE_SIZE: u16 = 64;
/// VIRTIO_PMEM_REQ_TYPE_FLUSH: the only request there is (section 5.19.6).
const FLUSH: u32 = 0;
/// VIRTIO_PMEM_RESP_TYPE_OK.
const OK: u32 = 0;
/// VIRTIO_PMEM_RESP_TYPE_EIO.
const EIO: u32 = 1;

/// A pmem device: a file, and where it is in the guest.
#[derive(Debug)]
pub struct Pmem {
    file: Arc<PmemFile>,
    start: u64,
    size: u64,
    flusher: Arc<Mutex<Flusher>>,
}

/// What serves the queue. A flush may take long, and must hold up nobody else.
#[derive(Debug)]
struct Flusher {
    file: Arc<PmemFile>,
    queue: Option<VirtQueue>,
}

impl Pmem {
    /// A device for `file`, which the monitor has mapped at the guest physical address `start`, in
    /// `size` bytes; both multiples of [`ALIGNMENT`].
    pub fn new(file: PmemFile, start: u64, size: u64) -> Self {
        let file = Arc::new(file);
        Self {
            flusher: Arc::new(Mutex::new(Flusher {
                file: file.clone(),
                queue: None,
            })),
            file,
            start,
            size,
        }
    }

    /// The file.
    pub fn file(&self) -> &PmemFile {
        &self.file
    }

    /// Brings what the guest wrote to stable storage, as its own flush does: for the monitor's end.
    pub fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn set_queue(&self, queue: Option<VirtQueue>) {
        let mut flusher = self.flusher.lock().unwrap_or_else(PoisonError::into_inner);
        flusher.queue = queue;
    }
}

/// Where the guest's writes to a read-only file end: KVM hands them out as if to a device.
#[derive(Debug)]
pub struct ReadOnly {
    path: PathBuf,
}

impl ReadOnly {
    /// For the range that `file` is mapped at.
    pub fn new(file: &PmemFile) -> Self {
        Self {
            path: file.path().to_owned(),
        }
    }
}

impl BusDevice for ReadOnly {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, _data: &[u8]) {
        let path = self.path.display();
        log_limited!(
            warn,
            "pmem {path}: it is read-only, and the guest's write at {offset:#x} is lost"
        );
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_PMEM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    /// `struct virtio_pmem_config` (section 5.19.4): start and size, 64 bits each.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.start.to_le_bytes().into_iter();
        let config = config.chain(self.size.to_le_bytes());
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(config.skip(offset)) {
            *to = from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let [queue] = activation.into_queues()?;
        self.set_queue(Some(queue));
        Ok(())
    }

    fn reset(&mut self) {
        // Waits for the flush in hand; afterwards nothing is in flight.
        self.set_queue(None);
    }

    fn kick(&mut self, queue: usize, ops: &mut EventOps) {
        let mut flusher = self.flusher.lock().unwrap_or_else(PoisonError::into_inner);
        flusher.kick(queue, ops);
    }

    /// A thread of its own for flushes, which a read-only file has none of that take long.
    fn lanes(&self) -> Lanes {
        match self.file.is_read_only() {
            true => Vec::new(),
            false => vec![(0..1, self.flusher.clone())],
        }
    }
}

impl Lane for Flusher {
    fn kick(&mut self, _queue: usize, _ops: &mut EventOps) {
        if let Some(queue) = &mut self.queue {
            queue.drain(|chain| serve(chain, &self.file));
        }
    }
}

/// Answers one request; returns how many bytes were written to its chain.
fn serve(chain: &mut Chain, file: &PmemFile) -> Result<u32, QueueError> {
    let Some(kind) = chain.readable.read_obj::<Le32>() else {
        return Err(QueueError::Request("a pmem request without a type"));
    };
    if chain.writable.len() < size_of::<Le32>() {
        return Err(QueueError::Request(
            "a pmem request without room for an answer",
        ));
    }
    let answer = match kind.to_native() {
        FLUSH => match file.flush() {
            Ok(()) => OK,
            Err(error) => {
                let path = file.path().display();
                log_limited!(
                    error,
                    "pmem {path}: a flush failed: {error}; the guest sees an I/O error"
                );
                EIO
            }
        },
        _ => EIO,
    };
    let written = chain.writable.write(&answer.to_le_bytes());
    Ok(u32::try_from(written).unwrap_or(0))
}
