//! The vhost-user protocol, the front end's side: hands a device's queues, and the memory they lie
//! in, to another process over a Unix socket.
//!
//! Our own rather than the `vhost` crate's front end, because each request here has a deadline: the
//! crate waits for ever for a process that is stopped, and the guest's resets would wait with it.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Interrupt, VirtQueue};
use crate::GuestMemory;

/// How long the other process may take for one request. A request that stops a queue waits for the
/// batch in hand.
const PATIENCE: Duration = Duration::from_secs(10);

/// Version 1 of the protocol, in the flags of each message.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
/// Flag: this message answers another.
const REPLY: u32 = 1 << 2;
/// Flag: the request is to be answered even if it is only to say that it went well.
const NEED_REPLY: u32 = 1 << 3;

/// Feature bit VHOST_USER_F_PROTOCOL_FEATURES, which no driver sees.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VHOST_USER_PROTOCOL_F_REPLY_ACK.
const REPLY_ACK: u64 = 1 << 3;

/// Regions of memory that one table has room for.
const MAX_REGIONS: usize = 8;

/// A request: its number, and its name for messages.
#[derive(Clone, Copy, Debug)]
struct Request(u32, &'static str);

const GET_FEATURES: Request = Request(1, "GET_FEATURES");
const SET_FEATURES: Request = Request(2, "SET_FEATURES");
const SET_OWNER: Request = Request(3, "SET_OWNER");
const SET_MEM_TABLE: Request = Request(5, "SET_MEM_TABLE");
const SET_VRING_NUM: Request = Request(8, "SET_VRING_NUM");
const SET_VRING_ADDR: Request = Request(9, "SET_VRING_ADDR");
const SET_VRING_BASE: Request = Request(10, "SET_VRING_BASE");
const GET_VRING_BASE: Request = Request(11, "GET_VRING_BASE");
const SET_VRING_KICK: Request = Request(12, "SET_VRING_KICK");
const SET_VRING_CALL: Request = Request(13, "SET_VRING_CALL");
const GET_PROTOCOL_FEATURES: Request = Request(15, "GET_PROTOCOL_FEATURES");
const SET_PROTOCOL_FEATURES: Request = Request(16, "SET_PROTOCOL_FEATURES");
const SET_VRING_ENABLE: Request = Request(18, "SET_VRING_ENABLE");

/// Why the other process cannot serve the device any more.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// A request could not be sent.
    #[error("cannot send {request}")]
    Send {
        /// The request's name.
        request: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No answer came, or not in time.
    #[error("no answer to {request}")]
    Answer {
        /// The request's name.
        request: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What came is no answer to what was asked.
    #[error("the answer to {0} is none")]
    Protocol(&'static str),
    /// The other process cannot do what it was asked for.
    #[error("{0} was refused")]
    Refused(&'static str),
    /// The host has no event file descriptor, or KVM does not take it.
    #[error("the host has no interrupt for another process to ring")]
    Interrupt(#[source] io::Error),
    /// Guest memory is not of a kind that another process can map.
    #[error("guest memory cannot be shared with another process")]
    Memory,
}

/// The other process, which serves a device's queues.
#[derive(Debug)]
pub struct Backend {
    socket: UnixStream,
    /// What it offers, VHOST_USER_F_PROTOCOL_FEATURES included.
    features: u64,
    /// It says how each request went.
    has_acks: bool,
}

impl Backend {
    /// Agrees with the process at the other end of `socket` on how to talk.
    pub fn new(socket: UnixStream) -> Result<Self, VhostUserError> {
        let source = |source| VhostUserError::Send {
            request: SET_OWNER.1,
            source,
        };
        socket.set_read_timeout(Some(PATIENCE)).map_err(source)?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(source)?;
        let mut backend = Self {
            socket,
            features: 0,
            has_acks: false,
        };
        backend.set(SET_OWNER, &[], &[])?;
        backend.features = backend.get(GET_FEATURES, &[])?;
        if backend.has_protocol_features() {
            let wanted = backend.get(GET_PROTOCOL_FEATURES, &[])? & REPLY_ACK;
            backend.set(SET_PROTOCOL_FEATURES, &wanted.to_ne_bytes(), &[])?;
            backend.has_acks = wanted != 0;
        }
        Ok(backend)
    }

    /// The features that it offers to a driver.
    pub fn features(&self) -> u64 {
        self.features & !PROTOCOL_FEATURES
    }

    /// Its end of the connection: it hangs up when the process ends.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Hands it the queues, which begin anew, with the driver's features.
    pub fn start(
        &self,
        mem: &GuestMemory,
        features: u64,
        queues: &[VirtQueue],
        interrupt: &Interrupt,
    ) -> Result<(), VhostUserError> {
        let protocol = self.features & PROTOCOL_FEATURES;
        self.set(SET_FEATURES, &(features | protocol).to_ne_bytes(), &[])?;
        self.set_memory(mem)?;
        for (index, queue) in (0u32..).zip(queues) {
            self.start_queue(mem, index, queue, interrupt)?;
        }
        Ok(())
    }

    /// Takes `count` queues back: when this returns, the process touches none of them any more.
    pub fn stop(&self, count: u32) -> Result<(), VhostUserError> {
        for index in 0..count {
            self.get(GET_VRING_BASE, &words([index, 0]))?;
        }
        Ok(())
    }

    /// Ends the connection. Its socket hangs up, for the event loop to see.
    pub fn hang_up(&self) {
        // Fails only if it has hung up already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn has_protocol_features(&self) -> bool {
        self.features & PROTOCOL_FEATURES != 0
    }

    fn start_queue(
        &self,
        mem: &GuestMemory,
        index: u32,
        queue: &VirtQueue,
        interrupt: &Interrupt,
    ) -> Result<(), VhostUserError> {
        let layout = queue.layout();
        self.set(SET_VRING_NUM, &words([index, layout.size.into()]), &[])?;
        self.set(SET_VRING_BASE, &words([index, 0]), &[])?;
        let mut body = words([index, 0]);
        // Used before available, then an address for a log that nobody keeps.
        for part in [layout.descriptors, layout.device, layout.driver] {
            body.extend(host_address(mem, part)?.to_ne_bytes());
        }
        body.extend(0u64.to_ne_bytes());
        self.set(SET_VRING_ADDR, &body, &[])?;
        let number = u64::from(index).to_ne_bytes();
        let call = interrupt.irqfd().map_err(VhostUserError::Interrupt)?;
        self.set_fd(SET_VRING_CALL, &number, call.as_raw_fd())?;
        self.set_fd(SET_VRING_KICK, &number, queue.kick().as_raw_fd())?;
        if self.has_protocol_features() {
            self.set(SET_VRING_ENABLE, &words([index, 1]), &[])?;
        }
        Ok(())
    }

    fn set_memory(&self, mem: &GuestMemory) -> Result<(), VhostUserError> {
        let count = u32::try_from(mem.num_regions()).map_err(|_| VhostUserError::Memory)?;
        let mut body = words([count, 0]);
        let mut files = Vec::new();
        for region in mem.iter() {
            let file = region.file_offset().ok_or(VhostUserError::Memory)?;
            let start = region.start_addr();
            for field in [
                start.raw_value(),
                region.len(),
                host_address(mem, start)?,
                file.start(),
            ] {
                body.extend(field.to_ne_bytes());
            }
            files.push(file.file().as_fd());
        }
        if files.len() > MAX_REGIONS {
            return Err(VhostUserError::Memory);
        }
        self.set(SET_MEM_TABLE, &body, &files)
    }

    fn set_fd(&self, request: Request, body: &[u8], fd: RawFd) -> Result<(), VhostUserError> {
        // SAFETY: the descriptor is an eventfd that the caller holds a reference to during the call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        self.set(request, body, &[fd])
    }

    /// A request that changes something.
    fn set(
        &self,
        request: Request,
        body: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> Result<(), VhostUserError> {
        let flags = if self.has_acks { NEED_REPLY } else { 0 };
        self.send(request, flags, body, files)?;
        if self.has_acks && self.answer(request)? != 0 {
            return Err(VhostUserError::Refused(request.1));
        }
        Ok(())
    }

    /// A request that asks for 64 bits.
    fn get(&self, request: Request, body: &[u8]) -> Result<u64, VhostUserError> {
        self.send(request, 0, body, &[])?;
        self.answer(request)
    }

    fn send(
        &self,
        request: Request,
        flags: u32,
        body: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> Result<(), VhostUserError> {
        // Bounded by what a table of memory regions takes.
        let len = u32::try_from(body.len()).unwrap_or_default();
        let mut message = words([request.0, VERSION | flags, len]);
        message.extend(body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REGIONS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(files));
        }
        let parts = [IoSlice::new(&message)];
        let sent = sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL);
        let source = match sent {
            Ok(sent) if sent == message.len() => return Ok(()),
            // A message of at most 300 bytes does not go out in parts unless nobody reads.
            Ok(_) => io::ErrorKind::WriteZero.into(),
            Err(errno) => errno.into(),
        };
        Err(VhostUserError::Send {
            request: request.1,
            source,
        })
    }

    /// Waits for the answer to `request`: 64 bits.
    fn answer(&self, request: Request) -> Result<u64, VhostUserError> {
        let failed = |source| VhostUserError::Answer {
            request: request.1,
            source,
        };
        let (mut header, mut body) = ([[0; 4]; 3], [0; 8]);
        (&self.socket)
            .read_exact(header.as_flattened_mut())
            .map_err(failed)?;
        let [number, flags, len] = header.map(u32::from_ne_bytes);
        if number != request.0 || flags & (VERSION_MASK | REPLY) != VERSION | REPLY || len != 8 {
            return Err(VhostUserError::Protocol(request.1));
        }
        (&self.socket).read_exact(&mut body).map_err(failed)?;
        Ok(u64::from_ne_bytes(body))
    }
}

/// Words as they go over the socket: in the machine's order.
fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// The front end's own address of a guest address: the name that the protocol knows it by.
fn host_address(mem: &GuestMemory, address: GuestAddress) -> Result<u64, VhostUserError> {
    mem.get_host_address(address)
        .map(|pointer| pointer.addr() as u64)
        .map_err(|_| VhostUserError::Memory)
}
