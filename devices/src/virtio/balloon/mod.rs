//! virtio-balloon (virtio 1.2, section 5.5): memory that the guest does not need goes back to the
//! host. The guest takes pages out of its own use, as many as the host asks for (the balloon), or
//! tells what is free anyway and goes on owning it: by itself (free page reporting), or when it is
//! asked (free page hinting).

mod discard;
mod hint;
mod sparse;
mod stats;
#[cfg(test)]
mod tests;

use std::io;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, TryRecvError};

use event_manager::{EventOps, EventSet, Events};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::{ActivateError, Activation, Chain, Interrupt, QueueError, VirtQueue, VirtioDevice};
use discard::{Discarder, PAGE};
use hint::Hinting;
pub use stats::BalloonStats;

/// Feature bits (section 5.5.3).
const STATS_VQ: u32 = 1;
const DEFLATE_ON_OOM: u32 = 2;
const FREE_PAGE_HINT: u32 = 3;
const PAGE_REPORTING: u32 = 5;

/// Entries of each queue. Linux reports 32 ranges in one chain.
const QUEUE_SIZE: u16 = 64;
/// What the timers' events carry.
const STATS: u32 = 0;
const HINT: u32 = 1;
/// What the event carries that sparse huge pages are split.
const SPARSE: u32 = 2;
/// Pages in one request at most; Linux sends 256, others a page full of numbers.
const MAX_PAGES: usize = 4096;
/// Pages that are sorted, and given back by as few system calls, at a time.
const BATCH: usize = 256;

/// What a balloon is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonOptions {
    /// Bytes that the guest is asked to give up.
    pub target: u64,
    /// The guest may take pages back before it kills a process for want of memory.
    pub deflate_on_oom: bool,
    /// The guest reports what is free.
    pub reporting: bool,
    /// Seconds between two runs in which the guest tells what is free, if there are to be any.
    pub hinting: Option<NonZeroU32>,
    /// Seconds between two statistics, if there are to be any.
    pub stats: Option<NonZeroU32>,
}

/// What a queue is for. Those that a feature brings come in this order, without gaps where a
/// feature is not there (which is how drivers count, whatever the numbers in section 5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Hint,
    Report,
}

/// A memory balloon.
#[derive(Debug)]
pub struct Balloon {
    options: BalloonOptions,
    /// Pages that the driver says it has given up.
    actual: u32,
    /// The driver was not told of the target in `options`.
    is_target_new: bool,
    hinting: Hinting,
    /// Fires each time that a run of hints is due.
    hint_timer: Option<OwnedFd>,
    /// Fires each time that statistics are due.
    stats_timer: Option<OwnedFd>,
    /// Rung when sparse huge pages are split; there if the driver may report.
    split: Option<OwnedFd>,
    /// They were looked for: once in the life of a VM, or a driver that comes again and again would have
    /// a thread for each time.
    was_split: bool,
    stats: Option<BalloonStats>,
    active: Option<Active>,
}

/// What a driver set up.
#[derive(Debug)]
struct Active {
    queues: Vec<(Role, VirtQueue)>,
    interrupt: Interrupt,
    discarder: Discarder,
    /// The chain that statistics came in, kept until the next are due.
    stats_chain: Option<u16>,
    /// Whether the next statistics were asked for.
    is_stats_due: bool,
    sparse: Sparse,
}

/// How far it is with huge pages of which the guest uses little.
#[derive(Debug)]
enum Sparse {
    /// The driver has not reported yet.
    Whole,
    /// They are being split. Reports wait for it.
    Splitting(Receiver<Vec<usize>>),
    /// They are, and will be once more where there is somebody to tell of it.
    Split(Option<Receiver<Vec<usize>>>),
}

