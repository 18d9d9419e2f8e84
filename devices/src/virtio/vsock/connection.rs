//! One connection: a Unix socket on the host's side, packets on the guest's.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use event_manager::EventSet;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown};

use super::credit::{OwnCredit, PeerCredit};
use super::packet::{Header, Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::virtio::Buffers;

/// Bytes from the guest that we hold at most while the host's program does not read.
pub(super) const BACKLOG: u32 = 64 << 10;
/// Chains that one read fills at most.
const MAX_APPETITE: usize = 16;

/// What has to become of a connection after a packet of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Keep,
    /// The guest is done with it, and is answered by a reset; what it sent still goes to the host.
    Part,
    /// It ends at once, and the guest gets a reset.
    Reset,
    /// It ends at once, and the guest knows.
    Drop,
}

/// What the guest gets next.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A packet without data.
    Control(Header),
    /// Up to so many bytes of what is in the socket.
    Data(u32),
}

/// How far the making of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest has to answer our REQUEST until then.
    Requested(Instant),
    /// Data may flow.
    Open,
}

/// A connection between a program of the guest's and one of the host's.
#[derive(Debug)]
pub(super) struct Connection {
    cid: u64,
    ports: Ports,
    phase: Phase,
    /// Nothing once the host's program has closed its end for both directions.
    socket: Option<OwnedFd>,
    own: OwnCredit,
    peer: PeerCredit,
    /// From the guest, not yet taken by the socket; never more than our credit allows.
    backlog: VecDeque<u8>,
    /// REQUEST or RESPONSE, to be sent before all else.
    greeting: Option<Op>,
    /// The guest asked where we are.
    is_update_asked: bool,
    /// We asked the guest for credit, and it gave none yet.
    has_asked: bool,
    /// The socket may have bytes, or its end, for us.
    is_readable: bool,
    /// The host's program has closed one direction at least, or may have: a short read is not the last.
    is_ending: bool,
    /// It has closed both.
    is_gone: bool,
    /// What the guest said in SHUTDOWN.
    guest_closed: u32,
    /// What we have to say in SHUTDOWN for the host, and what of that we said.
    host_closed: u32,
    told: u32,
    /// Directions in which the socket is shut down: once, for each time the event loop says so again.
    shut: u32,
    /// Chains to be filled by the next read: more while reads fill them all.
    appetite: usize,
    /// Whether the guest has let go of it, and only the backlog is left to be written.
    pub(super) is_parted: bool,
    /// Whether the event loop tells when the socket has room.
    pub(super) watches_room: bool,
    /// Whether it waits for its turn.
    pub(super) is_listed: bool,
}

impl Connection {
    /// One that the guest asked for by `request`, on a socket that is connected.
    pub(super) fn accepted(request: &Header, socket: OwnedFd) -> Self {
        let (cid, ports) = (request.src_cid, request.ports());
        let mut new = Self::new(cid, ports, socket, Phase::Open, Op::Response);
        new.peer.update(request.receipt);
        new
    }

    /// One that a program of the host's asked for, which the guest has to accept by `deadline`.
    pub(super) fn requested(cid: u64, ports: Ports, socket: OwnedFd, deadline: Instant) -> Self {
        Self {
            // What came right behind the CONNECT is not announced again, an end neither.
            is_readable: true,
            is_ending: true,
            ..Self::new(cid, ports, socket, Phase::Requested(deadline), Op::Request)
        }
    }

    fn new(cid: u64, ports: Ports, socket: OwnedFd, phase: Phase, greeting: Op) -> Self {
        Self {
            cid,
            ports,
            phase,
            socket: Some(socket),
            own: OwnCredit::new(BACKLOG),
            peer: PeerCredit::default(),
            backlog: VecDeque::new(),
            greeting: Some(greeting),
            is_update_asked: false,
            has_asked: false,
            is_readable: false,
            is_ending: false,
            is_gone: false,
            guest_closed: 0,
            host_closed: 0,
            told: 0,
            shut: 0,
            appetite: 1,
            is_parted: false,
            watches_room: false,
            is_listed: false,
        }
    }

    /// Its name.
    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// The host's side, while there is one.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Gives the socket away: to be closed by whoever can.
    pub(super) fn take_socket(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }

