use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use vmm_sys_util::tempdir::TempDir;

use super::connection::BACKLOG;
use super::credit::Receipt;
use super::packet::{
    HEADER, HOST_CID, Header, Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM,
};
use super::*;
use crate::virtio::mock::{MockDriver, Request, hostile_suite};

const RX: usize = 0;
const TX: usize = 1;
const CID: u64 = 3;
/// Room for data that the guest gives in each buffer.
const DATA: usize = 1000;
const GUEST_ALLOC: u32 = 100_000;

/// A guest's kernel, with its machine.
struct Guest {
    driver: MockDriver<Vsock>,
    dir: TempDir,
    /// Receive buffers that the device has.
    buffers: VecDeque<Request>,
    /// What the guest says of its receive buffer.
    receipt: Receipt,
}

impl Guest {
    fn new() -> Self {
        Self::with(u64::MAX)
    }

    /// One that accepts these features.
    fn with(features: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let device = Vsock::new(CID, &dir.as_path().join("v")).unwrap();
        Self {
            driver: MockDriver::started(device, features),
            dir,
            buffers: VecDeque::new(),
            receipt: Receipt {
                alloc: GUEST_ALLOC,
                forwarded: 0,
            },
        }
    }

    /// With plenty of receive buffers.
    fn ready() -> Self {
        let mut guest = Self::new();
        guest.give_buffers(64);
        guest
    }

    fn give_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let sizes = [20, u32::try_from(HEADER + DATA).unwrap() - 20];
            let request = self.driver.submit(RX, &[], &sizes);
            self.buffers.push_back(request);
        }
        self.driver.kick(RX);
        self.driver.run();
    }

    fn header(&self, ports: Ports, op: Op) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: ports.guest,
            dst_port: ports.host,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            receipt: self.receipt,
        }
    }

    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        let (first, second) = data.split_at(data.len() / 3);
        let reply = self
            .driver
            .request(TX, &[&header.encode(), first, second], &[]);
        assert_eq!(reply.len, 0);
    }

    fn send(&mut self, ports: Ports, op: Op) {
        let header = self.header(ports, op);
        self.send_raw(&header, &[]);
    }

    fn send_data(&mut self, ports: Ports, data: &[u8]) {
        let len = data.len().try_into().unwrap();
        let header = self.header(ports, Op::Data);
        self.send_raw(&Header { len, ..header }, data);
    }

    fn shut_down(&mut self, ports: Ports, flags: u32) {
        let header = self.header(ports, Op::Shutdown);
        self.send_raw(&Header { flags, ..header }, &[]);
    }

    /// The next packet for the guest, which gives its buffer again.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.driver.run();
        let (head, len) = self.driver.used(RX)?;
        let request = self.buffers.pop_front().unwrap();
        assert_eq!(head, u32::from(request.head));
        let bytes = self.driver.reply(&request, len).data;
        let header = Header::decode(bytes[..HEADER].try_into().unwrap());
        assert_eq!(len as usize, HEADER + header.len as usize);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        let data = bytes[HEADER..len as usize].to_vec();
        self.give_buffers(1);
        Some((header, data))
    }

    /// The next packet, which has no data.
    #[track_caller]
    fn expect(&mut self, op: Op) -> Header {
        let (header, data) = self.receive().expect("no packet");
        assert_eq!((header.op, data.len()), (op, 0));
        header
    }

    #[track_caller]
    fn expect_nothing(&mut self) {
        assert!(
            self.receive()
                .is_none_or(|(header, _)| panic!("{header:?}"))
        );
    }

    fn path(&self) -> PathBuf {
        self.dir.as_path().join("v")
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.as_path().join(format!("v_{port}"))).unwrap()
    }

    /// A connection that the guest made from this port of its own, and its end on the host.
    fn connected(&mut self, guest: u32) -> (Ports, UnixStream) {
        let ports = Ports { host: 5000, guest };
        let listener = self.listen(5000);
        self.send(ports, Op::Request);
        let header = self.expect(Op::Response);
        assert_eq!((header.src_port, header.dst_port), (5000, guest));
        assert_eq!(header.receipt.alloc, BACKLOG);
        let (stream, _) = listener.accept().unwrap();
        std::fs::remove_file(self.dir.as_path().join("v_5000")).unwrap();
        stream.set_nonblocking(true).unwrap();
        (ports, stream)
    }

    fn connections(&self) -> usize {
        self.driver.device.lock().unwrap().hub.count()
    }
}

