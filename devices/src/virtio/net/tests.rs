mod queues;
mod stream;

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::mock::{EVENT_IDX, MockDriver, hostile_suite};

const TX: usize = 1;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const GUEST_TSO: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_CSUM;
const MAC: &str = "02:00:00:00:00:01";

/// A socket that keeps frames apart, as a tap does, and the host's end of it.
fn pair() -> (Tap, OwnedFd) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (ours, host) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (Tap::fake(ours), host)
}

fn with_mtu(backend: impl Into<Backend>, mtu: Option<u16>) -> Net {
    let options = NetOptions {
        mac: MAC.parse().unwrap(),
        mtu,
        limits: NetLimits::default(),
    };
    Net::new(vec![backend.into()], &options).unwrap()
}

fn net(tap: Tap) -> Net {
    with_mtu(tap, None)
}

fn started(features: u64) -> (MockDriver<Net>, OwnedFd) {
    let (tap, host) = pair();
    (MockDriver::started(net(tap), features), host)
}

/// A frame of `len` bytes behind a header whose last two bytes nobody has set.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame[10..].fill(0xff);
    frame.extend((0..=252).cycle().take(len));
    frame
}

/// What the guest must see of it, when it came in `buffers` buffers.
fn seen(frame: &[u8], buffers: u16) -> Vec<u8> {
    let mut seen = frame.to_vec();
    seen[10..12].copy_from_slice(&buffers.to_le_bytes());
    seen
}

fn host_sends(host: &OwnedFd, frame: &[u8]) {
    assert_eq!(rustix::io::write(host, frame).unwrap(), frame.len());
}

fn host_receives(host: &OwnedFd) -> Option<Vec<u8>> {
    let mut frame = vec![0; 1 << 17];
    let len = rustix::io::read(host, &mut frame[..]).ok()?;
    frame.truncate(len);
    Some(frame)
}

fn dropped(driver: &MockDriver<Net>) -> (u64, u64) {
    let counters = driver.device.lock().unwrap().counters();
    (
        counters.rx_dropped.load(Ordering::Relaxed),
        counters.tx_dropped.load(Ordering::Relaxed),
    )
}

/// If it fails, a driver gets another address or MTU, or is offered what the tap cannot do.
#[test]
fn the_driver_is_told_address_mtu_and_link() {
    let (tap, _host) = pair();
    let device = with_mtu(tap, Some(9000));
    let mut driver = MockDriver::started(device, u64::MAX);
    assert_eq!(
        driver.config(0, 14),
        [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x28, 0x23, 0, 0]
    );
    assert_eq!(driver.config(6, 2), [1, 0]);
    assert_eq!(driver.config(1 << 20, 4), [0; 4]);
    assert_ne!(driver.offered() & 1 << VIRTIO_NET_F_MTU, 0);
    assert_ne!(driver.offered() & 1 << VIRTIO_NET_F_HOST_USO, 0);
    let (mut driver, _host) = started(0);
    assert_eq!(driver.offered() & 1 << VIRTIO_NET_F_MTU, 0);
}

/// If it fails, what the guest sends is lost, changed, or never given back to its driver.
#[test]
fn frames_go_to_the_host_as_they_are() {
    for features in [0, u64::MAX] {
        let (mut driver, host) = started(features);
        driver.is_indirect = features != 0;
        for len in [1, 60, 1514, 65_535] {
            let frame = frame(len);
            let (header, body) = frame.split_at(7);
            let (body, tail) = body.split_at(body.len() / 2);
            let reply = driver.request(TX, &[header, body, tail], &[]);
            assert_eq!(reply.len, 0);
            assert_eq!(host_receives(&host).unwrap(), frame);
        }
        assert!(driver.interrupts() > 0);
    }
}

/// If it fails, one bad frame stops the transmitter, or the host takes it for a frame.
#[test]
fn what_is_no_frame_is_dropped_and_given_back() {
    let (mut driver, host) = started(0);
    let long = vec![0; MAX_FRAME + 1];
    for data in [&[][..], &[0; 1], &[0; HEADER], &long] {
        driver.request(TX, &[data], &[]);
    }
    driver.request(TX, &[], &[64]);
    assert_eq!(dropped(&driver), (0, 5));
    driver.request(TX, &[&frame(60)], &[]);
    assert_eq!(host_receives(&host).unwrap(), frame(60));
    assert!(host_receives(&host).is_none() && !driver.needs_reset());
}

