//! Limits of how fast a device works: bytes and operations, each with a rate and a burst.
//!
//! A device asks [`RateLimiter::admit`] for each request, in their order. Told no, it leaves the
//! request where it is ([`VirtQueue::undo_pop`](super::VirtQueue::undo_pop)) and asks again when the
//! limiter's timer, which it watches in its event loop, says so. It may ask earlier; it need not.

mod bucket;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, Events};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use bucket::Bucket;
pub use bucket::Rate;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// What a limiter limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes of data.
    pub bytes: Option<Rate>,
    /// Requests, of whatever size.
    pub ops: Option<Rate>,
}

impl RateLimits {
    /// Whether anything is limited at all.
    pub fn is_limited(&self) -> bool {
        self.bytes.is_some() || self.ops.is_some()
    }
}

/// One of those who share two token buckets, with a timer of its own.
///
/// For either bucket and any window of time, what all of them are admitted is at most the rate
/// times the window, plus the burst, or the largest request where that is more. A request of any
/// size goes in the end, and in the order in which they were refused: while one waits, who comes
/// later waits behind it.
#[derive(Debug)]
pub struct RateLimiter {
    shared: Arc<Mutex<Shared>>,
    timer: Arc<OwnedFd>,
}

/// What the sharers share.
#[derive(Debug)]
struct Shared {
    bytes: Option<Bucket>,
    ops: Option<Bucket>,
    /// Who was refused, each at most once. Only the first is ever admitted, and its timer is armed.
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    timer: Arc<OwnedFd>,
    /// Bytes of its request.
    bytes: u64,
}

impl RateLimiter {
    /// A limiter with full buckets. Fails when the host gives no timer.
    pub fn new(limits: RateLimits) -> io::Result<Self> {
        let shared = Shared {
            bytes: limits.bytes.map(Bucket::new),
            ops: limits.ops.map(Bucket::new),
            waiting: VecDeque::new(),
        };
        Ok(Self {
            shared: Arc::new(Mutex::new(shared)),
            timer: Arc::new(timer()?),
        })
    }

    /// Another one on the same buckets: for another queue, which another thread may serve.
    pub fn share(&self) -> io::Result<Self> {
        Ok(Self {
            shared: self.shared.clone(),
            timer: Arc::new(timer()?),
        })
    }

    /// Adds the timer to an event loop, edge-triggered: there is nothing to read. Its events carry
    /// `data`.
    pub fn watch(&self, ops: &mut EventOps, data: u32) -> Result<(), event_manager::Error> {
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        ops.add(Events::with_data(self, data, set))
    }

    /// Whether one request of `bytes` bytes may go now; then it has taken its share. If not, the
    /// timer fires when it is worth asking again. Whoever was refused must do that, or
    /// [`Self::cancel`]: others wait behind it.
    pub fn admit(&mut self, bytes: u64) -> bool {
        self.admit_at(bytes, now())
    }

    /// The request that was refused last will not be asked for again: at a reset.
    pub fn cancel(&mut self) {
        let mut shared = lock(&self.shared);
        if let Some(place) = shared.place(&self.timer) {
            shared.waiting.remove(place);
            shared.arm_first(now());
        }
    }

    fn admit_at(&mut self, bytes: u64, now: u64) -> bool {
        let mut shared = lock(&self.shared);
        let place = shared.place(&self.timer);
        let is_first = place.unwrap_or(shared.waiting.len()) == 0;
        if is_first && shared.wait(bytes, now) == 0 {
            shared.take(bytes);
            if place.is_some() {
                shared.waiting.pop_front();
                shared.arm_first(now);
            }
            return true;
        }
        let timer = self.timer.clone();
        let waiter = Waiter { timer, bytes };
        match place.and_then(|place| shared.waiting.get_mut(place)) {
            Some(entry) => *entry = waiter,
            None => shared.waiting.push_back(waiter),
        }
        if is_first {
            shared.arm_first(now);
        }
        false
    }
}

impl Shared {
    fn place(&self, timer: &Arc<OwnedFd>) -> Option<usize> {
        let is_it = |waiter: &Waiter| Arc::ptr_eq(&waiter.timer, timer);
        self.waiting.iter().position(is_it)
    }

    /// Nanoseconds until a request may go.
    fn wait(&mut self, bytes: u64, now: u64) -> u64 {
        let ops = self.ops.as_mut().map_or(0, |ops| ops.wait(1, now));
        let bytes = self.bytes.as_mut().map_or(0, |all| all.wait(bytes, now));
        ops.max(bytes)
    }

