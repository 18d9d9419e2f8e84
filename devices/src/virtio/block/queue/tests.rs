//! Queues: several of them, with limits, and over an engine that takes its time.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::engine::Job;
use super::super::tests::{header, image, options as disk_options, status};
use super::super::{Block, BlockOptions, Disk, DiskLimits, EngineKind, lock};
use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::mock::{EVENT_IDX, MockDriver, hostile_suite};
use crate::virtio::rate_limit::{Rate, RateLimits};

const ALL: u64 = u64::MAX;

/// An engine that is done with a job when the test says so. Clones are the same one.
#[derive(Clone, Debug)]
struct Slow {
    jobs: Arc<Mutex<VecDeque<Job>>>,
    room: usize,
    /// Readable while the test wants jobs to be done, once for each.
    done: Arc<EventFd>,
}

impl Slow {
    fn new(room: usize) -> Self {
        Self {
            jobs: Arc::default(),
            room,
            done: Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_SEMAPHORE).unwrap()),
        }
    }

    fn in_flight(&self) -> usize {
        self.jobs.lock().unwrap().len()
    }
}

impl Engine for Slow {
    fn start(&mut self, job: Job) -> Option<Outcome> {
        assert!(self.has_room());
        self.jobs.lock().unwrap().push_back(job);
        None
    }

    fn has_room(&self) -> bool {
        self.in_flight() < self.room
    }

    /// The last one first.
    fn finish(&mut self) -> Option<Outcome> {
        let mut jobs = self.jobs.lock().unwrap();
        jobs.back()?;
        self.done.read().ok()?;
        let mut job = jobs.pop_back()?;
        job.chain.writable.advance(job.left);
        Some((job, Ok(())))
    }

    fn cancel(&mut self) {
        self.jobs.lock().unwrap().clear();
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.done.as_raw_fd())
    }
}

/// A disk of 64 sectors whose queue is over `engine`.
fn slow_block(engine: &Slow) -> Block {
    let (_dir, path) = image(64 * 512);
    let disk = Disk::open(&disk_options(&path)).unwrap();
    let block = Block::new(disk, &BlockOptions::default()).unwrap();
    let throttle = Throttle::new(DiskLimits::default()).unwrap();
    *lock(&block.queues[0]) = BlockQueue::new(Box::new(engine.clone()), throttle);
    block
}

/// If it fails, a driver with many requests in flight gets the answer of one for another, or an
/// engine gets more than it has room for, or the requests that found no room are forgotten.
#[test]
fn answers_come_in_any_order_and_room_is_used_again() {
    for features in [0, EVENT_IDX] {
        let slow = Slow::new(3);
        let mut driver = MockDriver::started(slow_block(&slow), features);
        let heads: Vec<_> = (0..5)
            .map(|sector| driver.submit(0, &[&header(0, sector)], &[512, 1]).head)
            .collect();
        driver.kick(0);
        driver.run();
        assert_eq!((slow.in_flight(), driver.used(0)), (3, None));
        slow.done.write(1).unwrap();
        driver.run();
        assert_eq!(driver.used(0), Some((heads[2].into(), 513)));
        assert_eq!((slow.in_flight(), driver.interrupts()), (3, 1));
        slow.done.write(4).unwrap();
        driver.run();
        let rest: Vec<_> = std::iter::from_fn(|| driver.used(0)).collect();
        assert_eq!(rest, [3, 1, 0, 4].map(|i| (u32::from(heads[i]), 513)));
        assert_eq!(slow.in_flight(), 0);
    }
}

/// If it fails, a reset leaves requests behind: the kernel writes to memory that the guest uses for
/// something else, or a later driver gets answers that it did not ask for.
#[test]
fn a_reset_takes_all_requests_back() {
    let slow = Slow::new(128);
    let mut driver = MockDriver::started(slow_block(&slow), ALL);
    for _ in 0..20 {
        for sector in 0..50 {
            driver.submit(0, &[&header(0, sector)], &[512, 1]);
        }
        driver.kick(0);
        driver.run();
        assert_eq!(slow.in_flight(), 50);
        driver.reset();
        assert_eq!(slow.in_flight(), 0);
        driver.kick(0);
        driver.run();
        assert_eq!(driver.used(0), None);
        driver.start(ALL);
    }
}

