use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::mock::{EVENT_IDX, MockDriver, hostile_suite};

/// A message as the file-system process gets it: request, body, descriptors.
type Message = (u32, Vec<u8>, Vec<OwnedFd>);

/// The other end of the protocol: agrees to everything, until it hangs up.
struct Process {
    messages: Receiver<Message>,
    thread: JoinHandle<()>,
    socket: UnixStream,
}

impl Process {
    /// A process that hangs up instead of answering request number `dies_at`.
    fn new(dies_at: u32) -> (Fs, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sender, messages) = channel();
        let socket = theirs.try_clone().unwrap();
        let thread = thread::spawn(move || serve(theirs, dies_at, &sender));
        let fs = Fs::new("data", ours, None).unwrap();
        let process = Self {
            messages,
            thread,
            socket,
        };
        (fs, process)
    }

    /// Dies; returns what it was told.
    fn die(self) -> Vec<Message> {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
        self.thread.join().unwrap();
        self.messages.iter().collect()
    }
}

fn serve(mut socket: UnixStream, dies_at: u32, sender: &Sender<Message>) {
    while let Some((request, body, files)) = receive(&socket) {
        if request == dies_at {
            socket.shutdown(std::net::Shutdown::Both).unwrap();
            return;
        }
        let answer: u64 = match request {
            // Protocol features, VERSION_1, and those of the rings.
            1 => 1 << 30 | 1 << 32 | FEATURES,
            // Reply acknowledgements among others.
            15 => 0xffff,
            _ => 0,
        };
        // Nothing asks for an answer before acknowledgements are agreed on.
        if !matches!(request, 3 | 16) {
            let mut message: Vec<u8> = [request, 1 | 4, 8]
                .into_iter()
                .flat_map(u32::to_ne_bytes)
                .collect();
            message.extend(answer.to_ne_bytes());
            socket.write_all(&message).unwrap();
        }
        sender.send((request, body, files)).unwrap();
    }
}

fn receive(socket: &UnixStream) -> Option<Message> {
    let mut message = [0; 512];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut message[..12])];
    let got = recvmsg(socket, &mut parts, &mut control, RecvFlags::WAITALL).ok()?;
    if got.bytes < 12 {
        return None;
    }
    let files = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect(),
            _ => Vec::new(),
        })
        .collect();
    let word = |at| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
    let (request, len) = (word(0), word(8) as usize);
    let mut body = vec![0; len];
    io::Read::read_exact(&mut &*socket, &mut body).ok()?;
    Some((request, body, files))
}

/// A FUSE request of this number, with nothing in it but its header.
fn header(unique: u64) -> Vec<u8> {
    let mut header = vec![0; IN_HEADER];
    header[8..16].copy_from_slice(&unique.to_le_bytes());
    header
}

/// What a request gets that cannot be served.
fn io_error(unique: u64) -> Vec<u8> {
    let mut answer = Vec::new();
    answer.extend(16u32.to_le_bytes());
    answer.extend((-5i32).to_le_bytes());
    answer.extend(unique.to_le_bytes());
    answer
}

