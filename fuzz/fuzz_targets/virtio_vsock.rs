//! Any driver of the socket device, and any programs on the host: that connect, listen, send, stop
//! reading, and go.

#![no_main]

mod machine;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use cofferdam_devices::virtio::vsock::Vsock;
use libfuzzer_sys::fuzz_target;
use machine::{Buffer, Length, Op, Request};
use vmm_sys_util::tempdir::TempDir;

const CID: u64 = 3;
/// Bytes of a packet's header.
const HEADER: usize = 44;
/// The first port of the host's that a connection to the guest comes from.
const FIRST_PORT: u32 = 1 << 30;

/// The device's socket, and programs that listen for the guest at ports 0 and 1.
static HOST: LazyLock<(PathBuf, [UnixListener; 2])> = LazyLock::new(|| {
    let dir = TempDir::new_with_prefix(std::env::temp_dir().join("vsock")).unwrap();
    // It is needed as long as the process lives.
    let path = dir.as_path().join("v");
    std::mem::forget(dir);
    let listeners = [0, 1].map(|port| {
        let listener = UnixListener::bind(format!("{}_{port}", path.display())).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    });
    (path, listeners)
});

/// What the guest puts into its queues.
#[derive(Arbitrary, Debug)]
enum Packet {
    /// Room for packets.
    Room { len: Length },
    /// A packet that may belong to something.
    Good {
        op: u8,
        ports: (u8, u8),
        flags: u8,
        alloc: Length,
        forwarded: Length,
        data: Vec<u8>,
    },
    /// Any header.
    Any { header: Vec<u8>, data: Vec<u8> },
}

impl Request for Packet {
    fn chain(self) -> (u8, Vec<Buffer>) {
        match self {
            Self::Room { len } => (0, vec![Buffer::writable(len, Vec::new())]),
            Self::Good {
                op,
                ports: (guest, host),
                flags,
                alloc,
                forwarded,
                data,
            } => {
                let mut header = [CID, 2].map(u64::to_le_bytes).concat();
                let base = if host < 0x80 { 0 } else { FIRST_PORT };
                for value in [
                    (guest & 3).into(),
                    base + u32::from(host & 3),
                    data.len().try_into().unwrap(),
                    1 | u32::from(op % 9) << 16,
                    flags.into(),
                    alloc.bytes(),
                    forwarded.bytes(),
                ] {
                    header.extend(value.to_le_bytes());
                }
                (1, vec![Buffer::readable(header), Buffer::readable(data)])
            }
            Self::Any { mut header, data } => {
                header.resize(HEADER, 0);
                (1, vec![Buffer::readable(header), Buffer::readable(data)])
            }
        }
    }
}

/// What programs on the host do.
#[derive(Arbitrary, Debug)]
enum Deed {
    /// Connects to a port of the guest's.
    Connect {
        port: u8,
    },
    /// Connects, and says something else.
    Babble {
        text: Vec<u8>,
    },
    /// Takes what the guest connected to one of the listeners.
    Accept {
        port: u8,
    },
    Send {
        program: u8,
        data: Vec<u8>,
    },
    /// Sends much of it.
    Flood {
        program: u8,
    },
    Receive {
        program: u8,
    },
    Close {
        program: u8,
        how: u8,
    },
}

/// The programs that are connected.
#[derive(Default)]
struct Programs(Vec<UnixStream>);

impl Programs {
    fn new() -> Self {
        let programs = Self::default();
        // Those that a guest before this one connected to.
        for listener in &HOST.1 {
            while listener.accept().is_ok() {}
        }
        programs
    }

    fn act(&mut self, deed: Deed) {
        match deed {
            Deed::Connect { port } => self.connect(format!("CONNECT {}\n", port & 3).as_bytes()),
            Deed::Babble { text } => self.connect(&text),
            Deed::Accept { port } => {
                if let Ok((stream, _)) = HOST.1[usize::from(port & 1)].accept() {
                    self.add(stream);
                }
            }
            Deed::Send { program, data } => {
                if let Some(stream) = self.get(program) {
                    let _ = stream.write(&data);
                }
            }
            Deed::Flood { program } => {
                if let Some(stream) = self.get(program) {
                    let _ = stream.write(&[7; 0x8000]);
                }
            }
            Deed::Receive { program } => {
                if let Some(stream) = self.get(program) {
                    let _ = stream.read(&mut [0; 0x4000]);
                }
            }
            Deed::Close { program, how } => match how & 3 {
                0 if self.get(program).is_some() => {
                    let number = usize::from(program) % self.0.len();
                    self.0.swap_remove(number);
                }
                how => {
                    let how =
                        [Shutdown::Both, Shutdown::Read, Shutdown::Write][usize::from(how) % 3];
                    if let Some(stream) = self.get(program) {
                        let _ = stream.shutdown(how);
                    }
                }
            },
        }
    }

    fn connect(&mut self, text: &[u8]) {
        // More would wait for the device to let them in, for ever.
        if self.0.len() < 32
            && let Ok(mut stream) = UnixStream::connect(&HOST.0)
        {
            let _ = stream.set_nonblocking(true);
            let _ = stream.write(text);
            self.0.push(stream);
        }
    }

    fn add(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).unwrap();
        self.0.push(stream);
    }

    fn get(&mut self, program: u8) -> Option<&mut UnixStream> {
        let number = usize::from(program).checked_rem(self.0.len())?;
        self.0.get_mut(number)
    }
}

/// What a guest and a program do that get along: room for packets, and a connection of each to the
/// other.
fn connections() -> Vec<Op<Packet, Deed>> {
    let packet = |op, ports| {
        Op::Request(Packet::Good {
            op,
            ports,
            flags: 0,
            alloc: Length::Any(1 << 16),
            forwarded: Length::Small(0),
            data: Vec::new(),
        })
    };
    let room = || {
        Op::Request(Packet::Room {
            len: Length::Page(0x1000),
        })
    };
    let mut ops: Vec<_> = (0..16).map(|_| room()).collect();
    ops.extend([
        packet(1, (0, 0)),
        Op::Run,
        Op::Arrive(Deed::Accept { port: 0 }),
        Op::Arrive(Deed::Connect { port: 1 }),
        Op::Run,
        packet(2, (1, 0x80)),
        Op::Run,
    ]);
    ops
}

fuzz_target!(|input: (bool, Vec<Op<Packet, Deed>>)| {
    let (is_connected, ops) = input;
    let mut programs = Programs::new();
    let device = Vsock::new(CID, &HOST.0).unwrap();
    let mut all = match is_connected {
        true => connections(),
        false => Vec::new(),
    };
    all.extend(ops);
    machine::drive(device, all, |deed| programs.act(deed));
});
