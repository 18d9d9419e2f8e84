//! Between the agent and the process that sets a container up: messages, some with descriptors.
//!
//! A message is a line of JSON on a Unix socket.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::spec::{Process, Seccomp, Spec};
use crate::streams::MAX_DESCRIPTORS;

/// What the agent orders. The process's descriptors come with it: the three standard streams, then those of
/// `descriptors`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub task: Task,
    pub process: Process,
    /// The directory of the container's cgroup.
    pub cgroup: String,
    /// Rows and columns of the terminal.
    pub size: Option<(u16, u16)>,
    /// The numbers of its further descriptors.
    pub descriptors: Vec<u32>,
}

/// What the process is to be.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// The first one of a container, whose namespaces and mounts are to be made.
    Create {
        /// Its configuration, without the process.
        spec: Box<Spec>,
        /// The directory where its root is mounted.
        rootfs: String,
        /// The program runs below an init process.
        init: bool,
    },
    /// One more.
    Exec {
        /// The container's first process.
        init: i32,
        /// The kinds of its namespaces, as in the configuration.
        namespaces: Vec<String>,
        /// Its filter.
        seccomp: Option<Seccomp>,
    },
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The process's number, as the agent sees it.
    Pid(i32),
    /// The descriptor with it is the terminal's master.
    Terminal,
    /// All is set up: the process is executed as soon as the agent says [`Go`]. If that fails an
    /// error follows, else the end of the messages.
    Ready,
    /// It is given up.
    Error {
        /// ttrpc's code.
        code: i32,
        /// What, and why.
        text: String,
    },
}

/// The agent's word that the program is to be executed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Go;

/// One end of it.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    /// What was received and not taken yet.
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Channel {
    /// The end that `socket` is.
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            bytes: Vec::new(),
            fds: Vec::new(),
        }
    }

    /// Sends a message, and descriptors with it.
    pub fn send(&mut self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = if fds.is_empty() {
            0
        } else {
            sendmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &[IoSlice::new(&line)],
                &[ControlMessage::ScmRights(&fds)],
                MsgFlags::MSG_NOSIGNAL,
                None,
            )?
        };
        self.socket.write_all(line.get(sent..).unwrap_or_default())
    }

    /// The next message; `None` if the other end is closed.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let message = serde_json::from_slice(self.bytes.get(..end).unwrap_or_default())?;
                self.bytes.drain(..=end);
                return Ok(Some(message));
            }
            if self.fill()? == 0 {
                return Ok(None);
            }
        }
    }

    /// The descriptors that came with the messages so far.
    pub fn take_fds(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.fds)
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let mut space = nix::cmsg_space!([i32; 3 + MAX_DESCRIPTORS]);
        let socket = self.socket.as_raw_fd();
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = loop {
            match recvmsg::<UnixAddr>(socket, &mut iov, Some(&mut space), flags) {
                Err(nix::Error::EINTR) => {}
                result => break result?,
            }
        };
        let count = received.bytes;
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = message {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody
                // else knows of them.
                let owned = fds
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                self.fds.extend(owned);
            }
        }
        self.bytes.extend(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek};
    use std::os::fd::AsFd;
    use std::thread;

    /// If it fails, messages run into each other, long ones break, or descriptors get lost.
    #[test]
    fn messages_and_descriptors_arrive() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Channel::new(a), Channel::new(b));
        let long = "x\n".repeat(300_000);
        let text = long.clone();
        let sender = thread::spawn(move || {
            let (mut read, write) = std::io::pipe().unwrap();
            let reply = Reply::Error { code: 5, text };
            a.send(&reply, &[write.as_fd()]).unwrap();
            a.send(&Go, &[]).unwrap();
            drop((a, write));
            let mut text = String::new();
            read.read_to_string(&mut text).unwrap();
            text
        });
        let Some(Reply::Error { code: 5, text }) = b.receive().unwrap() else {
            panic!("another message");
        };
        assert_eq!(text, long);
        assert!(b.receive::<Go>().unwrap().is_some());
        assert!(b.receive::<Go>().unwrap().is_none());
        let mut fds = b.take_fds();
        assert_eq!(fds.len(), 1);
        let mut file = File::from(fds.pop().unwrap());
        assert!(file.stream_position().is_err());
        file.write_all(b"by the descriptor").unwrap();
        drop(file);
        assert_eq!(sender.join().unwrap(), "by the descriptor");
    }
}
