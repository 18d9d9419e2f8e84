//! The arithmetic of a token bucket: pure, in whole numbers, of a time that is passed in.

use std::num::NonZeroU64;

/// Nanoseconds of a second.
const SECOND: i128 = 1_000_000_000;

/// How fast something may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Units (bytes or operations) in a second.
    pub per_second: NonZeroU64,
    /// Units that may go at once after a time of rest.
    pub burst: NonZeroU64,
}

/// A token bucket. It holds `burst` tokens at most, starts full, and gains `per_second` of them
/// each second, to the nanosecond. A request of `n` tokens goes when the bucket holds `n`, or, if
/// that is more than it can hold, when it is full; then it takes all `n`, and leaves a debt.
///
/// So for any window of time, both ends included:
///
/// - what goes is at most `per_second * seconds + max(burst, the largest request that goes in it)`;
/// - a request that is the only one to ask goes after `(debt + min(n, burst)) / per_second` seconds
///   at most, where the debt is what the requests before it took too much.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    /// Tokens times [`SECOND`], so that each nanosecond brings a whole number; negative for a debt.
    level: i128,
    /// Up to when the level is reckoned, in nanoseconds.
    at: u64,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            level: tokens(rate.burst.get()),
            at: 0,
        }
    }

    /// How many nanoseconds after `now` a request of `count` tokens may go if nobody else takes any;
    /// 0 is at once. `now` is in nanoseconds since any fixed moment, and does not go back.
    pub fn wait(&mut self, count: u64, now: u64) -> u64 {
        let rate = i128::from(self.rate.per_second.get());
        let gain = i128::from(now.saturating_sub(self.at)).saturating_mul(rate);
        self.at = self.at.max(now);
        let full = tokens(self.rate.burst.get());
        self.level = self.level.saturating_add(gain).min(full);
        let missing = tokens(count.min(self.rate.burst.get())) - self.level;
        // The next whole nanosecond at which nothing is missing; a debt of centuries stays one.
        u64::try_from((missing.max(0) + rate - 1) / rate).unwrap_or(u64::MAX)
    }

    /// Takes `count` tokens: right after [`Self::wait`] said 0, with the same `count`.
    pub fn take(&mut self, count: u64) {
        self.level -= tokens(count);
    }
}

/// A number of tokens in the unit of the level. Far from overflow: 2^64 * 10^9 is below 2^94.
fn tokens(count: u64) -> i128 {
    i128::from(count) * SECOND
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(per_second: u64, burst: u64) -> Rate {
        Rate {
            per_second: per_second.try_into().unwrap(),
            burst: burst.try_into().unwrap(),
        }
    }

    /// If it fails, a limit is not the one that was set.
    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(rate(1000, 10));
        assert_eq!(bucket.wait(10, 0), 0);
        bucket.take(10);
        assert_eq!(bucket.wait(1, 0), 1_000_000);
        assert_eq!(bucket.wait(1, 999_999), 1);
        assert_eq!(bucket.wait(1, 1_000_000), 0);
        bucket.take(1);
        // Time of rest fills it up, no more.
        assert_eq!(bucket.wait(11, 3_600 * 1_000_000_000), 0);
        bucket.take(11);
        assert_eq!(bucket.wait(1, 3_600 * 1_000_000_000), 2_000_000);
    }

    /// If it fails, rates that do not divide a second gain or lose on the way.
    #[test]
    fn nothing_is_lost_between_nanoseconds() {
        // Room for the part of a token that comes before the nanosecond at which it is asked for.
        let mut bucket = Bucket::new(rate(3, 2));
        let (mut now, mut gone) = (0, 0);
        while now <= 1000 * 1_000_000_000 {
            match bucket.wait(1, now) {
                0 => {
                    bucket.take(1);
                    gone += 1;
                }
                wait => now += wait,
            }
        }
        assert_eq!(gone, 3002);
    }

    /// If it fails, extremes panic or wrap around.
    #[test]
    fn extremes_do_not_overflow() {
        let mut bucket = Bucket::new(rate(u64::MAX, u64::MAX));
        for now in [0, 1, u64::MAX, 0] {
            if bucket.wait(u64::MAX, now) == 0 {
                bucket.take(u64::MAX);
            }
        }
        let mut slow = Bucket::new(rate(1, 1));
        assert_eq!(slow.wait(u64::MAX, 0), 0);
        slow.take(u64::MAX);
        assert_eq!(slow.wait(1, 0), u64::MAX);
    }

    proptest! {
        /// If it fails, some sequence of requests gets more than its limit in some window of time,
        /// or one waits longer than it has to, or for ever.
        #[test]
        fn never_more_than_allowed_and_never_starved(
            per_second in prop_oneof![1..50u64, 1..5_000_000_000u64],
            burst in prop_oneof![1..20u64, 1..1_000_000u64],
            requests in prop::collection::vec(
                (prop_oneof![0..30u64, 0..3_000_000u64], 0..2_000_000_000u64, 0..3u64), 1..60),
        ) {
            let mut bucket = Bucket::new(rate(per_second, burst));
            let (mut now, mut debt) = (0u64, 0i128);
            let mut gone: Vec<(u64, u64)> = Vec::new();
            for (count, pause, late) in requests {
                now += pause;
                let wait = bucket.wait(count, now);
                let most = (tokens(count.min(burst)) + debt.max(0)).div_euclid(per_second.into()) + 1;
                prop_assert!(i128::from(wait) <= most, "{count} waits for {wait}, not {most}");
                if wait > 0 {
                    prop_assert!(bucket.wait(count, now + wait - 1) > 0, "could go earlier");
                    // Waiting has an end, also for those who come late.
                    now += wait + late;
                    prop_assert_eq!(bucket.wait(count, now), 0);
                }
                bucket.take(count);
                debt = tokens(count.saturating_sub(burst));
                gone.push((now, count));
            }
            for first in 0..gone.len() {
                let (mut sum, mut largest) = (0u128, 0);
                for &(at, count) in &gone[first..] {
                    sum += u128::from(count);
                    largest = largest.max(count);
                    let time = u128::from(at - gone[first].0);
                    let allowed = time * u128::from(per_second)
                        + u128::from(burst.max(largest)) * 1_000_000_000;
                    prop_assert!(sum * 1_000_000_000 <= allowed, "{sum} in {time} ns");
                }
            }
        }
    }
}
