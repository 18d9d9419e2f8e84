//! Who carries requests out: at once on the calling thread, or by the kernel while it goes on.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;

use super::disk::Disk;
use super::request::Header;
use super::uring::Ring;
use crate::virtio::{Buffers, Chain};

/// Requests that one queue has in hand at most.
pub(super) const DEPTH: usize = 128;

/// Which engine serves a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// `io_uring` where the host has it and the disk can make one wait; else one request after the
    /// other.
    #[default]
    Auto,
    /// One request after the other, on the device's thread, which waits for the disk.
    Sync,
    /// What would make the device's thread wait goes through `io_uring`.
    IoUring,
}

/// What a [`Job`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// From the disk into the chain's writable buffers.
    Read,
    /// From the chain's readable buffers to the disk; to stable storage if `durable`.
    Write { durable: bool },
    /// What was written before reaches stable storage.
    Flush,
}

/// The part of a request that the disk may make wait: checked, and ready to go.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) chain: Chain,
    /// The request that it belongs to; nothing to an engine.
    pub(super) header: Header,
    pub(super) operation: Operation,
    /// Where on the disk what is left begins, in bytes.
    pub(super) offset: u64,
    /// Bytes left to read or to write.
    pub(super) left: usize,
}

/// A job that is done, and what came of it.
pub(super) type Outcome = (Job, io::Result<()>);

/// Carries out jobs. Between [`Self::start`] and the job's return the kernel may use the buffers of
/// its chain.
pub(super) trait Engine: Debug + Send {
    /// Carries a job out if that needs no waiting, or if waiting is all that this engine can do, and
    /// returns it; else keeps it. Only while there is room.
    fn start(&mut self, job: Job) -> Option<Outcome>;

    /// Whether another job may be started.
    fn has_room(&self) -> bool {
        true
    }

    /// A job that was kept and is done. Call it until there is none after jobs were started, and
    /// when [`Self::fd`] is readable.
    fn finish(&mut self) -> Option<Outcome> {
        None
    }

    /// Whether jobs wait that the kernel did not take: call [`Self::finish`] again soon.
    fn is_behind(&mut self) -> bool {
        false
    }

    /// Cancels all jobs that were kept, and waits for those that cannot be cancelled. None is
    /// returned afterwards, and none of their buffers used.
    fn cancel(&mut self) {}

    /// Readable while a job is done that was kept.
    fn fd(&self) -> Option<RawFd> {
        None
    }
}

/// The engine of `kind` for a disk; one for each of its queues. Fails only for
/// [`EngineKind::IoUring`], on a host that has none or does not allow it.
pub(super) fn open(kind: EngineKind, disk: &Arc<Disk>) -> io::Result<Box<dyn Engine>> {
    let one_by_one = Box::new(Sync(disk.clone()));
    match kind {
        EngineKind::Sync => Ok(one_by_one),
        EngineKind::IoUring => Ok(Box::new(Ring::new(disk.clone())?)),
        // Memory makes nobody wait, and its files have no way of asking for that.
        EngineKind::Auto if disk.is_in_memory() => Ok(one_by_one),
        EngineKind::Auto => match Ring::new(disk.clone()) {
            Ok(ring) => Ok(Box::new(ring)),
            Err(error) => {
                log::debug!(
                    "disk {}: no io_uring on this host: {error}; requests are served one by one",
                    disk.path().display()
                );
                Ok(one_by_one)
            }
        },
    }
}

/// Waits for the disk, request by request.
#[derive(Debug)]
struct Sync(Arc<Disk>);

impl Engine for Sync {
    fn start(&mut self, mut job: Job) -> Option<Outcome> {
        let result = job.run(&self.0);
        Some((job, result))
    }
}

impl Job {
    /// Carries out what is left, however long that takes.
    pub(super) fn run(&mut self, disk: &Disk) -> io::Result<()> {
        let (offset, left) = (self.offset, self.left);
        match self.operation {
            Operation::Read => self.buffers().read_exact_at(disk.as_fd(), offset, left),
            Operation::Write { durable } => {
                self.buffers()
                    .write_all_at(disk.as_fd(), offset, left, durable)
            }
            Operation::Flush => disk.flush(),
        }
    }

    /// Carries out what can be without waiting for the disk; WouldBlock if something is left.
    pub(super) fn try_run(&mut self, disk: &Disk) -> io::Result<()> {
        let (offset, left) = (self.offset, self.left);
        let before = self.buffers().len();
        let result = match self.operation {
            Operation::Read => self.buffers().try_read_at(disk.as_fd(), offset, left),
            Operation::Write { durable: false } => {
                self.buffers().try_write_at(disk.as_fd(), offset, left)
            }
            Operation::Write { durable: true } | Operation::Flush => {
                Err(io::ErrorKind::WouldBlock.into())
            }
        };
        let done = before.saturating_sub(self.buffers().len());
        self.moved(done);
        result
    }

    /// The kernel carried out `count` more bytes.
    pub(super) fn advance(&mut self, count: usize) {
        let count = count.min(self.left);
        self.buffers().advance(count);
        self.moved(count);
    }

    fn moved(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
        self.offset = self.offset.saturating_add(count as u64);
    }

    /// The data's buffers.
    pub(super) fn buffers(&mut self) -> &mut Buffers {
        match self.operation {
            Operation::Read => &mut self.chain.writable,
            Operation::Write { .. } | Operation::Flush => &mut self.chain.readable,
        }
    }
}