    /// When the guest must have answered.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Requested(deadline) => Some(deadline),
            Phase::Open => None,
        }
    }

    /// Whether nobody on the host's side will send or receive any more, so that the socket can go.
    pub(super) fn is_host_closed(&self) -> bool {
        self.host_closed == SHUTDOWN_BOTH
    }

    /// Whether bytes wait for room in the socket.
    pub(super) fn wants_room(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// The guest sent a packet, with `data` if it is one of data.
    pub(super) fn receive(&mut self, header: &Header, data: &mut Buffers) -> Verdict {
        self.peer.update(header.receipt);
        if self.peer.available() > 0 {
            self.has_asked = false;
        }
        match (header.op, self.phase) {
            (Op::Response, Phase::Requested(_)) => self.answered(),
            (Op::Reset, _) => Verdict::Drop,
            (Op::Shutdown, Phase::Open) => self.guest_closes(header.flags),
            (Op::Data, Phase::Open) => self.take_data(data),
            (Op::CreditUpdate, Phase::Open) => Verdict::Keep,
            (Op::CreditRequest, Phase::Open) => {
                self.is_update_asked = true;
                Verdict::Keep
            }
            // Also a REQUEST for what is there already: one of the two is not the guest's any more.
            _ => Verdict::Reset,
        }
    }

    /// The guest accepts what the host's program asked for.
    fn answered(&mut self) -> Verdict {
        self.phase = Phase::Open;
        let text = format!("OK {}\n", self.ports.host);
        let sent = self
            .socket()
            .map(|socket| rustix::net::send(socket, text.as_bytes(), SendFlags::NOSIGNAL));
        match sent {
            // Nothing was sent before, so there is room for it or nobody to read it.
            Some(Ok(count)) if count == text.len() => Verdict::Keep,
            _ => Verdict::Reset,
        }
    }

    fn guest_closes(&mut self, flags: u32) -> Verdict {
        self.guest_closed |= flags & SHUTDOWN_BOTH;
        if self.guest_closed & SHUTDOWN_RECEIVE != 0 {
            self.shut(SHUTDOWN_RECEIVE);
            self.notice_end();
        }
        if self.guest_closed & SHUTDOWN_SEND != 0 && self.backlog.is_empty() {
            self.shut(SHUTDOWN_SEND);
        }
        match self.guest_closed {
            SHUTDOWN_BOTH => Verdict::Part,
            _ => Verdict::Keep,
        }
    }

    /// The host's program is told. If it is gone there is nobody to tell.
    fn shut(&mut self, direction: u32) {
        let how = match direction {
            SHUTDOWN_SEND => Shutdown::Write,
            _ => Shutdown::Read,
        };
        if let Some(socket) = self.socket().filter(|_| self.shut & direction == 0) {
            let _ = rustix::net::shutdown(socket, how);
        }
        self.shut |= direction;
    }

    /// Data goes straight from guest memory into the socket, as far as that has room.
    fn take_data(&mut self, data: &mut Buffers) -> Verdict {
        // No packet is longer than 32 bits can say.
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if self.guest_closed & SHUTDOWN_SEND != 0 || !self.own.receive(len) {
            return Verdict::Reset;
        }
        if self.backlog.is_empty() {
            self.write(data);
        }
        if !data.is_empty() {
            self.keep(data);
        }
        Verdict::Keep
    }

    /// What the socket does not take now is held. Apart from the rest, for clearing the buffer would cost
    /// more than all of that.
    #[cold]
    fn keep(&mut self, data: &mut Buffers) {
        let mut bytes = [0; 4096];
        loop {
            match data.read(&mut bytes) {
                0 => return,
                count => self.backlog.extend(bytes.get(..count).unwrap_or_default()),
            }
        }
    }

    /// Writes what the socket takes. Nothing is left of `data` if nobody will ever read it.
    fn write(&mut self, data: &mut Buffers) {
        let before = data.len();
        let result = match &self.socket {
            Some(socket) if self.host_closed & SHUTDOWN_RECEIVE == 0 => {
                data.send_to(socket.as_fd())
            }
            _ => Err(ErrorKind::BrokenPipe.into()),
        };
        if result.is_err_and(|error| !is_passing(&error)) {
            data.truncate(0);
            self.host_stops_reading();
        }
        self.own.forward(before - data.len());
    }

    /// The socket has room for some of the backlog.
    fn flush(&mut self) {
        while let Some(socket) = &self.socket
            && !self.backlog.is_empty()
        {
            let (front, back) = self.backlog.as_slices();
            let pieces = [IoSlice::new(front), IoSlice::new(back)];
            let mut control = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(socket, &pieces, &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    self.own.forward(count);
                }
                Err(error) if is_passing(&error.into()) => return,
                Err(_) => self.host_stops_reading(),
            }
        }
        // Gives the memory back: most connections never need it.
        self.backlog = VecDeque::new();
        if self.guest_closed & SHUTDOWN_SEND != 0 {
            self.shut(SHUTDOWN_SEND);
        }
    }

    /// What the guest sent and sends is lost, as on any connection whose other end is closed.
    fn host_stops_reading(&mut self) {
        self.host_closed |= SHUTDOWN_RECEIVE;
        self.own.forward(self.backlog.len());
        self.backlog = VecDeque::new();
    }

    /// The event loop says something about the socket.
    pub(super) fn host_event(&mut self, events: EventSet) {
        let ending = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        self.is_readable |= events.intersects(EventSet::IN | ending);
        self.is_ending |= events.intersects(ending);
        self.is_gone |= events.contains(EventSet::HANG_UP);
        self.notice_end();
        if events.intersects(EventSet::OUT | ending) {
            self.flush();
        }
    }

    /// Whoever has closed both directions, and has nothing in the socket that anybody wants, is
    /// gone.
    fn notice_end(&mut self) {
        let is_read =
            (self.host_closed & SHUTDOWN_SEND | self.guest_closed & SHUTDOWN_RECEIVE) != 0;
        if self.is_gone && is_read {
            self.host_closed = SHUTDOWN_BOTH;
            self.host_stops_reading();
        }
    }

    /// A read that had `room` was made; false if the connection is broken.
    pub(super) fn has_read(&mut self, result: &io::Result<usize>, room: usize) -> bool {
        match result {
            Ok(0) => {
                self.host_closed |= SHUTDOWN_SEND;
                self.notice_end();
            }
            Ok(count) => {
                self.peer.sent(u32::try_from(*count).unwrap_or(u32::MAX));
                let is_full = *count >= room;
                self.is_readable = is_full || self.is_ending;
                self.appetite = match is_full {
                    true => MAX_APPETITE.min(4 * self.appetite),
                    false => 1,
                };
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.is_readable = false;
                self.is_ending = false;
                self.appetite = 1;
            }
            // Its program died with what the guest sent unread.
            Err(_) => return false,
        }
        true
    }

    /// Chains that the next read should have room in.
    pub(super) fn appetite(&self) -> usize {
        self.appetite
    }

    fn has_data(&self) -> bool {
        self.is_readable
            && self.socket.is_some()
            && (self.guest_closed & SHUTDOWN_RECEIVE | self.host_closed & SHUTDOWN_SEND) == 0
    }

    /// Whether there is something to send to the guest.
    pub(super) fn wants_turn(&self) -> bool {
        if self.greeting.is_some() || self.is_parted {
            return !self.is_parted;
        }
        self.phase == Phase::Open
            && (self.has_data() && (self.peer.available() > 0 || !self.has_asked)
                || self.host_closed != self.told
                || self.is_update_asked
                || self.own.is_update_due())
    }

    /// What to send to the guest next. What it returns is as good as sent.
    pub(super) fn next_packet(&mut self) -> Option<Outgoing> {
        if !self.wants_turn() {
            return None;
        }
        if let Some(op) = self.greeting.take() {
            return Some(Outgoing::Control(self.header(op)));
        }
        if self.has_data() {
            match self.peer.available() {
                0 if self.has_asked => {}
                0 => {
                    self.has_asked = true;
                    return Some(Outgoing::Control(self.header(Op::CreditRequest)));
                }
                credit => return Some(Outgoing::Data(credit)),
            }
        }
        if self.host_closed != self.told {
            self.told = self.host_closed;
            let flags = self.told;
            let header = self.header(Op::Shutdown);
            return Some(Outgoing::Control(Header { flags, ..header }));
        }
        Some(Outgoing::Control(self.header(Op::CreditUpdate)))
    }

    /// The header of a packet that is as good as sent: it tells the guest of our credit.
    pub(super) fn header(&mut self, op: Op) -> Header {
        self.is_update_asked = false;
        Header {
            receipt: self.own.announce(),
            ..Header::to_guest(self.cid, self.ports, op)
        }
    }
}

/// Whether it is an error that passes.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
