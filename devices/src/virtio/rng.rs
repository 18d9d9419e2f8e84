//! virtio-rng (virtio 1.2, section 5.4): the host's random bytes.

use event_manager::{EventOps, Events};
use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::rate_limit::RateLimiter;
use super::{ActivateError, Activation, Buffers, QueueError, VirtQueue, VirtioDevice};
use crate::log_limit::log_limited;

/// Entries of the queue.
const QUEUE_SIZE: u16 = 64;
/// Bytes that one request gets at most, however many it asks for. The used length says how many
/// it got, and a driver asks again.
const MAX_BYTES: usize = 64 << 10;

/// An entropy device. It needs nothing but the kernel's random number generator.
#[derive(Debug, Default)]
pub struct Rng {
    queue: Option<VirtQueue>,
    limiter: Option<RateLimiter>,
}

impl Rng {
    /// A device that waits for its driver, and gives it no more than `limiter` admits.
    pub fn new(limiter: Option<RateLimiter>) -> Self {
        let queue = None;
        Self { queue, limiter }
    }

    fn work(&mut self) {
        let Some(queue) = &mut self.queue else {
            return;
        };
        let limiter = &mut self.limiter;
        queue.drain_while(|chain| {
            if !chain.readable.is_empty() {
                return Err(QueueError::Request("a request for entropy with data in it"));
            }
            let wanted = chain.writable.len().min(MAX_BYTES);
            let is_admitted = limiter.as_mut().is_none_or(|all| all.admit(wanted as u64));
            Ok(is_admitted.then(|| fill(&mut chain.writable)))
        });
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let [queue] = activation.into_queues()?;
        self.queue = Some(queue);
        Ok(())
    }

    fn reset(&mut self) {
        self.queue = None;
        if let Some(limiter) = &mut self.limiter {
            limiter.cancel();
        }
    }

    fn register(&mut self, ops: &mut EventOps) {
        if let Some(limiter) = &self.limiter
            && let Err(error) = limiter.watch(ops, 0)
        {
            log::error!("virtio-rng: what the rate limit holds back will not go on: {error}");
        }
    }

    fn kick(&mut self, _queue: usize, _ops: &mut EventOps) {
        self.work();
    }

    fn host_event(&mut self, _events: Events, _ops: &mut EventOps) {
        self.work();
    }
}

/// Fills the first [`MAX_BYTES`] with random bytes; returns how many it filled.
fn fill(buffers: &mut Buffers) -> u32 {
    let mut filled = 0;
    let mut chunk = [0; 256];
    while filled < MAX_BYTES && !buffers.is_empty() {
        let want = buffers.len().min(chunk.len()).min(MAX_BYTES - filled);
        // So few bytes come all at once, or not at all.
        match getrandom(&mut chunk[..want], GetRandomFlags::empty()) {
            Ok(got) => filled += buffers.write(chunk.get(..got).unwrap_or_default()),
            Err(error) => {
                log_limited!(error, "virtio-rng: no random bytes from the host: {error}");
                break;
            }
        }
    }
    // At most MAX_BYTES.
    u32::try_from(filled).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    use crate::virtio::mock::{EVENT_IDX, MockDriver, hostile_suite};
    use crate::virtio::rate_limit::{Rate, RateLimits};

    /// If it fails, the guest has no entropy, or the same twice, or less than it is told.
    #[test]
    fn a_request_is_filled_with_bytes_that_differ() {
        let mut driver = MockDriver::started(Rng::default(), 0);
        let first = driver.request(0, &[], &[32, 32]);
        let second = driver.request(0, &[], &[64]);
        assert_eq!((first.len, second.len), (64, 64));
        assert_ne!(first.data, second.data);
        assert_ne!(first.data[..32], first.data[32..]);
        assert_eq!(driver.interrupts(), 2);
    }

    /// If it fails, one request keeps the host busy for as long as the guest likes.
    #[test]
    fn a_huge_request_gets_a_bounded_answer() {
        let mut driver = MockDriver::started(Rng::default(), u64::MAX);
        let reply = driver.request(0, &[], &[1 << 20]);
        assert_eq!(reply.len as usize, MAX_BYTES);
        assert!(reply.data[MAX_BYTES..].iter().all(|&byte| byte == 0));
    }

    fn limited(per_second: u64, burst: u64) -> Rng {
        let (per_second, burst) = (per_second.try_into().unwrap(), burst.try_into().unwrap());
        let bytes = Some(Rate { per_second, burst });
        Rng::new(Some(
            RateLimiter::new(RateLimits { bytes, ops: None }).unwrap(),
        ))
    }

    /// If it fails, a limited guest gets too much, or nothing any more.
    #[test]
    fn a_limit_holds_requests_back_and_lets_them_go_in_time() {
        let mut driver = MockDriver::started(limited(1000, 64), EVENT_IDX);
        assert_eq!(driver.request(0, &[], &[64]).len, 64);
        let start = Instant::now();
        let late = driver.submit(0, &[], &[100]);
        driver.kick(0);
        driver.run();
        assert_eq!(driver.used(0), None);
        while start.elapsed() < Duration::from_secs(10) {
            driver.run();
            if let Some((head, len)) = driver.used(0) {
                assert_eq!((head, len), (late.head.into(), 100));
                assert!(start.elapsed() >= Duration::from_millis(60));
                return;
            }
        }
        panic!("the request waits for ever");
    }

    /// If it fails, data that a driver may not send is taken for something.
    #[test]
    fn a_request_with_data_stops_the_device() {
        let mut driver = MockDriver::started(Rng::default(), 0);
        driver.submit(0, &[&[1]], &[1]);
        driver.kick(0);
        driver.run();
        assert!(driver.needs_reset());
    }

    /// If it fails, a hostile guest reaches the host through the smallest of all devices.
    #[test]
    fn a_hostile_driver_gets_nowhere() {
        hostile_suite(Rng::default, &[0]);
        hostile_suite(|| limited(1 << 20, 1 << 10), &[0]);
    }
}