/// Waits until the device saw that its process is gone.
fn settle(driver: &mut MockDriver<Fs>) {
    for _ in 0..500 {
        driver.run();
        if driver.device.lock().unwrap().backend.is_none() {
            return driver.run();
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("the device does not see that its process is gone");
}

/// If it fails, the process gets other queues than the driver set up, or none of its kicks.
#[test]
fn the_process_gets_memory_queues_and_kicks() {
    let (fs, process) = Process::new(0);
    let mut driver = MockDriver::started(fs, u64::MAX);
    assert_eq!(&driver.config(0, 6), b"data\0\0");
    assert_eq!(driver.config(36, 6), [1, 0, 0, 0, 0, 0]);
    driver.kick(1);
    driver.run();
    assert!(!driver.needs_reset());

    let messages = process.die();
    let numbers: Vec<u32> = messages.iter().map(|message| message.0).collect();
    let queue = [8, 10, 9, 13, 12, 18];
    let expected = [&[3, 1, 15, 16, 2, 5][..], &queue, &queue].concat();
    assert_eq!(numbers, expected);
    let (_, table, files) = &messages[5];
    assert_eq!((table.len(), files.len()), (8 + 2 * 32, 2));
    for (message, queue) in [(&messages[10], 0u64), (&messages[16], 1)] {
        assert_eq!(message.1, queue.to_ne_bytes());
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(&message.2[0], &mut count), Ok(8));
        assert!(u64::from_ne_bytes(count) >= 1);
    }
    settle(&mut driver);
}

/// If it fails, whoever waits in the guest for a process that was killed waits for ever.
#[test]
fn a_dead_process_is_an_io_error() {
    for features in [0, EVENT_IDX] {
        let (fs, process) = Process::new(0);
        let mut driver = MockDriver::started(fs, features);
        let requests: Vec<_> = (1..=3)
            .map(|unique| driver.submit(1, &[&header(unique)], &[16, 4096]))
            .collect();
        let forget = driver.submit(0, &[&header(9)], &[]);
        driver.kick(1);
        driver.run();
        assert_eq!(driver.used(1), None);
        // The process answered one of them before it died.
        let used = driver.rings[1].device;
        driver.mem.write_obj(1u16, GuestAddress(used + 2)).unwrap();
        let _ = driver.used(1);

        process.die();
        settle(&mut driver);
        assert!(driver.interrupts() > 0);
        for (unique, request) in (2..).zip(&requests[1..]) {
            let (head, len) = driver.used(1).unwrap();
            assert_eq!(head, u32::from(request.head));
            assert_eq!(driver.reply(request, len).data[..16], io_error(unique));
            assert_eq!(len, OUT_HEADER);
        }
        assert_eq!(driver.used(0), Some((forget.head.into(), 0)));
        // And so it goes on, after a reset too.
        for _ in 0..2 {
            let reply = driver.request(1, &[&header(77)], &[8, 8, 64]);
            assert_eq!((reply.len, &reply.data[..16]), (16, &io_error(77)[..]));
            assert!(!driver.needs_reset());
            driver.reset();
            driver.start(features);
        }
    }
}

/// If it fails, a process that dies while the driver starts or resets the device hangs the monitor.
#[test]
fn a_process_may_die_at_any_request() {
    for request in [2, 5, 8, 9, 10, 11, 12, 13, 18] {
        let (fs, _process) = Process::new(request);
        let mut driver = MockDriver::started(fs, 0);
        driver.submit(1, &[&header(1)], &[16]);
        driver.kick(1);
        driver.run();
        driver.reset();
        driver.start(0);
        settle(&mut driver);
        let reply = driver.request(1, &[&header(5)], &[16]);
        assert_eq!(reply.data, io_error(5));
    }
}

/// If it fails, the driver resets a device whose process goes on with the old queues.
#[test]
fn a_reset_takes_the_queues_back() {
    let (fs, process) = Process::new(0);
    let mut driver = MockDriver::started(fs, 0);
    driver.reset();
    driver.start(0);
    let messages = process.die();
    let count = |number| messages.iter().filter(|m| m.0 == number).count();
    // Each queue was stopped, and started twice.
    assert_eq!((count(11), count(12)), (2, 4));
}

/// If it fails, what is no file-system process becomes a device that cannot work.
#[test]
fn who_does_not_speak_the_protocol_is_refused() {
    for answer in [&[][..], &[0; 12], &[1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 1]] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let error = Fs::new("data", ours, None).unwrap_err();
        assert!(matches!(error, FsError::Backend { .. }), "{error}");
    }
}

/// If it fails, a hostile guest reaches the monitor through a device that has lost its process.
#[test]
fn a_hostile_driver_gets_nowhere() {
    let dead = || {
        let (fs, process) = Process::new(0);
        process.die();
        fs
    };
    hostile_suite(dead, &[0, 1]);
}
