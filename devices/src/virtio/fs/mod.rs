//! virtio-fs (virtio 1.2, section 5.11): a directory of the host, served by another process.
//!
//! The queues go to that process over vhost-user, with the guest's kicks and the interrupt line, so
//! that nothing of a request passes through here. What is here: the configuration space, the start
//! and the reset, and what happens when the process is gone: the device takes its queues back
//! and answers every request, those that were under way too, with an I/O error.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Child;

use event_manager::{EventOps, EventSet, Events};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::vhost_user::{Backend, VhostUserError};
use super::{ActivateError, Activation, Chain, Interrupt, VirtQueue, VirtioDevice};
use crate::GuestMemory;

/// Bytes of a tag at most.
pub const MAX_TAG: usize = 36;
/// Entries of a queue: enough for a request of FUSE's largest size, 256 pages.
const QUEUE_SIZE: u16 = 512;
/// For requests that must not wait behind others, then for the others.
const QUEUES: [u16; 2] = [QUEUE_SIZE; 2];
/// What we can agree to of what the process offers.
const FEATURES: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// `struct fuse_in_header` is this long; its `unique` lies at byte 8.
const IN_HEADER: usize = 40;
/// `struct fuse_out_header`: length and error, 32 bits each, and `unique`.
const OUT_HEADER: u32 = 16;

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// No event file descriptor to be had.
    #[error("fs {tag}: the host gives no event descriptor")]
    EventFd {
        /// The device's tag.
        tag: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process does not speak vhost-user as it should.
    #[error("fs {tag}: the file-system process does not answer as one")]
    Backend {
        /// The device's tag.
        tag: String,
        /// What is wrong.
        #[source]
        source: VhostUserError,
    },
}

/// What a driver that has started the device gave it.
struct Active {
    mem: GuestMemory,
    features: u64,
    queues: [VirtQueue; 2],
    interrupt: Interrupt,
    /// The other process has the queues.
    is_handed_out: bool,
}

/// A virtio-fs device.
pub struct Fs {
    tag: String,
    config: [u8; MAX_TAG + 4],
    features: u64,
    /// The process that does the work, as long as it does.
    backend: Option<Backend>,
    /// The same process, if it is our own child.
    helper: Option<Child>,
    /// The driver has started the device: the event loop hands the queues out.
    wake: EventFd,
    /// The event loop looks for kicks; otherwise they are the other process's alone.
    is_watching: bool,
    active: Option<Active>,
}

