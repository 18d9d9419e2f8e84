//! The device on a stream: frames in any pieces, frames that nobody finishes, and a bad peer.

use super::*;

/// A device on a stream, and the other end of it.
fn on_stream() -> (Net, OwnedFd) {
    let kind = (AddressFamily::UNIX, SocketType::STREAM);
    let (ours, peer) = socketpair(kind.0, kind.1, SocketFlags::CLOEXEC, None).unwrap();
    rustix::io::ioctl_fionbio(&peer, true).unwrap();
    let stream = Stream::new(ours, "peer").unwrap();
    (with_mtu(stream, Some(65520)), peer)
}

fn started_on_stream(features: u64) -> (MockDriver<Net>, OwnedFd) {
    let (net, peer) = on_stream();
    (MockDriver::started(net, features), peer)
}

/// `len` bytes that tell their place, as the stream has them.
fn on_wire(len: usize) -> Vec<u8> {
    let mut wire = u32::try_from(len).unwrap().to_be_bytes().to_vec();
    wire.extend((0..=252).cycle().take(len));
    wire
}

/// The same as the guest has it, when it came in `buffers` buffers.
fn in_guest(len: usize, buffers: u16) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame[10..].copy_from_slice(&buffers.to_le_bytes());
    frame.extend((0..=252).cycle().take(len));
    frame
}

/// All that the peer has got.
fn drain(peer: &OwnedFd, into: &mut Vec<u8>) {
    let mut piece = vec![0; 1 << 16];
    while let Ok(len @ 1..) = rustix::io::read(peer, &mut piece[..]) {
        into.extend(&piece[..len]);
    }
}

/// The frames of a stream, which must be whole.
fn frames(mut wire: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((prefix, rest)) = wire.split_first_chunk() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*prefix) as usize);
        frames.push(frame);
        wire = rest;
    }
    frames
}

fn used_lens(driver: &mut MockDriver<Net>) -> Vec<u32> {
    std::iter::from_fn(|| driver.used(0))
        .map(|used| used.1)
        .collect()
}

/// If it fails, what passt sends arrives changed, or only if the socket gives it in one piece.
#[test]
fn frames_from_the_stream_come_in_any_pieces() {
    for features in [0, u64::MAX] {
        for piece in [1, 3, 4, 5, 1000, 100_000] {
            let (mut driver, peer) = started_on_stream(features);
            let lens = [60, 14, 1514, 20_000];
            let requests = lens.map(|_| driver.submit(0, &[], &[5, 7, 100, 20_000]));
            driver.kick(0);
            let wire: Vec<u8> = lens.into_iter().flat_map(on_wire).collect();
            for piece in wire.chunks(piece) {
                assert_eq!(rustix::io::write(&peer, piece).unwrap(), piece.len());
                driver.run();
            }
            for (request, len) in requests.iter().zip(lens) {
                let (head, used) = driver.used(0).unwrap();
                assert_eq!((head, used as usize), (request.head.into(), HEADER + len));
                let data = driver.reply(request, used).data;
                assert!(
                    data[..used as usize] == in_guest(len, 1),
                    "{len} in {piece}"
                );
            }
            assert_eq!(dropped(&driver), (0, 0));
        }
    }
}

/// If it fails, frames are spread over buffers wrongly, or wait for more room than they take.
#[test]
fn a_frame_from_the_stream_takes_the_room_that_it_needs() {
    let (mut driver, peer) = started_on_stream(MERGEABLE);
    let requests: Vec<_> = (0..3).map(|_| driver.submit(0, &[], &[1000])).collect();
    driver.kick(0);
    rustix::io::write(&peer, &on_wire(2500)).unwrap();
    driver.run();
    let mut data = Vec::new();
    for request in &requests {
        let (_, len) = driver.used(0).unwrap();
        data.extend_from_slice(&driver.reply(request, len).data[..len as usize]);
    }
    assert!(data == in_guest(2500, 3));
}

/// If it fails, one frame that is longer than the guest's buffers stops or breaks what follows.
#[test]
fn a_frame_that_is_too_long_is_skipped() {
    for features in [0, MERGEABLE] {
        let (mut driver, peer) = started_on_stream(features);
        for _ in 0..2 {
            driver.submit(0, &[], &[1000]);
        }
        driver.kick(0);
        driver.run();
        let wire = [on_wire(60_000), on_wire(60)].concat();
        assert_eq!(rustix::io::write(&peer, &wire).unwrap(), wire.len());
        driver.run();
        driver.kick(0);
        driver.run();
        assert_eq!(dropped(&driver), (1, 0));
        // Without merging the chain that was too small comes back empty.
        let expected: &[u32] = if features == 0 { &[0, 72] } else { &[72] };
        assert_eq!(used_lens(&mut driver), expected);
    }
}

