//! Requests through `io_uring`: many at once, while the device's thread goes on.
//!
//! What can be done without waiting is done in place: data in the page cache is copied at half the
//! cost of a way through the ring. Only what would wait for the disk goes into the ring.
//!
//! - Buffers are not registered with the ring. A registered buffer is pinned: guest memory would be
//!   resident from the start and for ever, and what a balloon gave back would stay gone, to save a
//!   lookup of pages that disks make us wait for anyway. Nor is the file: the kernel takes rings
//!   apart in its own time, and the disk would stay locked for a while after the monitor's end.
//! - A flush needs no barrier. It covers the writes that were completed before the driver asked for
//!   it (virtio 1.2, section 5.2.6.2), and these are in the page cache by then.
//! - A driver's reset cancels what has not begun and waits for the rest, so that the kernel never
//!   writes to memory that the guest uses for something else.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};

use super::disk::Disk;
use super::engine::{DEPTH, Engine, Job, Operation, Outcome};
use crate::log_limit::log_limited;

/// Entries of the submission queue; a fuller one is handed over in parts.
const ENTRIES: u32 = 64;
/// Entries of the completion queue: room for each job, and for the cancellation of each.
const COMPLETIONS: u32 = 256;
const _: () = assert!(COMPLETIONS as usize == 2 * DEPTH);
/// Marks a completion that is a cancellation's, not a job's.
const CANCEL: u64 = u64::MAX;
/// Where a file system knows no writing without waiting (ext4), writes up to this size are done in
/// place all the same. Waiting for the page cache is rare, and the kernel would hand each to
/// another thread: five times the cost of 4 KiB, twice that of 64 KiB, nothing over that.
const SMALL_WRITE: usize = 64 << 10;

/// An `io_uring` for one queue of one disk.
pub(super) struct Ring {
    ring: IoUring,
    disk: Arc<Disk>,
    /// What the kernel has in hand; the index is the entry's user data. As many slots as were ever
    /// in use at once.
    slots: Vec<Option<InFlight>>,
    /// Slots without a job.
    free: Vec<usize>,
    can_try_read: bool,
    can_try_write: bool,
}

/// A job that the kernel has in hand.
struct InFlight {
    job: Job,
    /// Where its data is: pieces of the job's buffers, which hold guest memory mapped.
    _pieces: Vec<libc::iovec>,
}

// SAFETY: the pointers of `_pieces` are those of `job`, which may be sent.
unsafe impl Send for InFlight {}

