//! Any driver of a network interface with one queue pair or several, and any frames, from sockets that
//! play the tap's queues, or any bytes on a stream.

#![no_main]

mod machine;

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;

use arbitrary::Arbitrary;
use cofferdam_devices::virtio::net::{Backend, Net, NetLimits, NetOptions, Stream, Tap};
use cofferdam_devices::virtio::rate_limit::{Rate, RateLimits};
use libfuzzer_sys::fuzz_target;
use machine::{Buffer, Length, Op, Request};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};

/// Bytes of virtio's header of a frame.
const HEADER: usize = 12;

/// What kind of interface it is.
#[derive(Arbitrary, Debug)]
struct Kind {
    mtu: Option<u16>,
    is_stream: bool,
    pairs: u8,
    is_limited: bool,
}

impl Kind {
    /// The interface, and the world behind each of its queue pairs.
    fn device(&self) -> (Net, Vec<OwnedFd>) {
        let (count, kind) = match self.is_stream {
            true => (1, SocketType::STREAM),
            false => (1 + self.pairs % 2, SocketType::SEQPACKET),
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let pair = |_| rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        let (ours, world): (Vec<_>, Vec<_>) = (0..count).map(pair).unzip();
        let backend = |socket| match self.is_stream {
            true => Backend::from(Stream::new(socket, "world").unwrap()),
            false => Backend::from(play_tap(socket)),
        };
        let limits = RateLimits {
            // A small frame at a time, and the next after a millisecond.
            bytes: self.is_limited.then_some(Rate {
                per_second: const { NonZeroU64::new(64_000).unwrap() },
                burst: const { NonZeroU64::new(64).unwrap() },
            }),
            ..RateLimits::default()
        };
        let options = NetOptions {
            mac: "02:00:00:00:00:01".parse().unwrap(),
            mtu: self.mtu,
            limits: NetLimits {
                rx: limits,
                tx: limits,
            },
        };
        let backends = ours.into_iter().map(backend).collect();
        (Net::new(backends, &options).unwrap(), world)
    }
}

/// A frame, room for one, or a command.
#[derive(Arbitrary, Debug)]
enum NetRequest {
    Room {
        pair: bool,
        buffers: Vec<Length>,
    },
    Frame {
        pair: bool,
        header: [u8; HEADER],
        frame: Vec<u8>,
        len: Length,
    },
    Command {
        queue: u8,
        class: u8,
        command: u8,
        pairs: u8,
    },
}

impl Request for NetRequest {
    fn chain(self) -> (u8, Vec<Buffer>) {
        match self {
            Self::Room { pair, buffers } => {
                let buffers = buffers
                    .into_iter()
                    .map(|len| Buffer::writable(len, Vec::new()));
                (2 * u8::from(pair), buffers.collect())
            }
            Self::Frame {
                pair,
                header,
                frame,
                len,
            } => {
                let frame = Buffer::readable_of(len, frame);
                let header = Buffer::readable(header.into());
                (1 + 2 * u8::from(pair), vec![header, frame])
            }
            Self::Command {
                queue,
                class,
                command,
                pairs,
            } => {
                // Most commands are for the number of pairs: class 4, command 0.
                let words = [class % 8, command % 2, pairs, 0];
                let (head, count) = words.split_at(2);
                let answer = Buffer::writable(Length::Small(1), Vec::new());
                let [head, count] = [head, count].map(|bytes| Buffer::readable(bytes.into()));
                (queue, vec![head, count, answer])
            }
        }
    }
}

/// What the world does.
#[derive(Arbitrary, Debug)]
enum Event {
    /// A frame, as a good host sends it.
    Frame {
        pair: bool,
        frame: Vec<u8>,
    },
    /// A long one.
    Long {
        pair: bool,
        len: u16,
    },
    /// Anything.
    Bytes {
        pair: bool,
        bytes: Vec<u8>,
    },
    /// Takes what the guest sent.
    Take {
        pair: bool,
    },
    Close {
        pair: bool,
    },
}

fuzz_target!(|input: (Kind, Vec<Op<NetRequest, Event>>)| {
    let (kind, ops) = input;
    let (net, world) = kind.device();
    let queue = |pair: bool| world.get(usize::from(pair)).unwrap_or(&world[0]);
    let send = |pair, bytes: &[u8]| {
        let _ = rustix::net::send(queue(pair), bytes, SendFlags::NOSIGNAL);
    };
    // What comes from a tap has a header; on a stream a frame has its length.
    let send_frame = |pair, frame: &[u8]| {
        let len = u32::try_from(frame.len()).unwrap().to_be_bytes();
        let before = if kind.is_stream {
            &len[..]
        } else {
            &[0; HEADER]
        };
        send(pair, &[before, frame].concat());
    };
    machine::drive(net, ops, |event| match event {
        Event::Frame { pair, frame } => send_frame(pair, &frame),
        Event::Long { pair, len } => send_frame(pair, &vec![0x5a; len.into()]),
        Event::Bytes { pair, bytes } => send(pair, &bytes),
        Event::Take { pair } => {
            let mut sent = [0; 4096];
            for _ in 0..16 {
                let _ = rustix::net::recv(queue(pair), &mut sent, RecvFlags::DONTWAIT);
            }
        }
        Event::Close { pair } => drop(rustix::net::shutdown(queue(pair), Shutdown::Both)),
    });
});

/// A socket in place of a tap, which only a build with `--cfg fuzzing` has.
fn play_tap(socket: OwnedFd) -> Tap {
    #[cfg(fuzzing)]
    return Tap::fake(socket);
    #[cfg(not(fuzzing))]
    panic!("{socket:?} is no tap");
}