    fn take(&mut self, count: u64) {
        if let Some(ops) = &mut self.ops {
            ops.take(1);
        }
        if let Some(bytes) = &mut self.bytes {
            bytes.take(count);
        }
    }

    /// Wakes whoever waits first when its request may go.
    fn arm_first(&mut self, now: u64) {
        let Some(first) = self.waiting.front() else {
            return;
        };
        let (timer, bytes) = (first.timer.clone(), first.bytes);
        let at = now.saturating_add(self.wait(bytes, now)).max(1);
        // Of a number of nanoseconds in 64 bits, this is far from overflow.
        let part = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let value = Itimerspec {
            it_interval: timespec(0, 0),
            it_value: timespec(part(at / SECOND), part(at % SECOND)),
        };
        // Cannot fail: a timer of our own, and a valid time.
        let _ = timerfd_settime(&*timer, TimerfdTimerFlags::ABSTIME, &value);
    }
}

impl AsRawFd for RateLimiter {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

impl Drop for RateLimiter {
    fn drop(&mut self) {
        self.cancel();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn timer() -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    Ok(timerfd_create(TimerfdClockId::Monotonic, flags)?)
}

fn timespec(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    }
}

/// The monotonic clock, in nanoseconds: the one that the timers run by.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec)
        .saturating_mul(SECOND)
        .saturating_add(part(time.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::time::timerfd_gettime;

    const MILLI: u64 = 1_000_000;

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate {
            per_second: per_second.try_into().unwrap(),
            burst: burst.try_into().unwrap(),
        })
    }

    fn limiter(bytes: Option<Rate>, ops: Option<Rate>) -> RateLimiter {
        RateLimiter::new(RateLimits { bytes, ops }).unwrap()
    }

    fn is_armed(limiter: &RateLimiter) -> bool {
        let left = timerfd_gettime(&*limiter.timer).unwrap().it_value;
        (left.tv_sec, left.tv_nsec) != (0, 0)
    }

    /// If it fails, one of the two limits is not kept, or a request that one of them holds back
    /// costs the other.
    #[test]
    fn a_request_needs_both_buckets() {
        let mut limiter = limiter(rate(1000, 100), rate(10, 2));
        let start = now();
        assert!(limiter.admit_at(60, start));
        // 40 bytes and one operation are left: too few bytes, for 20 ms.
        assert!(!limiter.admit_at(60, start));
        assert!(!limiter.admit_at(60, start + 19 * MILLI));
        assert!(limiter.admit_at(60, start + 20 * MILLI));
        // Bytes are there again, the operation is due 100 ms after the start.
        assert!(!limiter.admit_at(1, start + 99 * MILLI));
        assert!(limiter.admit_at(1, start + 100 * MILLI));
    }

    /// If it fails, what waited is never woken.
    #[test]
    fn the_timer_fires_when_the_request_may_go() {
        let mut limiter = limiter(rate(1000, 10), None);
        assert!(limiter.admit(10));
        assert!(!limiter.admit(10));
        let timer = limiter.timer.clone();
        let mut fds = [PollFd::new(&*timer, PollFlags::IN)];
        let patience = timespec(10, 0);
        assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1);
        assert!(limiter.admit(10));
    }

    /// If it fails, of two queues with one limit, one can starve the other, or both wait for ever.
    #[test]
    fn who_was_refused_first_goes_first() {
        let mut one = limiter(rate(1000, 100), None);
        let mut two = one.share().unwrap();
        let start = now();
        assert!(one.admit_at(100, start));
        assert!(!two.admit_at(100, start));
        // Enough for this one, which so would get all that comes in, time after time.
        assert!(!one.admit_at(10, start + 10 * MILLI));
        assert!(is_armed(&two) && !is_armed(&one));
        assert!(two.admit_at(100, start + 100 * MILLI));
        assert!(is_armed(&one));
        assert!(one.admit_at(10, start + 110 * MILLI));
    }

    /// If it fails, a queue that is reset holds up the others for good.
    #[test]
    fn who_leaves_holds_up_nobody() {
        let mut one = limiter(rate(1000, 100), None);
        let mut two = one.share().unwrap();
        let mut three = one.share().unwrap();
        let start = now();
        assert!(one.admit_at(100, start));
        for waiter in [&mut one, &mut two, &mut three] {
            assert!(!waiter.admit_at(1, start));
        }
        one.cancel();
        assert!(is_armed(&two) && !is_armed(&three));
        drop(two);
        assert!(is_armed(&three));
        assert!(three.admit_at(1, start + MILLI));
        assert!(one.admit_at(1, start + 2 * MILLI));
    }
}