/// If it fails, a hostile driver breaks a device that has requests of it in flight.
#[test]
fn a_hostile_driver_gets_nowhere_with_requests_in_flight() {
    hostile_suite(|| slow_block(&Slow::new(7)), &[0]);
}

/// If it fails, the queues of a disk are not the same disk, or not all are served.
#[test]
fn each_queue_is_served() {
    let (_dir, path) = image(64 * 512);
    for engine in [EngineKind::Sync, EngineKind::IoUring] {
        let options = BlockOptions {
            queues: 4,
            engine,
            ..BlockOptions::default()
        };
        let disk = Disk::open(&disk_options(&path)).unwrap();
        let block = Block::new(disk, &options).unwrap();
        assert_eq!(block.lanes().len(), 4);
        let mut driver = MockDriver::started(block, ALL);
        assert_eq!(driver.config(34, 2), [4, 0]);
        for queue in 0..4u8 {
            let data = vec![queue + 100; 512];
            let written = driver.request(queue.into(), &[&header(1, queue.into()), &data], &[1]);
            assert_eq!(written.data, [0]);
            let other = usize::from((queue + 1) % 4);
            let read = driver.request(other, &[&header(0, queue.into())], &[512, 1]);
            assert_eq!(read.data[..512], data);
        }
    }
    let options = BlockOptions {
        queues: 3,
        ..BlockOptions::default()
    };
    hostile_suite(
        || Block::new(Disk::open(&disk_options(&path)).unwrap(), &options).unwrap(),
        &[0, 1, 2],
    );
}

fn limited(path: &std::path::Path, ops: u64) -> Block {
    let number = |n| NonZeroU64::new(n).unwrap();
    let write = RateLimits {
        ops: Some(Rate {
            per_second: number(ops),
            burst: number(2),
        }),
        bytes: None,
    };
    let options = BlockOptions {
        limits: DiskLimits {
            write,
            ..DiskLimits::default()
        },
        ..BlockOptions::default()
    };
    Block::new(Disk::open(&disk_options(path)).unwrap(), &options).unwrap()
}

/// If it fails, a limit on writes limits reads or flushes, or what it holds back is never done.
#[test]
fn what_is_over_the_limit_waits_and_the_rest_passes() {
    let (_dir, path) = image(64 * 512);
    let mut driver = MockDriver::started(limited(&path, 10), ALL);
    let start = Instant::now();
    let writes: Vec<u32> = (0..6)
        .map(|sector| {
            driver
                .submit(0, &[&header(1, sector), &[9; 512]], &[1])
                .head
                .into()
        })
        .collect();
    let read: u32 = driver.submit(0, &[&header(0, 9)], &[512, 1]).head.into();
    let flush: u32 = driver.submit(0, &[&header(4, 0)], &[1]).head.into();
    driver.kick(0);
    let order: Vec<_> = (0..8).map(|_| driver.wait_used(0).0).collect();
    assert!(
        start.elapsed() >= Duration::from_millis(395),
        "{:?}",
        start.elapsed()
    );
    let first: Vec<_> = order[..4].to_vec();
    assert!(first.contains(&read) && first.contains(&writes[1]));
    assert!(order.iter().position(|head| *head == flush) < Some(5));
    let writes_done: Vec<_> = order.into_iter().filter(|h| writes.contains(h)).collect();
    assert_eq!(writes_done, writes);
}

/// If it fails, what was held back at a reset is written all the same, or blocks what comes after.
#[test]
fn a_reset_forgets_what_is_held_back() {
    let (_dir, path) = image(64 * 512);
    let mut driver = MockDriver::started(limited(&path, 1), ALL);
    let before = std::fs::read(&path).unwrap();
    for sector in 0..200 {
        driver.submit(0, &[&header(1, sector % 8 + 8), &[7; 512]], &[1]);
    }
    driver.kick(0);
    driver.run();
    driver.reset();
    driver.run();
    driver.start(ALL);
    let after = std::fs::read(&path).unwrap();
    assert_eq!(
        after[10 * 512..],
        before[10 * 512..],
        "more was written than the burst"
    );
    assert_eq!(status(&mut driver, 4, 0, &[]), 0);
    assert_eq!(driver.request(0, &[&header(0, 1)], &[512, 1]).data[512], 0);
}