/// If it fails, frames are lost or reordered when the tap is full, or the loop is busy until it is
/// not.
#[test]
fn a_full_tap_is_waited_for() {
    let (mut driver, host) = started(EVENT_IDX);
    let frame = |i: u8| [&[0; HEADER][..], &[i; 4000]].concat();
    for i in 0..250 {
        driver.submit(TX, &[&frame(i)], &[]);
    }
    driver.kick(TX);
    driver.run();
    let completed = |driver: &mut MockDriver<Net>| std::iter::from_fn(|| driver.used(TX)).count();
    let mut done = completed(&mut driver);
    assert!(done > 0 && done < 250, "the socket took {done}");
    for i in 0..250 {
        driver.run();
        assert_eq!(host_receives(&host).unwrap(), frame(i));
    }
    driver.run();
    done += completed(&mut driver);
    assert_eq!((done, dropped(&driver)), (250, (0, 0)));
}

/// If it fails, frames from the host are lost or changed, or the guest's buffers are.
#[test]
fn a_frame_from_the_host_fills_one_chain() {
    for features in [0, MERGEABLE, u64::MAX] {
        let (mut driver, host) = started(features);
        // A chain of a whole frame's room, and with mergeable buffers more behind it.
        let request = driver.submit(0, &[], &[5, 7, 100, 70_000]);
        driver.kick(0);
        driver.run();
        host_sends(&host, &frame(1514));
        driver.run();
        let (head, len) = driver.used(0).unwrap();
        assert_eq!((head, len), (u32::from(request.head), 12 + 1514));
        let reply = driver.reply(&request, len);
        assert_eq!(reply.data[..1526], seen(&frame(1514), 1));
        assert!(driver.interrupts() > 0);
    }
}

/// If it fails, a large frame does not fit into small buffers, or the driver sees half of it, or
/// misses the interrupt that it wants in the middle of it.
#[test]
fn a_large_frame_fills_several_chains() {
    let (mut driver, host) = started(MERGEABLE | GUEST_TSO | EVENT_IDX);
    let used_event = driver.rings[0].driver + 4 + 2 * u64::from(QUEUE_SIZE);
    driver
        .mem
        .write_obj(20u16, GuestAddress(used_event))
        .unwrap();
    let requests: Vec<_> = (0..50).map(|_| driver.submit(0, &[], &[1526])).collect();
    driver.kick(0);
    driver.run();
    host_sends(&host, &frame(64_000));
    driver.run();
    assert_eq!(driver.interrupts(), 1);
    let mut data = Vec::new();
    for request in &requests[..42] {
        let (head, len) = driver.used(0).unwrap();
        assert_eq!(head, u32::from(request.head));
        data.extend_from_slice(&driver.reply(request, len).data[..len as usize]);
    }
    assert_eq!(driver.used(0), None);
    assert_eq!(data, seen(&frame(64_000), 42));

    // Eight are left: no room for another large frame, so it waits for the driver's buffers.
    host_sends(&host, &frame(64_000));
    driver.run();
    assert_eq!(driver.used(0), None);
    for _ in 0..42 {
        driver.submit(0, &[], &[1526]);
    }
    driver.kick(0);
    driver.run();
    assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 42);
    assert_eq!(dropped(&driver), (0, 0));
}

/// If it fails, a driver that gives less room than a frame may need receives nothing at all, or
/// half a frame.
#[test]
fn a_frame_that_does_not_fit_is_dropped_and_the_next_is_not() {
    for features in [0, MERGEABLE | GUEST_TSO] {
        let (mut driver, host) = started(features);
        for _ in 0..4 {
            driver.submit(0, &[], &[1000]);
        }
        driver.kick(0);
        driver.run();
        host_sends(&host, &frame(9000));
        host_sends(&host, &frame(500));
        driver.run();
        assert_eq!(dropped(&driver), (1, 0));
        let lens: Vec<_> = std::iter::from_fn(|| driver.used(0)).map(|u| u.1).collect();
        // Without merging the chain that was too small comes back empty.
        let expected: &[u32] = if features == 0 { &[0, 512] } else { &[512] };
        assert_eq!(lens, expected);
    }
}

/// If it fails, one useless chain stops reception.
#[test]
fn a_useless_chain_is_given_back_and_the_next_is_used() {
    for features in [0, MERGEABLE] {
        let (mut driver, host) = started(features);
        driver.submit(0, &[], &[11]);
        driver.submit(0, &[&[1; 64]], &[2000]);
        driver.submit(0, &[&[1; 64]], &[]);
        driver.submit(0, &[], &[2000]);
        driver.kick(0);
        driver.run();
        host_sends(&host, &frame(60));
        driver.run();
        let lens: Vec<_> = std::iter::from_fn(|| driver.used(0)).map(|u| u.1).collect();
        assert_eq!(lens, [0, 0, 0, 72]);
    }
}