/// If it fails, frames are lost, cut or reordered when the socket takes a part of one, or the loop
/// is busy until it takes the rest.
#[test]
fn a_full_stream_is_waited_for() {
    let (mut driver, peer) = started_on_stream(EVENT_IDX);
    let lens: Vec<_> = (0..60).map(|i| 60_000 + i).collect();
    for &len in &lens {
        let (head, body) = (vec![0xff; HEADER], on_wire(len));
        let (body, tail) = body[4..].split_at(30);
        driver.submit(TX, &[&head, body, tail], &[]);
    }
    driver.kick(TX);
    driver.run();
    let mut wire = Vec::new();
    for _ in 0..1000 {
        drain(&peer, &mut wire);
        driver.run();
    }
    assert!(wire == lens.into_iter().flat_map(on_wire).collect::<Vec<_>>());
    assert_eq!(std::iter::from_fn(|| driver.used(TX)).count(), 60);
    assert_eq!(dropped(&driver), (0, 0));
}

/// If it fails, passt gets frames that it cannot take.
#[test]
fn what_is_no_frame_does_not_go_to_the_stream() {
    let (mut driver, peer) = started_on_stream(0);
    for len in [0, 13, 65_536] {
        driver.request(TX, &[&vec![0; HEADER + len]], &[]);
    }
    driver.request(TX, &[&[0; HEADER + 14]], &[]);
    let mut wire = Vec::new();
    drain(&peer, &mut wire);
    assert_eq!(frames(&wire), [[0; 14]]);
    assert_eq!(dropped(&driver), (0, 3));
}

/// If it fails, a guest that resets its driver in the middle of a frame has no network afterwards,
/// or gets half of an old frame.
#[test]
fn a_reset_in_the_middle_of_a_frame_leaves_the_stream_whole() {
    for done in [0, 2, 4, 5, 700] {
        let (mut driver, peer) = started_on_stream(MERGEABLE);
        driver.submit(0, &[], &[2000]);
        driver.kick(0);
        let wire = on_wire(1000);
        rustix::io::write(&peer, &wire[..done]).unwrap();
        driver.run();
        for i in 0..20u8 {
            driver.submit(TX, &[&[0; HEADER], &[i; 60_000]], &[]);
        }
        driver.kick(TX);
        driver.run();
        driver.reset();
        rustix::io::write(&peer, &wire[done..]).unwrap();
        driver.start(MERGEABLE);
        for _ in 0..3 {
            driver.submit(0, &[], &[2000]);
        }
        driver.kick(0);
        rustix::io::write(&peer, &on_wire(60)).unwrap();
        driver.run();
        // A frame of which no more than the length was read is nobody's yet.
        let expected: &[u32] = if done > 4 { &[72] } else { &[1012, 72] };
        assert_eq!(used_lens(&mut driver), expected, "{done}");

        driver.submit(TX, &[&[0; HEADER], &[0xee; 100]], &[]);
        driver.kick(TX);
        let mut wire = Vec::new();
        for _ in 0..100 {
            drain(&peer, &mut wire);
            driver.run();
        }
        let frames = frames(&wire);
        let (last, others) = frames.split_last().unwrap();
        assert_eq!(*last, [0xee; 100]);
        assert!(others.iter().all(|frame| frame.len() == 60_000));
        assert!(others.len() < 20);
    }
}

/// If it fails, a peer that ends, or that sends what is no frame, takes the guest or the loop with
/// it, or the guest does not learn that its link is down.
#[test]
fn a_bad_peer_or_none_takes_the_link_down() {
    for bad in [None, Some(0u32), Some(13), Some(65_536), Some(u32::MAX)] {
        for buffers in [0, 4] {
            let (mut driver, peer) = started_on_stream(0);
            for _ in 0..buffers {
                driver.submit(0, &[], &[2000]);
            }
            driver.kick(0);
            driver.run();
            assert_eq!(driver.config(6, 2), [1, 0]);
            driver.interrupts();
            match bad {
                Some(len) => assert_eq!(rustix::io::write(&peer, &len.to_be_bytes()), Ok(4)),
                None => drop(peer),
            }
            driver.run();
            assert_eq!(driver.config(6, 2), [0, 0], "{bad:?}, {buffers} buffers");
            assert_eq!(driver.interrupts(), 1);
            driver.request(TX, &[&[0; 100]], &[]);
            assert_eq!(dropped(&driver), (0, 1));
            driver.reset();
            driver.start(0);
            assert_eq!(driver.config(6, 2), [0, 0]);
            assert!(!driver.needs_reset());
        }
    }
}

/// If it fails, the driver leaves checksums undone that nobody will do.
#[test]
fn a_stream_offers_no_offloads() {
    let (mut driver, _peer) = started_on_stream(0);
    let offloads = GUEST_OFFLOADS.iter().chain(&HOST_OFFLOADS);
    let offered = driver.offered();
    assert!(
        offloads
            .map(|(bit, _)| bit)
            .all(|bit| offered & 1 << bit == 0)
    );
}

/// If it fails, a hostile guest reaches the host through a stream.
#[test]
fn a_hostile_driver_gets_nowhere() {
    let make = || {
        let (net, peer) = on_stream();
        for _ in 0..3 {
            rustix::io::write(&peer, &on_wire(100)).unwrap();
        }
        std::mem::forget(peer);
        net
    };
    hostile_suite(make, &[0, TX]);
}