impl Balloon {
    /// A balloon that waits for its driver. Fails when the host gives no timer.
    pub fn new(options: BalloonOptions) -> io::Result<Self> {
        Ok(Self {
            hint_timer: options.hinting.map(every).transpose()?,
            stats_timer: options.stats.map(every).transpose()?,
            split: match options.reporting {
                true => Some(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
                false => None,
            },
            was_split: false,
            hinting: Hinting::new(),
            options,
            actual: 0,
            is_target_new: false,
            stats: None,
            active: None,
        })
    }

    /// Asks the guest to give up `bytes` in all, rounded down to pages; it may take its time, and
    /// it may not do it.
    pub fn set_target(&mut self, bytes: u64) {
        self.options.target = bytes;
        self.is_target_new = true;
        self.announce();
    }

    /// Bytes that the guest says it has given up.
    pub fn actual(&self) -> u64 {
        u64::from(self.actual) * PAGE
    }

    /// What the guest said last of its memory.
    pub fn stats(&self) -> Option<&BalloonStats> {
        self.stats.as_ref()
    }

    fn announce(&mut self) {
        let config = self.config();
        if let Some(active) = &self.active {
            self.is_target_new = false;
            active.interrupt.config_change(&config);
        }
    }

    /// `struct virtio_balloon_config` (section 5.5.4) up to the last field that has a meaning here:
    /// the pages wanted, the pages given up, and the run of hints that is wanted.
    fn config(&self) -> [u8; 12] {
        let pages = u32::try_from(self.options.target / PAGE).unwrap_or(u32::MAX);
        let fields = [pages, self.actual, self.hinting.wanted()];
        let mut config = [0; 12];
        for (to, field) in config.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        config
    }

    /// The queues of a driver with these features.
    fn roles(features: u64) -> Vec<Role> {
        let mut roles = vec![Role::Inflate, Role::Deflate];
        let optional = [
            (STATS_VQ, Role::Stats),
            (FREE_PAGE_HINT, Role::Hint),
            (PAGE_REPORTING, Role::Report),
        ];
        let there = optional.iter().filter(|(bit, _)| features & 1 << bit != 0);
        roles.extend(there.map(|(_, role)| role));
        roles
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        const SIZES: [u16; 5] = [QUEUE_SIZE; 5];
        let count = Self::roles(self.features()).len();
        SIZES.get(..count).unwrap_or(&SIZES)
    }

    fn features(&self) -> u64 {
        let bit = |is_there: bool, bit: u32| u64::from(is_there) << bit;
        1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | bit(self.options.stats.is_some(), STATS_VQ)
            | bit(self.options.deflate_on_oom, DEFLATE_ON_OOM)
            | bit(self.options.hinting.is_some(), FREE_PAGE_HINT)
            | bit(self.options.reporting, PAGE_REPORTING)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(self.config().iter().skip(start)) {
            *to = *from;
        }
    }

    /// Only the number of pages that were given up is the driver's to write.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, data.try_into()) {
            self.actual = u32::from_le_bytes(actual);
            log::debug!(
                "virtio-balloon: the guest has given up {} pages",
                self.actual
            );
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let roles = Self::roles(activation.features);
        let (found, wanted) = (activation.queues.len(), roles.len());
        if found < wanted {
            return Err(ActivateError::Queues { found, wanted });
        }
        self.active = Some(Active {
            queues: roles.into_iter().zip(activation.queues).collect(),
            interrupt: activation.interrupt,
            discarder: Discarder::new(activation.mem),
            stats_chain: None,
            is_stats_due: false,
            sparse: Sparse::Whole,
        });
        if self.is_target_new {
            self.announce();
        }
        Ok(())
    }

    fn reset(&mut self) {
        // A driver that comes back begins with an empty balloon.
        self.actual = 0;
        self.stats = None;
        self.hinting.reset();
        self.active = None;
    }