impl Fs {
    /// A device with this tag, of at most [`MAX_TAG`] bytes, served by the process at the other end
    /// of `socket`. If that is our own, `helper`, it is killed when it does not answer.
    pub fn new(tag: &str, socket: UnixStream, helper: Option<Child>) -> Result<Self, FsError> {
        let wake = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|source| {
            let tag = tag.to_owned();
            FsError::EventFd { tag, source }
        })?;
        let mut config = [0; MAX_TAG + 4];
        for (to, from) in config.iter_mut().take(MAX_TAG).zip(tag.bytes()) {
            *to = from;
        }
        // One queue for requests.
        config[MAX_TAG] = 1;
        let mut fs = Self {
            tag: tag.to_owned(),
            config,
            features: 0,
            backend: None,
            helper,
            wake,
            is_watching: true,
            active: None,
        };
        let backend = Backend::new(socket).map_err(|source| FsError::Backend {
            tag: tag.to_owned(),
            source,
        })?;
        fs.features = backend.features() & FEATURES;
        fs.backend = Some(backend);
        Ok(fs)
    }

    /// The driver has started the device: from here on the kicks are the other process's.
    fn hand_out(&mut self, ops: &mut EventOps) {
        let (Some(active), Some(backend)) = (&mut self.active, &self.backend) else {
            return self.serve_all();
        };
        if active.is_handed_out {
            return;
        }
        if std::mem::take(&mut self.is_watching) {
            for queue in &active.queues {
                if let Err(error) = ops.remove(kicks(queue)) {
                    log::error!("fs {}: kicks still arrive here: {error}", self.tag);
                }
            }
        }
        // Whatever comes of it, the process may have begun.
        active.is_handed_out = true;
        let (mem, features) = (&active.mem, active.features);
        match backend.start(mem, features, &active.queues, &active.interrupt) {
            // The driver's own may have been taken by the event loop before.
            Ok(()) => active.queues.iter().for_each(VirtQueue::kick_again),
            Err(error) => self.lose(ops, Some(&error)),
        }
    }

    /// The other process is gone, or no good any more: the device answers for it from now on.
    fn lose(&mut self, ops: &mut EventOps, error: Option<&VhostUserError>) {
        let Some(backend) = self.backend.take() else {
            return;
        };
        let why = error.map_or_else(|| "it hung up".to_owned(), causes);
        log::error!(
            "fs {}: the file-system process is gone ({why}); the guest gets I/O errors",
            self.tag
        );
        if let Err(error) = ops.remove(Events::empty(backend.socket())) {
            log::error!("fs {}: the socket stays: {error}", self.tag);
        }
        self.kill_helper();
        if let Some(active) = &mut self.active {
            if !std::mem::replace(&mut self.is_watching, true) {
                for queue in &active.queues {
                    if let Err(error) = ops.add(kicks(queue)) {
                        log::error!("fs {}: kicks will not arrive: {error}", self.tag);
                    }
                }
            }
            if active.is_handed_out {
                for queue in &mut active.queues {
                    queue.take_over();
                }
            }
        }
        self.serve_all();
    }

    /// Ends our own process: it must not touch guest memory any more.
    fn kill_helper(&mut self) {
        if let Some(child) = &mut self.helper {
            // Fails only if it has ended already.
            let _ = child.kill();
            let _ = child.try_wait();
        }
    }

    fn serve_all(&mut self) {
        for queue in self.active.iter_mut().flat_map(|a| &mut a.queues) {
            queue.drain(|chain| Ok(refuse(chain)));
        }
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(self.config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (mem, features) = (activation.mem.clone(), activation.features);
        let interrupt = activation.interrupt.clone();
        self.active = Some(Active {
            mem,
            features,
            queues: activation.into_queues()?,
            interrupt,
            is_handed_out: false,
        });
        // The event loop does the rest, since only it can leave the kicks to the other process.
        self.wake.write(1).map_err(|error| {
            self.active = None;
            ActivateError::Backend(error)
        })
    }

    fn reset(&mut self) {
        let Some(active) = self.active.take() else {
            return;
        };
        let Some(backend) = self.backend.as_ref().filter(|_| active.is_handed_out) else {
            return;
        };
        let count = u32::try_from(active.queues.len()).unwrap_or_default();
        if let Err(error) = backend.stop(count) {
            log::error!(
                "fs {}: the file-system process does not give the queues back: {}",
                self.tag,
                causes(&error)
            );
            // The event loop sees that and does the rest.
            backend.hang_up();
            self.kill_helper();
        }
    }

    fn register(&mut self, ops: &mut EventOps) {
        let mut add = |events| {
            if let Err(error) = ops.add(events) {
                log::error!("fs {}: events will not arrive: {error}", self.tag);
            }
        };
        add(Events::new(&self.wake, EventSet::IN));
        if let Some(backend) = &self.backend {
            add(Events::new(backend.socket(), EventSet::READ_HANG_UP));
        }
    }

    fn kick(&mut self, queue: usize, _ops: &mut EventOps) {
        // With a process that serves the queues, a kick that strays here is repeated at the start.
        let active = self.active.as_mut().filter(|_| self.backend.is_none());
        if let Some(queue) = active.and_then(|active| active.queues.get_mut(queue)) {
            queue.drain(|chain| Ok(refuse(chain)));
        }
    }

    fn host_event(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.wake.as_raw_fd() {
            let _ = self.wake.read();
            self.hand_out(ops);
        } else {
            self.lose(ops, None);
        }
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.kill_helper();
    }
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs")
            .field("tag", &self.tag)
            .field("backend", &self.backend)
            .field("is_active", &self.active.is_some())
            .finish_non_exhaustive()
    }
}

/// What tells the event loop of a queue's kicks.
fn kicks(queue: &VirtQueue) -> Events {
    Events::new(queue.kick(), EventSet::IN | EventSet::EDGE_TRIGGERED)
}

/// Answers a FUSE request with EIO, if it wants an answer. Returns how many bytes that took.
fn refuse(chain: &mut Chain) -> u32 {
    let mut header = [0; IN_HEADER];
    let is_request = chain.readable.read(&mut header) == IN_HEADER;
    if !is_request || chain.writable.len() < OUT_HEADER as usize {
        return 0;
    }
    let mut answer = [0; OUT_HEADER as usize];
    let (len, rest) = answer.split_at_mut(4);
    let (error, unique) = rest.split_at_mut(4);
    len.copy_from_slice(&OUT_HEADER.to_le_bytes());
    error.copy_from_slice(&(-libc::EIO).to_le_bytes());
    unique.copy_from_slice(&header[8..16]);
    chain.writable.write(&answer);
    OUT_HEADER
}

/// An error and what caused it, in one line.
fn causes(error: &VhostUserError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
