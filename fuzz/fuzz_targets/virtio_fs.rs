//! Any driver of a shared directory, and any file-system process: that answers what it likes, has the
//! guest's memory and its kicks, and goes when it likes.

#![no_main]

mod machine;

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use arbitrary::Arbitrary;
use cofferdam_devices::virtio::fs::Fs;
use libfuzzer_sys::fuzz_target;
use machine::{Buffer, Length, Op, Request, Sharing};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// How the process answers a request.
#[derive(Arbitrary, Debug)]
enum Answer {
    /// As it should.
    Good,
    /// With another number than it should.
    Number(u64),
    /// With another header.
    Header([u32; 3]),
    /// With less than that is.
    Cut(Vec<u8>),
    /// Not at all.
    HangUp,
}

/// A FUSE request: a header and room for an answer.
#[derive(Arbitrary, Debug)]
struct FuseRequest {
    queue: u8,
    header: Vec<u8>,
    len: Length,
}

impl Request for FuseRequest {
    fn chain(mut self) -> (u8, Vec<Buffer>) {
        self.header.resize(self.header.len().max(40), 0);
        let answer = Buffer::writable(self.len, Vec::new());
        (self.queue, vec![Buffer::readable(self.header), answer])
    }
}

/// The process: answers as it is told, and then as it should, until somebody hangs up.
fn serve(mut socket: UnixStream, answers: Vec<Answer>) {
    let mut answers = answers.into_iter();
    // What it was given is used as another process would.
    let mut given = Vec::new();
    while let Some((number, flags)) = receive(&socket, &mut given) {
        let is_acknowledged = flags & 8 != 0;
        if !is_acknowledged && !matches!(number, 1 | 11 | 15) {
            continue;
        }
        let mut header = [number, 1 | 4, 8];
        let mut value = match number {
            1 => 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32,
            15 => 8,
            _ => 0,
        };
        match answers.next().unwrap_or(Answer::Good) {
            Answer::Good => {}
            Answer::Number(other) => value = other,
            Answer::Header(other) => header = other,
            Answer::Cut(mut bytes) => {
                bytes.truncate(19);
                let _ = socket.write_all(&bytes);
                break;
            }
            Answer::HangUp => break,
        }
        let mut message = header.map(u32::to_ne_bytes).concat();
        message.extend(value.to_ne_bytes());
        if socket.write_all(&message).is_err() {
            break;
        }
        for event in &given {
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }
    let _ = socket.shutdown(Shutdown::Both);
}

/// The next request's number and flags; its eventfds are added to `given`.
fn receive(mut socket: &UnixStream, given: &mut Vec<OwnedFd>) -> Option<(u32, u32)> {
    let mut header = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut header)];
    let got = recvmsg(socket, &mut parts, &mut control, RecvFlags::WAITALL).ok()?;
    if got.bytes < header.len() {
        return None;
    }
    let [number, flags, len] =
        [0, 4, 8].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap()));
    for message in control.drain() {
        // Memory comes too, which it could do anything with; so does the driver.
        if let RecvAncillaryMessage::ScmRights(files) = message
            && matches!(number, 12 | 13)
        {
            given.extend(files);
        }
    }
    assert!(len < 1024, "a request that no process reads");
    let mut body = vec![0; len as usize];
    socket.read_exact(&mut body).ok()?;
    Some((number, flags))
}

fuzz_target!(|input: (Vec<Answer>, Vec<Op<FuseRequest, Vec<u8>>>)| {
    let (answers, ops) = input;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut end = theirs.try_clone().unwrap();
    let process = thread::spawn(move || serve(theirs, answers));
    if let Ok(fs) = Fs::new("tag", ours, None) {
        let fs = Arc::new(Mutex::new(fs));
        machine::drive_with(Sharing::Shared, fs, ops, |data| match data.as_slice() {
            [] => drop(end.shutdown(Shutdown::Both)),
            // What nobody asked for.
            data => drop(end.write(data)),
        });
    }
    let _ = end.shutdown(Shutdown::Both);
    process.join().unwrap();
});
