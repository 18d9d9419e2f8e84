//! Several queue pairs, the control queue, and rate limits.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::*;
use crate::virtio::rate_limit::{Rate, RateLimits};

/// The control queue of a device of two pairs.
const CONTROL: usize = 4;

fn on_pairs(limits: NetLimits, count: usize) -> (Net, Vec<OwnedFd>) {
    let (taps, hosts): (Vec<_>, Vec<_>) = (0..count).map(|_| pair()).unzip();
    let options = NetOptions {
        mac: MAC.parse().unwrap(),
        mtu: None,
        limits,
    };
    let backends = taps.into_iter().map(Backend::from).collect();
    (Net::new(backends, &options).unwrap(), hosts)
}

fn set_pairs(driver: &mut MockDriver<Net>, command: &[u8]) -> u8 {
    driver.request(CONTROL, &[command], &[1]).data[0]
}

/// If it fails, a guest of several vCPUs has one queue's throughput, or frames of one queue pair
/// get into another.
#[test]
fn each_pair_has_its_own_way_to_the_host() {
    let (net, hosts) = on_pairs(NetLimits::default(), 2);
    let mut driver = MockDriver::started(net, u64::MAX);
    assert_eq!(driver.config(8, 2), [2, 0]);
    for (i, host) in hosts.iter().enumerate() {
        driver.request(2 * i + 1, &[&frame(60 + i)], &[]);
        assert_eq!(host_receives(host).unwrap(), frame(60 + i));
        let request = driver.submit(2 * i, &[], &[70_000]);
        driver.kick(2 * i);
        driver.run();
        host_sends(host, &frame(100 + i));
        driver.run();
        let (_, len) = driver.used(2 * i).unwrap();
        assert_eq!(len as usize, HEADER + 100 + i);
        assert_eq!(
            driver.reply(&request, len).data[..112 + i],
            seen(&frame(100 + i), 1)
        );
    }
}

/// If it fails, the driver uses pairs that are not there, or is told that it may not use those that
/// are.
#[test]
fn the_driver_says_how_many_pairs_it_uses() {
    let (net, _hosts) = on_pairs(NetLimits::default(), 2);
    let mut driver = MockDriver::started(net, u64::MAX);
    for (command, ack) in [
        (&[4, 0, 1, 0][..], 0),
        (&[4, 0, 2, 0], 0),
        (&[4, 0, 0, 0], 1),
        (&[4, 0, 3, 0], 1),
        (&[4, 0, 0xff, 0xff], 1),
        (&[4, 0, 2], 1),
        (&[4, 1, 2, 0], 1),
        (&[0, 0, 1], 1),
        (&[4], 1),
    ] {
        assert_eq!(set_pairs(&mut driver, command), ack, "{command:?}");
    }
    assert!(!driver.needs_reset());
    driver.submit(CONTROL, &[&[4, 0, 1, 0]], &[]);
    driver.kick(CONTROL);
    driver.run();
    assert!(driver.needs_reset());
}

/// If it fails, a hostile guest reaches the host through one of several queues.
#[test]
fn a_hostile_driver_gets_nowhere_on_any_queue() {
    let make = || {
        let (net, hosts) = on_pairs(NetLimits::default(), 2);
        for host in hosts {
            host_sends(&host, &frame(100));
            std::mem::forget(host);
        }
        net
    };
    hostile_suite(make, &[0, 1, 2, 3, CONTROL]);
}

/// If it fails, the kernel sends frames to queues that the driver does not use, and they are lost.
/// Skipped where taps are not permitted.
#[test]
fn queues_of_a_true_tap_are_used_as_the_driver_says() {
    let name = format!("cfq{}", std::process::id());
    let taps = match Tap::create_queues(&name, None, 2) {
        Ok(taps) => taps,
        Err(e @ (TapError::Device(_) | TapError::Permission(_))) => {
            return eprintln!("skipped: {e}");
        }
        Err(e) => panic!("{e}"),
    };
    assert!(matches!(Tap::attach(&name), Err(TapError::Kind(_))));
    let options = NetOptions {
        mac: MAC.parse().unwrap(),
        mtu: None,
        limits: NetLimits::default(),
    };
    let backends = taps.into_iter().map(Backend::from).collect();
    let mut driver = MockDriver::started(Net::new(backends, &options).unwrap(), u64::MAX);
    for _ in 0..3 {
        for count in [2, 1, 1, 2, 2] {
            assert_eq!(set_pairs(&mut driver, &[4, 0, count, 0]), 0);
        }
        driver.request(3, &[&frame(60)], &[]);
        driver.reset();
        driver.start(u64::MAX);
    }
    assert_eq!(dropped(&driver), (0, 0));
    // Queues that are not in use are still there.
    assert_eq!(driver.config(6, 2), [1, 0]);
}