/// If it fails, a flood from the host without buffers keeps the loop busy or is lost before the
/// tap is full, or a ring full of tiny pieces breaks the system call.
#[test]
fn frames_wait_for_buffers() {
    let (mut driver, host) = started(MERGEABLE | GUEST_TSO | EVENT_IDX);
    for _ in 0..100 {
        host_sends(&host, &frame(60));
    }
    driver.run();
    driver.is_indirect = true;
    for _ in 0..200 {
        driver.submit(0, &[], &[16; 32]);
    }
    driver.kick(0);
    driver.run();
    let lens: Vec<_> = std::iter::from_fn(|| driver.used(0)).map(|u| u.1).collect();
    assert_eq!(lens, [72; 100]);
    assert_eq!(dropped(&driver), (0, 0));
}

/// If it fails, a reset leaves the device with the old driver's buffers, or without a tap.
#[test]
fn a_reset_forgets_buffers_and_the_device_works_again() {
    let (mut driver, host) = started(MERGEABLE);
    driver.submit(0, &[], &[2000]);
    driver.kick(0);
    driver.run();
    driver.reset();
    host_sends(&host, &frame(60));
    driver.run();
    driver.start(MERGEABLE);
    let request = driver.submit(0, &[], &[2000]);
    driver.kick(0);
    driver.run();
    let (_, len) = driver.used(0).unwrap();
    assert_eq!(driver.reply(&request, len).data[..72], seen(&frame(60), 1));
}

/// If it fails, a host whose end of the network is gone takes the guest or the loop with it.
#[test]
fn a_peer_that_is_gone_costs_frames_only() {
    let (mut driver, host) = started(0);
    driver.submit(0, &[], &[2000]);
    driver.kick(0);
    drop(host);
    driver.run();
    driver.request(TX, &[&frame(60)], &[]);
    assert_eq!(dropped(&driver).1, 1);
    assert!(!driver.needs_reset());
}

/// If it fails, a hostile guest reaches the host through its network device.
#[test]
fn a_hostile_driver_gets_nowhere() {
    let make = || {
        let (tap, host) = pair();
        for _ in 0..3 {
            host_sends(&host, &frame(100));
        }
        std::mem::forget(host);
        net(tap)
    };
    hostile_suite(make, &[0, TX]);
}

/// If it fails, the device does not work on a true tap, or not again after it was down. Skipped
/// where taps are not permitted.
#[test]
fn a_true_tap_goes_down_and_comes_back() {
    let name = format!("cfn{}", std::process::id());
    let tap = match Tap::create(&name, None) {
        Ok(tap) => tap,
        Err(e @ (TapError::Device(_) | TapError::Permission(_))) => {
            return eprintln!("skipped: {e}");
        }
        Err(e) => panic!("{e}"),
    };
    let link = |state| tap::testing::set_up_or_down(&name, state).unwrap();
    let mut driver = MockDriver::started(net(tap), u64::MAX);
    for _ in 0..64 {
        driver.submit(0, &[], &[2000]);
    }
    driver.kick(0);
    let mut arp = vec![0; HEADER];
    arp.extend([0xff; 6]);
    arp.extend([2, 0, 0, 0, 0, 1, 8, 6]);
    arp.resize(HEADER + 60, 0);
    driver.request(TX, &[&arp], &[]);
    assert_eq!(dropped(&driver).1, 0);
    link(false);
    driver.run();
    driver.request(TX, &[&arp], &[]);
    driver.request(TX, &[&arp], &[]);
    assert_eq!(dropped(&driver).1, 2);
    link(true);
    driver.request(TX, &[&arp], &[]);
    assert_eq!(dropped(&driver).1, 2);

    // What the host sends arrives: IPv6 announces itself on an interface that comes up.
    for _ in 0..100 {
        driver.run();
        if let Some((_, len)) = driver.used(0) {
            assert!(len > 12);
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    // An administrator deletes it.
    if tap::testing::delete(&name) {
        driver.run();
        driver.request(TX, &[&arp], &[]);
        assert_eq!(dropped(&driver).1, 3);
    }
    assert!(!driver.needs_reset());
}
