//! Any driver of a network interface, and any frames, from a socket that plays the tap.

#![no_main]

mod machine;

use std::os::fd::OwnedFd;

use cofferdam_devices::virtio::net::{MacAddress, Net, Tap};
use libfuzzer_sys::fuzz_target;
use machine::Op;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

fuzz_target!(|input: (Option<u16>, Vec<Op>)| {
    let (mtu, ops) = input;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (tap, world) = rustix::net::socketpair(family, kind, flags, None).unwrap();
    let mac: MacAddress = "02:00:00:00:00:01".parse().unwrap();
    machine::drive(Net::new(play_tap(tap), mac, mtu), ops, |data| {
        // What the guest sent makes room; what arrives has a header, as from a tap.
        while rustix::net::recv(&world, &mut [0; 1], RecvFlags::TRUNC).is_ok_and(|len| len.1 > 0) {}
        let frame = [&[0; 12], data].concat();
        let _ = rustix::net::send(&world, &frame, SendFlags::NOSIGNAL);
    });
});

/// A socket in place of a tap, which only a build with `--cfg fuzzing` has.
fn play_tap(socket: OwnedFd) -> Tap {
    #[cfg(fuzzing)]
    return Tap::fake(socket);
    #[cfg(not(fuzzing))]
    panic!("{socket:?} is no tap");
}
