//! Any driver of a network interface, and any frames, from a socket that plays the tap, or any bytes
//! on a stream.

#![no_main]

mod machine;

use std::os::fd::OwnedFd;

use cofferdam_devices::virtio::net::{Backend, Net, NetLimits, NetOptions, Stream, Tap};
use libfuzzer_sys::fuzz_target;
use machine::Op;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

fuzz_target!(|input: (Option<u16>, bool, Vec<Op>)| {
    let (mtu, is_stream, ops) = input;
    let kind = match is_stream {
        true => SocketType::STREAM,
        false => SocketType::SEQPACKET,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (ours, world) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    let backend: Backend = match is_stream {
        true => Stream::new(ours, "world").unwrap().into(),
        false => play_tap(ours).into(),
    };
    let options = NetOptions {
        mac: "02:00:00:00:00:01".parse().unwrap(),
        mtu,
        limits: NetLimits::default(),
    };
    let net = Net::new(vec![backend], &options).unwrap();
    machine::drive(net, ops, |data| {
        // What the guest sent makes room; what arrives from a tap has a header.
        let mut sent = [0; 4096];
        while rustix::net::recv(&world, &mut sent, RecvFlags::TRUNC).is_ok_and(|len| len.1 > 0) {}
        let header: &[u8] = if is_stream { &[] } else { &[0; 12] };
        let _ = rustix::net::send(&world, &[header, data].concat(), SendFlags::NOSIGNAL);
    });
});

/// A socket in place of a tap, which only a build with `--cfg fuzzing` has.
fn play_tap(socket: OwnedFd) -> Tap {
    #[cfg(fuzzing)]
    return Tap::fake(socket);
    #[cfg(not(fuzzing))]
    panic!("{socket:?} is no tap");
}