impl Ring {
    /// A ring for `disk`; an error if the kernel has none, one too old, or forbids it.
    pub(super) fn new(disk: Arc<Disk>) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)?;
        let params = ring.params();
        // Native workers came with 5.12, which is where requests began to be carried out as by
        // their own process.
        if !params.is_feature_nodrop() || !params.is_feature_native_workers() {
            return Err(io::Error::other(
                "the host's io_uring is older than Linux 5.12",
            ));
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::AsyncCancel::CODE,
        ];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::Error::other("the host's io_uring lacks an operation"));
        }
        Ok(Self {
            ring,
            disk,
            slots: Vec::new(),
            free: Vec::new(),
            can_try_read: true,
            can_try_write: true,
        })
    }

    /// A ring that everything goes through but small writes.
    #[cfg(test)]
    pub(super) fn without_tries(disk: Arc<Disk>) -> io::Result<Self> {
        let mut ring = Self::new(disk)?;
        ring.can_try_read = false;
        ring.can_try_write = false;
        Ok(ring)
    }

    /// Does in place what needs no waiting; WouldBlock if something is left for the ring.
    fn try_in_place(&mut self, job: &mut Job) -> io::Result<()> {
        let can_try = match job.operation {
            Operation::Read => &mut self.can_try_read,
            Operation::Write { durable: false } => &mut self.can_try_write,
            Operation::Write { durable: true } | Operation::Flush => {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        };
        if *can_try {
            match job.try_run(&self.disk) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => *can_try = false,
                result => return result,
            }
        }
        match job.operation {
            Operation::Write { durable: false } if job.left <= SMALL_WRITE => job.run(&self.disk),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Puts what is left of a job into the ring; with [`squeue::Flags::ASYNC`] the kernel does not
    /// even try without waiting.
    fn queue(&mut self, mut job: Job, flags: squeue::Flags) -> Option<Outcome> {
        if !self.has_room() {
            // Nobody starts more than there is room for; if somebody does, there is another way.
            let result = job.run(&self.disk);
            return Some((job, result));
        }
        let left = job.left;
        let pieces = job.buffers().first_iovecs(left);
        // At most MAX_PIECES.
        let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
        let disk = Fd(self.disk.as_fd().as_raw_fd());
        let entry = match job.operation {
            Operation::Read => opcode::Readv::new(disk, pieces.as_ptr(), count)
                .offset(job.offset)
                .build(),
            Operation::Write { durable } => opcode::Writev::new(disk, pieces.as_ptr(), count)
                .offset(job.offset)
                .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
                .build(),
            Operation::Flush => opcode::Fsync::new(disk).flags(FsyncFlags::DATASYNC).build(),
        };
        let in_flight = InFlight {
            job,
            _pieces: pieces,
        };
        let slot = self.put(in_flight);
        self.push(&entry.flags(flags).user_data(slot as u64));
        None
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry points at is in a slot (the list of pieces, on the heap, and the
        // job whose buffers they are, which keep guest memory mapped) and stays there until the
        // kernel completed it; `drop` waits for that. The disk stays open as long as the ring.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            if !self.submit(0) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Hands what was pushed to the kernel, and waits for `want` completions. False if the kernel
    /// cannot take it now.
    fn submit(&mut self, want: usize) -> bool {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let disk = self.disk.path().display();
                    log_limited!(error, "disk {disk}: io_uring takes no requests: {e}");
                    return false;
                }
            }
        }
    }

    /// Puts a job into a slot.
    fn put(&mut self, in_flight: InFlight) -> usize {
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(place) => *place = Some(in_flight),
            None => self.slots.push(Some(in_flight)),
        }
        slot
    }

    /// Takes a completion's job out of its slot.
    fn take(&mut self, entry: &cqueue::Entry) -> Option<Job> {
        let slot = usize::try_from(entry.user_data()).ok()?;
        let done = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(done.job)
    }

    /// A job that the kernel completed, perhaps in part: `None` if it goes on.
    fn go_on(&mut self, mut job: Job, result: i32) -> Option<Outcome> {
        let count = match usize::try_from(result) {
            Ok(count) => count,
            Err(_) => match io::Error::from_raw_os_error(result.saturating_neg()) {
                e if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
                    return self.queue(job, squeue::Flags::ASYNC);
                }
                e => return Some((job, Err(e))),
            },
        };
        job.advance(count);
        match (job.left, count) {
            (0, _) => Some((job, Ok(()))),
            (_, 0) => Some((job, Err(io::ErrorKind::UnexpectedEof.into()))),
            _ => self.queue(job, squeue::Flags::empty()),
        }
    }
}

impl Engine for Ring {
    fn start(&mut self, mut job: Job) -> Option<Outcome> {
        match self.try_in_place(&mut job) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.queue(job, squeue::Flags::empty())
            }
            result => Some((job, result)),
        }
    }

    fn has_room(&self) -> bool {
        self.in_flight() < DEPTH
    }

    fn finish(&mut self) -> Option<Outcome> {
        loop {
            if let Some(entry) = self.next() {
                let job = self.take(&entry);
                if let Some(outcome) = job.and_then(|job| self.go_on(job, entry.result())) {
                    return Some(outcome);
                }
            } else if !self.is_behind() || !self.submit(0) {
                return None;
            }
        }
    }

    fn is_behind(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    fn cancel(&mut self) {
        let busy = (0..).zip(&self.slots).filter(|(_, slot)| slot.is_some());
        let busy: Vec<u64> = busy.map(|(index, _)| index).collect();
        let mut answers = busy.len();
        for slot in busy {
            self.push(&opcode::AsyncCancel::new(slot).build().user_data(CANCEL));
        }
        while answers > 0 || self.in_flight() > 0 {
            match self.next() {
                Some(entry) if entry.user_data() == CANCEL => answers = answers.saturating_sub(1),
                // Its chain is forgotten: the driver has reset the ring that it came from.
                Some(entry) => drop(self.take(&entry)),
                None if self.submit(1) => {}
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.ring.as_raw_fd())
    }
}

impl Ring {
    /// Jobs that the kernel has in hand.
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn next(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} in flight)", self.in_flight())
    }
}

#[cfg(test)]
mod tests;