/// All that is in a socket, and whether that is the end.
fn drain(mut stream: &UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let is_end = stream.read_to_end(&mut bytes).is_ok();
    (bytes, is_end)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}

/// If it fails, the guest has another address than it was given.
#[test]
fn the_guest_is_told_its_address() {
    let mut guest = Guest::new();
    assert_eq!(guest.driver.config(0, 10), [3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.driver.config(1 << 20, 4), [0; 4]);
    assert_eq!(guest.driver.offered() & 1, 1);
}

/// If it fails, a guest's program cannot reach one of the host's, or what they say is changed.
#[test]
fn the_guest_connects_and_both_talk() {
    let mut guest = Guest::ready();
    let (ports, mut stream) = guest.connected(77);
    for len in [1, 32, 5000, 60_000] {
        guest.send_data(ports, &pattern(len));
        assert_eq!(drain(&stream), (pattern(len), false));
    }
    guest.expect(Op::CreditUpdate);
    for len in [1, DATA, DATA + 1, 20 * DATA + 7] {
        stream.write_all(&pattern(len)).unwrap();
        let mut got = Vec::new();
        while let Some((header, data)) = guest.receive() {
            assert_eq!(header.op, Op::Data);
            got.extend(data);
        }
        assert_eq!(got, pattern(len));
        guest.receipt.forwarded += u32::try_from(len).unwrap();
        guest.send(ports, Op::CreditUpdate);
    }
    guest.shut_down(ports, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    assert_eq!(drain(&stream), (vec![], true));
    assert_eq!(guest.connections(), 0);
}

/// If it fails, a program of the host's cannot reach one of the guest's, or what it sends right
/// behind its CONNECT is lost.
#[test]
fn the_host_connects_and_both_talk() {
    let mut guest = Guest::ready();
    let mut stream = UnixStream::connect(guest.path()).unwrap();
    guest.expect_nothing();
    stream.write_all(b"CONNE").unwrap();
    guest.expect_nothing();
    stream.write_all(b"CT 52\nhello").unwrap();
    let header = guest.expect(Op::Request);
    assert_eq!(header.dst_port, 52);
    let ports = Ports {
        host: header.src_port,
        guest: 52,
    };
    guest.expect_nothing();
    guest.send(ports, Op::Response);
    let (header, data) = guest.receive().unwrap();
    assert_eq!((header.op, data), (Op::Data, b"hello".to_vec()));
    stream.set_nonblocking(true).unwrap();
    let ok = format!("OK {}\n", ports.host);
    assert_eq!(drain(&stream), (ok.into_bytes(), false));
    guest.send_data(ports, b"bye");
    assert_eq!(drain(&stream), (b"bye".to_vec(), false));
    drop(stream);
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    guest.send(ports, Op::Reset);
    guest.expect_nothing();
    assert_eq!(guest.connections(), 0);
}

/// If it fails, a program that has said all before the guest accepts never gets an answer from a guest
/// that waits for the end of the question.
#[test]
fn an_end_before_the_guest_accepts_is_an_end() {
    let mut guest = Guest::ready();
    for question in [&b""[..], b"question"] {
        let mut stream = UnixStream::connect(guest.path()).unwrap();
        stream.write_all(b"CONNECT 7\n").unwrap();
        stream.write_all(question).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let request = guest.expect(Op::Request);
        let ports = Ports {
            host: request.src_port,
            guest: 7,
        };
        guest.send(ports, Op::Response);
        if !question.is_empty() {
            assert_eq!(guest.receive().unwrap().1, question);
        }
        assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
        guest.send_data(ports, b"answer");
        guest.send(ports, Op::Reset);
        let answer = format!("OK {}\nanswer", ports.host);
        assert_eq!(drain(&stream), (answer.into_bytes(), true));
    }
}

/// If it fails, a client waits for a port that the guest has refused, or one without a line is
/// connected.
#[test]
fn what_the_guest_refuses_is_closed() {
    let mut guest = Guest::ready();
    let mut stream = UnixStream::connect(guest.path()).unwrap();
    stream.write_all(b"CONNECT 52\n").unwrap();
    let header = guest.expect(Op::Request);
    let ports = Ports {
        host: header.src_port,
        guest: 52,
    };
    guest.send(ports, Op::Reset);
    stream.set_nonblocking(true).unwrap();
    assert_eq!(drain(&stream), (vec![], true));
    let mut stream = UnixStream::connect(guest.path()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\n").unwrap();
    guest.expect_nothing();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(guest.connections(), 0);
}

/// If it fails, packets that belong to nothing are not answered, or a reset is answered by another
/// without end.
#[test]
fn what_belongs_to_nothing_is_reset() {
    let mut guest = Guest::ready();
    let ports = Ports {
        host: 5000,
        guest: 1,
    };
    for op in [
        Op::Request,
        Op::Response,
        Op::Shutdown,
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
        Op::Unknown(99),
    ] {
        guest.send(ports, op);
        let reset = guest.expect(Op::Reset);
        assert_eq!((reset.src_port, reset.dst_port), (5000, 1));
    }
    guest.send(ports, Op::Reset);
    let header = guest.header(ports, Op::Request);
    guest.send_raw(
        &Header {
            src_cid: 9,
            ..header
        },
        &[],
    );
    guest.expect_nothing();
    let listener = guest.listen(5000);
    guest.send_raw(&Header { kind: 2, ..header }, &[]);
    assert_eq!(guest.expect(Op::Reset).kind, 2);
    guest.send(ports, Op::Request);
    guest.expect(Op::Response);
    guest.send(ports, Op::Request);
    guest.expect(Op::Reset);
    drop(listener);
    assert_eq!(guest.connections(), 0);
}

/// If it fails, what a stalled program does not read is lost, or takes more memory than its share,
/// or stops other connections.
#[test]
fn a_stalled_reader_holds_up_nobody_else() {
    let mut guest = Guest::ready();
    let (stalled, slow) = guest.connected(1);
    let (other, quick) = guest.connected(2);
    let mut receipt = Receipt {
        alloc: BACKLOG,
        forwarded: 0,
    };
    let mut sent = 0u32;
    let chunk = pattern(8192);
    // Until the guest has no credit any more.
    loop {
        let held = sent.wrapping_sub(receipt.forwarded);
        if held + 8192 > receipt.alloc {
            break;
        }
        guest.send_data(stalled, &chunk);
        sent += 8192;
        while let Some((header, _)) = guest.receive() {
            assert_eq!(header.op, Op::CreditUpdate);
            receipt = header.receipt;
        }
    }
    guest.send_data(other, b"still here");
    assert_eq!(drain(&quick), (b"still here".to_vec(), false));
    (&quick).write_all(b"and here").unwrap();
    assert_eq!(guest.receive().unwrap().1, b"and here");
    // The program reads again, and gets all of it; the guest learns that there is room.
    let mut got = Vec::new();
    while got.len() < sent as usize {
        let (bytes, is_end) = drain(&slow);
        assert!(!bytes.is_empty() && !is_end);
        got.extend(bytes);
        guest.driver.run();
    }
    assert!(got.chunks(8192).all(|part| part == chunk));
    let header = guest.expect(Op::CreditUpdate);
    assert_eq!(header.receipt.forwarded, sent);
    guest.expect_nothing();
    guest.send(stalled, Op::CreditRequest);
    guest.expect(Op::CreditUpdate);
}

/// If it fails, a guest that ignores its credit fills the host's memory.
#[test]
fn a_guest_that_ignores_its_credit_is_cut_off() {
    let mut guest = Guest::ready();
    let (ports, stream) = guest.connected(1);
    let chunk = vec![0; 32 << 10];
    let is_reset = (0..1000).any(|_| {
        guest.send_data(ports, &chunk);
        guest
            .receive()
            .is_some_and(|(header, _)| header.op == Op::Reset)
    });
    assert!(is_reset && guest.connections() == 0);
    let (bytes, is_end) = drain(&stream);
    assert!(is_end && bytes.len() < 1 << 20);
}

/// If it fails, more is sent to the guest than it has room for, or a stream does not go on when
/// there is room again.
#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut guest = Guest::ready();
    guest.receipt.alloc = 2500;
    let (ports, mut stream) = guest.connected(1);
    stream.write_all(&pattern(6000)).unwrap();
    let mut got = Vec::new();
    for round in 1.. {
        while let Some((header, data)) = guest.receive() {
            got.extend(data);
            if header.op == Op::CreditRequest {
                break;
            }
        }
        guest.expect_nothing();
        assert_eq!(got.len(), 6000.min(2500 * round));
        if got.len() == 6000 {
            break;
        }
        guest.receipt.forwarded = got.len().try_into().unwrap();
        guest.send(ports, Op::CreditUpdate);
    }
    assert_eq!(got, pattern(6000));
}

/// If it fails, packets wait for ever when the guest runs out of receive buffers, or one connection
/// gets all of them.
#[test]
fn without_buffers_all_wait_and_then_take_turns() {
    let mut guest = Guest::ready();
    let mut streams: Vec<_> = (1..4).map(|port| guest.connected(port)).collect();
    while !guest.buffers.is_empty() {
        // Answers use the buffers up, and are not given back.
        let header = guest.header(Ports { host: 1, guest: 1 }, Op::Data);
        guest.send_raw(&header, &[]);
        guest.driver.used(RX).unwrap();
        guest.buffers.pop_front();
    }
    for (_, stream) in &mut streams {
        stream.write_all(&pattern(3 * DATA)).unwrap();
    }
    guest.driver.run();
    assert_eq!(guest.driver.used(RX), None);
    guest.give_buffers(3);
    let mut ports = Vec::new();
    for _ in 0..3 {
        let (head, _) = guest.driver.used(RX).unwrap();
        let request = guest.buffers.pop_front().unwrap();
        assert_eq!(head, u32::from(request.head));
        let bytes = guest.driver.reply(&request, 0).data;
        ports.push(Header::decode(bytes[..HEADER].try_into().unwrap()).dst_port);
    }
    ports.sort_unstable();
    assert_eq!(ports, [1, 2, 3]);
}

/// If it fails, a guest that takes no answers makes us remember more and more of them, or is not
/// served any more when it takes them.
#[test]
fn answers_that_nobody_takes_are_bounded() {
    let mut guest = Guest::new();
    let ports = Ports { host: 1, guest: 1 };
    let header = guest.header(ports, Op::Data).encode();
    for _ in 0..4 {
        for _ in 0..100 {
            guest.driver.submit(TX, &[&header], &[]);
        }
        guest.driver.kick(TX);
        guest.driver.run();
    }
    let mut answered = 0;
    let used = |guest: &mut Guest, queue| std::iter::from_fn(|| guest.driver.used(queue)).count();
    assert_eq!(used(&mut guest, TX), 256);
    while answered < 400 {
        guest.give_buffers(10);
        answered += used(&mut guest, RX);
    }
    assert_eq!(used(&mut guest, TX), 400 - 256);
}

/// If it fails, the end of one direction ends the other, or is told before the last data.
#[test]
fn each_direction_is_closed_on_its_own() {
    let mut guest = Guest::ready();
    let (ports, mut stream) = guest.connected(1);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive().unwrap().1, b"question");
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
    guest.send_data(ports, b"answer");
    guest.shut_down(ports, SHUTDOWN_SEND);
    assert_eq!(drain(&stream), (b"answer".to_vec(), true));
    drop(stream);
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    guest.send(ports, Op::Reset);

    let (ports, mut stream) = guest.connected(2);
    guest.send_data(ports, b"question");
    guest.shut_down(ports, SHUTDOWN_SEND);
    assert_eq!(drain(&stream), (b"question".to_vec(), true));
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.receive().unwrap().1, b"answer");
    guest.shut_down(ports, SHUTDOWN_RECEIVE);
    guest.expect(Op::Reset);
    guest.expect_nothing();
    assert_eq!(guest.connections(), 0);
}