    fn register(&mut self, ops: &mut EventOps) {
        let all = [
            (&self.stats_timer, STATS),
            (&self.hint_timer, HINT),
            (&self.split, SPARSE),
        ];
        for (fd, data) in all {
            if let Some(fd) = fd
                && let Err(error) = ops.add(Events::with_data(fd, data, EventSet::IN))
            {
                log::error!("virtio-balloon: a timer or an event cannot be watched: {error}");
            }
        }
    }

    /// The queue of hints, where a driver that accepts every feature has it. Where another has it,
    /// its hints come too late to be of use.
    fn is_synchronous(&self, queue: usize) -> bool {
        Self::roles(self.features()).get(queue) == Some(&Role::Hint)
    }

    fn kick_now(&mut self, queue: usize) {
        let roles = self.active.as_ref().map(|active| &active.queues);
        match roles.and_then(|queues| queues.get(queue)) {
            Some((Role::Hint, _)) => self.take_hints(true),
            _ => self.serve(queue),
        }
    }

    fn kick(&mut self, queue: usize, _ops: &mut EventOps) {
        self.serve(queue);
    }

    fn host_event(&mut self, events: Events, _ops: &mut EventOps) {
        let fd = match events.data() {
            HINT => &self.hint_timer,
            STATS => &self.stats_timer,
            _ => &self.split,
        };
        if let Some(fd) = fd {
            // Starts the next period; how many are over does not matter.
            let _ = rustix::io::read(fd, &mut [0; 8]);
        }
        match events.data() {
            HINT => self.start_hinting(),
            STATS => self.return_stats(),
            _ => self.take_reports(),
        }
    }
}

impl Balloon {
    /// Asks the driver for a run of hints.
    fn start_hinting(&mut self) {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        if queues.into_iter().any(|(role, _)| *role == Role::Hint) {
            self.hinting.start();
            self.announce();
        }
    }

    /// Takes hints if there are any. The driver that sent them waits for it, or does not.
    fn take_hints(&mut self, is_driver_waiting: bool) {
        let (Some(active), hinting) = (&mut self.active, &mut self.hinting) else {
            return;
        };
        let Active {
            queues, discarder, ..
        } = active;
        let mut discarder = is_driver_waiting.then_some(discarder);
        let mut is_changed = false;
        if let Some((_, queue)) = queues.iter_mut().find(|(role, _)| *role == Role::Hint) {
            queue.drain(|chain| {
                is_changed |= hinting.take(chain, discarder.as_deref_mut())?;
                Ok(0)
            });
        }
        if is_changed {
            self.announce();
        }
    }

    fn serve(&mut self, queue: usize) {
        let Some(active) = &mut self.active else {
            return;
        };
        let Some((role, queue)) = active.queues.get_mut(queue) else {
            return;
        };
        match role {
            Role::Inflate => queue.drain(|chain| inflate(&active.discarder, chain)),
            // The guest takes back what is its own: the host gives a page when it is touched.
            Role::Deflate => queue.drain(|_| Ok(0)),
            Role::Report => self.take_reports(),
            Role::Stats => self.take_stats(),
            Role::Hint => self.take_hints(false),
        }
    }

    /// Gives back what the driver reports. Behind its first report, when the guest has booted and left
    /// huge pages that are mostly empty, the next ones wait until these are split.
    fn take_reports(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        active.sparse = match std::mem::replace(&mut active.sparse, Sparse::Split(None)) {
            Sparse::Whole => Sparse::Whole,
            Sparse::Splitting(addresses) => match addresses.try_recv() {
                Ok(first) => {
                    active.discarder.add_split(first);
                    Sparse::Split(Some(addresses))
                }
                // Rung again when it is time.
                Err(TryRecvError::Empty) => {
                    active.sparse = Sparse::Splitting(addresses);
                    return;
                }
                Err(TryRecvError::Disconnected) => Sparse::Split(None),
            },
            Sparse::Split(addresses) => {
                for more in addresses.iter().flat_map(Receiver::try_iter) {
                    active.discarder.add_split(more);
                }
                Sparse::Split(addresses)
            }
        };
        let mut queues = active.queues.iter_mut();
        let Some((_, queue)) = queues.find(|(role, _)| *role == Role::Report) else {
            return;
        };
        let mut has_reported = false;
        queue.drain(|chain| {
            has_reported = true;
            report(&mut active.discarder, chain)
        });
        if has_reported
            && !std::mem::replace(&mut self.was_split, true)
            && let Some(Ok(done)) = self.split.as_ref().map(OwnedFd::try_clone)
        {
            let splitting = sparse::split_all(active.discarder.memory(), done);
            active.sparse = splitting.map_or(Sparse::Split(None), Sparse::Splitting);
        }
    }