/// Twenty frames a second, two at once.
fn slow() -> RateLimits {
    let ops = Some(Rate {
        per_second: NonZeroU64::new(20).unwrap(),
        burst: NonZeroU64::new(2).unwrap(),
    });
    RateLimits { bytes: None, ops }
}

/// Runs the device until `count` frames are through, which must not come sooner than the limit
/// lets them.
fn through(driver: &mut MockDriver<Net>, queue: usize, count: u32) {
    let start = Instant::now();
    let mut done = 0;
    while done < count {
        driver.run();
        done += u32::try_from(std::iter::from_fn(|| driver.used(queue)).count()).unwrap();
        let most = 2 + 20 * (start.elapsed() + Duration::from_millis(10)).as_millis() / 1000;
        assert!(
            u128::from(done) <= most + 1,
            "{done} after {:?}",
            start.elapsed()
        );
        assert!(start.elapsed() < Duration::from_secs(20), "it stands still");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(start.elapsed() >= Duration::from_millis(u64::from(count - 2) * 50 - 10));
}

/// If it fails, a guest sends or receives more than it may, frames are lost, or nothing goes any
/// more after a time of waiting.
#[test]
fn frames_go_as_fast_as_the_limit_lets_them() {
    let limits = NetLimits {
        rx: slow(),
        tx: slow(),
    };
    let (net, hosts) = on_pairs(limits, 1);
    let mut driver = MockDriver::started(net, MERGEABLE | EVENT_IDX);
    for i in 0..8 {
        driver.submit(TX, &[&frame(60 + i)], &[]);
    }
    driver.kick(TX);
    through(&mut driver, TX, 8);
    for i in 0..8 {
        assert_eq!(host_receives(&hosts[0]).unwrap(), frame(60 + i));
        driver.submit(0, &[], &[2000]);
        host_sends(&hosts[0], &frame(60 + i));
    }
    driver.kick(0);
    through(&mut driver, 0, 8);
    assert_eq!(dropped(&driver), (0, 0));
}

/// If it fails, a reset while frames wait for the limit leaves the device waiting for ever.
#[test]
fn a_reset_while_frames_wait_for_the_limit() {
    let limits = NetLimits {
        rx: slow(),
        tx: slow(),
    };
    let (net, hosts) = on_pairs(limits, 2);
    let mut driver = MockDriver::started(net, u64::MAX);
    for i in 0..8 {
        driver.submit(TX, &[&frame(60)], &[]);
        driver.submit(0, &[], &[70_000]);
        host_sends(&hosts[0], &frame(60 + i));
    }
    driver.kick(TX);
    driver.kick(0);
    driver.run();
    driver.reset();
    driver.start(u64::MAX);
    // The other pair shares the buckets, and nobody of the first is before it.
    for _ in 0..4 {
        driver.submit(3, &[&frame(60)], &[]);
    }
    driver.kick(3);
    let start = Instant::now();
    while (0..4).any(|_| driver.used(3).is_none()) && host_receives(&hosts[1]).is_none() {
        driver.run();
        assert!(start.elapsed() < Duration::from_secs(20), "it stands still");
    }
}

/// If it fails, a guest that breaks the rings of one queue pair has the thread of another look for
/// ever at frames that it may not take.
#[test]
fn a_broken_pair_leaves_the_others_at_rest() {
    let (net, _hosts) = on_pairs(NetLimits::default(), 2);
    let mut driver = MockDriver::started(net, u64::MAX);
    let available = GuestAddress(driver.rings[1].driver + 2);
    driver.mem.write_obj(0x1234u16, available).unwrap();
    driver.kick(1);
    driver.run();
    assert!(driver.needs_reset());
    driver.submit(3, &[&frame(60)], &[]);
    driver.kick(3);
    driver.run();
    assert_eq!(driver.used(3), None);
}