/// If it fails, a connection that both have closed keeps a CPU busy until the guest reads what is left
/// (found by fuzzing).
#[test]
fn what_is_closed_and_not_read_makes_no_noise() {
    let mut guest = Guest::ready();
    let (ports, mut stream) = guest.connected(1);
    guest.receipt.alloc = 0;
    guest.send(ports, Op::CreditUpdate);
    stream.write_all(b"too much").unwrap();
    guest.expect(Op::CreditRequest);
    guest.shut_down(ports, SHUTDOWN_SEND);
    drop(stream);
    guest.driver.run();
    guest.receipt.alloc = GUEST_ALLOC;
    guest.send(ports, Op::CreditUpdate);
    assert_eq!(guest.receive().unwrap().1, b"too much");
}

/// If it fails, what the guest sent before it closed is lost to a program that reads slowly, or a
/// closed connection keeps its ports.
#[test]
fn what_was_sent_before_the_end_arrives() {
    let mut guest = Guest::ready();
    let (ports, stream) = guest.connected(1);
    let mut sent = 0;
    let mut forwarded = 0;
    while sent - forwarded + 8192 <= BACKLOG {
        guest.send_data(ports, &pattern(8192));
        sent += 8192;
        while let Some((header, _)) = guest.receive() {
            forwarded = header.receipt.forwarded;
        }
    }
    guest.shut_down(ports, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    assert_eq!(guest.connections(), 1);
    let (again, other) = guest.connected(1);
    guest.send_data(again, b"new");
    assert_eq!(drain(&other).0, b"new");
    let mut got = 0;
    loop {
        let (bytes, is_end) = drain(&stream);
        got += bytes.len();
        guest.driver.run();
        if is_end {
            break;
        }
    }
    assert_eq!(got, sent as usize);
    assert_eq!(guest.connections(), 1);
}

/// If it fails, a program of the host's that dies leaves the guest waiting, or stops the device.
#[test]
fn a_program_that_dies_is_told_to_the_guest() {
    let mut guest = Guest::ready();
    // With data that it sent and nobody has read yet.
    let (ports, mut stream) = guest.connected(1);
    stream.write_all(&pattern(3 * DATA)).unwrap();
    drop(stream);
    for _ in 0..3 {
        assert_eq!(guest.receive().unwrap().1.len(), DATA);
    }
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    // The guest has not seen that yet.
    guest.send_data(ports, b"too late");
    guest.expect_nothing();
    guest.shut_down(ports, SHUTDOWN_BOTH);
    guest.expect(Op::Reset);
    // With data of the guest's that it has not read.
    let (ports, stream) = guest.connected(2);
    guest.send_data(ports, b"unread");
    drop(stream);
    guest.expect(Op::Reset);
    // With more of it on the way.
    let (ports, stream) = guest.connected(3);
    for _ in 0..8 {
        guest.send_data(ports, &pattern(8192));
    }
    while guest.receive().is_some() {}
    drop(stream);
    guest.expect(Op::Reset);
    guest.expect_nothing();
    assert_eq!(guest.connections(), 0);
}

/// If it fails, a guest has as many of the host's descriptors as it likes, or descriptors are lost.
#[test]
fn connections_are_bounded_and_leave_nothing_behind() {
    let mut guest = Guest::ready();
    let listener = guest.listen(1);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = descriptors();
    for round in 0..3 {
        let mut clients = Vec::new();
        let limit = 100;
        for port in 0..limit {
            guest.send(
                Ports {
                    host: 1,
                    guest: port,
                },
                Op::Request,
            );
            guest.expect(Op::Response);
            clients.push(listener.accept().unwrap());
        }
        for port in 0..limit {
            guest.send(
                Ports {
                    host: 1,
                    guest: port,
                },
                Op::Reset,
            );
        }
        drop(clients);
        if round == 0 {
            // Other tests of this program have descriptors, too.
            before = before.max(descriptors());
        }
    }
    assert_eq!(guest.connections(), 0);
    assert!(descriptors() < before + 100);
}

/// If it fails, connections survive the guest that made them, or the next guest does not work.
#[test]
fn a_reset_ends_all_connections() {
    let mut guest = Guest::ready();
    let (_, stream) = guest.connected(1);
    let mut client = UnixStream::connect(guest.path()).unwrap();
    client.write_all(b"CONN").unwrap();
    guest.driver.run();
    guest.driver.reset();
    assert_eq!(drain(&stream), (vec![], true));
    // It waits for the next guest.
    let mut early = UnixStream::connect(guest.path()).unwrap();
    early.write_all(b"CONNECT 9\n").unwrap();
    guest.driver.run();
    assert!(client.read(&mut [0]).is_ok_and(|n| n == 0) || client.write(b"x").is_err());
    guest.driver.start(u64::MAX);
    guest.buffers.clear();
    guest.give_buffers(10);
    assert_eq!(guest.expect(Op::Request).dst_port, 9);
    let (ports, stream) = guest.connected(1);
    guest.send_data(ports, b"again");
    assert_eq!(drain(&stream), (b"again".to_vec(), false));
}

/// If it fails, two VMs share a socket, a socket is left behind or somebody else's file removed, or
/// a bad address or path is found out too late.
#[test]
fn the_socket_comes_and_goes_with_the_device() {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().join("v");
    let device = Vsock::new(CID, &path).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let error = Vsock::new(CID, &path).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    drop(device);
    assert!(!path.exists());
    // Left by one that was killed.
    drop(UnixListener::bind(&path).unwrap());
    drop(Vsock::new(CID, &path).unwrap());
    std::fs::write(&path, "mine").unwrap();
    assert!(Vsock::new(CID, &path).is_err() && path.exists());
    for cid in [0, 1, 2, 0xffff_ffff, u64::MAX] {
        assert!(matches!(check(cid, &path), Err(VsockError::Cid(_))));
    }
    let long = PathBuf::from("x".repeat(MAX_PATH - MAX_SUFFIX + 1));
    assert!(matches!(
        check(3, &long),
        Err(VsockError::PathTooLong { .. })
    ));
}

/// If it fails, packets that no driver makes reach further than the device.
#[test]
fn packets_that_cannot_be_stop_the_device() {
    for (len, packet) in [(0, HEADER - 1), (1, HEADER), (u32::MAX, HEADER + 10)] {
        let mut guest = Guest::ready();
        let header = guest.header(Ports { host: 1, guest: 1 }, Op::Data);
        let mut bytes = Header { len, ..header }.encode().to_vec();
        bytes.resize(packet, 0);
        guest.driver.submit(TX, &[&bytes], &[]);
        guest.driver.kick(TX);
        guest.driver.run();
        assert!(guest.driver.needs_reset());
    }
    let mut guest = Guest::new();
    guest
        .driver
        .submit(RX, &[], &[u32::try_from(HEADER).unwrap()]);
    guest.send(Ports { host: 1, guest: 1 }, Op::Data);
    assert!(guest.driver.needs_reset());
}

/// If it fails, a hostile guest reaches the host, or keeps it busy.
#[test]
fn a_hostile_driver_gets_nowhere() {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().join("v");
    let clients = std::cell::RefCell::new(Vec::new());
    let make = || {
        clients.borrow_mut().clear();
        let device = Vsock::new(CID, &path).unwrap();
        // So that there is something for the receive queue.
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"CONNECT 1\n").unwrap();
        clients.borrow_mut().push(client);
        device
    };
    hostile_suite(make, &[RX, TX]);
}

/// If it fails, each packet of the guest's costs it an interrupt, or it never learns what became of
/// the last ones.
#[test]
fn the_guest_is_told_late_that_its_packets_were_taken() {
    let mut guest = Guest::with(0);
    guest.give_buffers(64);
    let (ports, mut stream) = guest.connected(1);
    std::thread::sleep(2 * LATE);
    guest.driver.run();
    guest.driver.interrupts();
    guest.send_data(ports, b"ping");
    assert_eq!(guest.driver.interrupts(), 0);
    std::thread::sleep(2 * LATE);
    guest.driver.run();
    assert_eq!(guest.driver.interrupts(), 1);
    // Not later than anything else that it is told.
    guest.send_data(ports, b"ping");
    stream.write_all(b"pong").unwrap();
    guest.driver.run();
    assert_eq!(guest.driver.interrupts(), 1);
    std::thread::sleep(2 * LATE);
    guest.driver.run();
    assert_eq!(guest.driver.interrupts(), 0);
}