    /// Gives the driver its buffer back, to be filled again.
    fn return_stats(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        active.is_stats_due = true;
        if let Some(head) = active.stats_chain.take()
            && let Some(queue) = active.queue(Role::Stats)
        {
            queue.complete(head, 0);
            queue.signal();
        }
        self.take_stats();
    }

    /// Takes statistics if there are any, and keeps their chain. There is one at a time; if a
    /// driver offers more, the others wait.
    fn take_stats(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        if active.stats_chain.is_some() {
            return;
        }
        let Some(queue) = active.queue(Role::Stats) else {
            return;
        };
        let mut chain = Chain::new(queue.memory());
        let popped = queue.pop(&mut chain);
        // Whatever else is there waits, but the next one must be heard of.
        queue.enable_kicks();
        match popped {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => return queue.fail(&error),
        }
        let stats = BalloonStats::read(&mut chain.readable);
        active.stats_chain = Some(chain.head());
        // Once for each time that they are due, however often the driver sends them.
        if std::mem::take(&mut active.is_stats_due) {
            let actual = u64::from(self.actual) * PAGE / 1024;
            log::info!("the guest's memory: {stats}, in the balloon {actual}K");
        }
        self.stats = Some(stats);
    }
}

impl Active {
    fn queue(&mut self, role: Role) -> Option<&mut VirtQueue> {
        let mut queues = self.queues.iter_mut();
        queues
            .find(|(other, _)| *other == role)
            .map(|(_, queue)| queue)
    }
}

/// The pages that the driver gives up: an array of their numbers.
fn inflate(discarder: &Discarder, chain: &mut Chain) -> Result<u32, QueueError> {
    if chain.readable.len() > MAX_PAGES * size_of::<u32>() {
        return Err(QueueError::Request("a balloon request of too many pages"));
    }
    let mut bytes = [0; BATCH * size_of::<u32>()];
    loop {
        let count = chain.readable.read(&mut bytes) / size_of::<u32>();
        if count == 0 {
            return Ok(0);
        }
        let mut pages = [0; BATCH];
        let (numbers, _) = bytes.as_chunks();
        for (page, number) in pages.iter_mut().zip(numbers) {
            *page = u32::from_le_bytes(*number);
        }
        let pages = pages.get_mut(..count).unwrap_or_default();
        pages.sort_unstable();
        let is_next = |a: &u32, b: &u32| b - a <= 1;
        for run in pages.chunk_by(is_next) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                discarder.pages(*first, (last - first).saturating_add(1));
            }
        }
    }
}

/// Ranges that are free: nobody needs what is in them, and nobody minds when it is gone.
fn report(discarder: &mut Discarder, chain: &mut Chain) -> Result<u32, QueueError> {
    if !chain.readable.is_empty() {
        return Err(QueueError::Request(
            "a report of free pages that are read-only",
        ));
    }
    discarder.pieces(chain.writable.iovecs());
    Ok(0)
}

/// A timer that fires every so many seconds.
fn every(seconds: NonZeroU32) -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let period = Timespec {
        tv_sec: seconds.get().into(),
        tv_nsec: 0,
    };
    let value = Itimerspec {
        it_interval: period,
        it_value: period,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &value)?;
    Ok(timer)
}
