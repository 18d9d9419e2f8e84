//! All connections of a device: found by their ports, served in turn.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events};
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

use super::client::{Client, Wish};
use super::connection::{Connection, Verdict};
use super::packet::{HOST_CID, Header, Op, Ports, STREAM};
use super::timer::Timer;
use crate::log_limit::log_limited;
use crate::virtio::Buffers;

/// Connections at most, those that are being made included.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// Resets that wait for the guest to take them before no more of its packets are looked at.
const MAX_RESETS: usize = 256;
/// The first of the ports that programs of the host's connect from.
const FIRST_PORT: u32 = 1 << 30;
/// How long a client may take to say what it wants, and the guest to answer a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose turn it is to put a packet into the receive queue.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    /// Nobody's: the answer to a packet that belongs to nothing.
    Reset(Header),
    /// The connection's in this slot.
    Connection(usize),
}

/// What a descriptor of the host's belongs to.
#[derive(Debug)]
enum Slot {
    Free,
    Client(Client),
    Connection(Box<Connection>),
}

/// The connections, and who may speak next.
#[derive(Debug)]
pub(super) struct Hub {
    cid: u64,
    path: PathBuf,
    slots: Vec<Slot>,
    /// Slots that are free.
    free: Vec<usize>,
    ports: HashMap<Ports, usize>,
    /// Of the packet before, for the next one is mostly of the same connection.
    last: Option<(Ports, usize)>,
    /// Slots of connections with something for the guest.
    ready: VecDeque<usize>,
    resets: VecDeque<Header>,
    next_port: u32,
    timer: Timer,
    /// Sockets that are done for, and that the event loop still has to be told of.
    retired: Vec<OwnedFd>,
}

impl Hub {
    /// No connections, for a guest of this address, whose own lead to programs that listen at
    /// `path` with a port behind it.
    pub(super) fn new(cid: u64, path: PathBuf, timer: Timer) -> Self {
        Self {
            cid,
            path,
            slots: Vec::new(),
            free: Vec::new(),
            ports: HashMap::new(),
            last: None,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_PORT,
            timer,
            retired: Vec::new(),
        }
    }

    /// The guest's address.
    pub(super) fn cid(&self) -> u64 {
        self.cid
    }

    /// What fires when somebody may have waited too long.
    pub(super) fn timer(&mut self) -> &mut Timer {
        &mut self.timer
    }

    /// Whether the guest has to take resets before it may send more.
    pub(super) fn is_full(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Whether there is no room for another connection.
    pub(super) fn is_crowded(&self) -> bool {
        self.free.is_empty() && self.slots.len() >= MAX_CONNECTIONS
    }

    /// Whose turn it is.
    pub(super) fn turn(&self) -> Option<Turn> {
        let reset = self.resets.front().copied().map(Turn::Reset);
        reset.or_else(|| self.ready.front().copied().map(Turn::Connection))
    }

    /// The reset whose turn it was is sent.
    pub(super) fn reset_is_sent(&mut self) {
        self.resets.pop_front();
    }

    /// The connection in `slot`.
    pub(super) fn connection(&mut self, slot: usize) -> Option<&mut Connection> {
        match self.slots.get_mut(slot) {
            Some(Slot::Connection(connection)) => Some(connection),
            _ => None,
        }
    }

    /// The connection whose turn it was had it, and gets another one after all others if it has
    /// more. If its host side is not `whole` it ends.
    pub(super) fn turn_is_over(&mut self, slot: usize, is_whole: bool, ops: &mut EventOps) {
        self.ready.pop_front();
        if let Some(connection) = self.connection(slot) {
            connection.is_listed = false;
        }
        match is_whole {
            true => self.settle(slot, ops),
            false => self.abort(slot, ops),
        }
    }

    /// A program of the host's has connected.
    pub(super) fn welcome(&mut self, socket: UnixStream, ops: &mut EventOps) {
        if self.is_crowded() {
            log_limited!(
                warn,
                "vsock: there are {MAX_CONNECTIONS} connections, and no room for more"
            );
            return;
        }
        self.timer.start();
        let client = Client::new(socket, Instant::now() + PATIENCE);
        self.insert(Slot::Client(client), ops);
    }

    /// The guest sent a packet.
    pub(super) fn receive(&mut self, header: &Header, data: &mut Buffers, ops: &mut EventOps) {
        if header.src_cid != self.cid {
            log_limited!(
                debug,
                "vsock: the guest sent a packet as {}, which it is not",
                header.src_cid
            );
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != STREAM {
            return self.refuse(header);
        }
        let ports = header.ports();
        let known = self.last.filter(|&(last, _)| last == ports);
        let Some((_, slot)) = known.or_else(|| Some((ports, *self.ports.get(&ports)?))) else {
            return match header.op {
                Op::Request => self.dial(header, ops),
                _ => self.refuse(header),
            };
        };
        self.last = Some((ports, slot));
        let Some(connection) = self.connection(slot) else {
            return;
        };
        match connection.receive(header, data) {
            Verdict::Keep => {}
            Verdict::Part => {
                connection.is_parted = true;
                self.refuse(header);
                self.forget(slot);
            }
            Verdict::Reset => {
                self.refuse(header);
                return self.remove(slot, ops);
            }
            Verdict::Drop => return self.remove(slot, ops),
        }
        self.settle(slot, ops);
    }

    /// The guest asks for a connection to a program of the host's: one that listens at our path with
    /// the port behind it.
    fn dial(&mut self, header: &Header, ops: &mut EventOps) {
        if self.is_crowded() {
            log_limited!(
                warn,
                "vsock: the guest has {MAX_CONNECTIONS} connections, and wants more"
            );
            return self.refuse(header);
        }
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", header.dst_port));
        let socket = match connect(Path::new(&path)) {
            Ok(socket) => socket,
            Err(error) => {
                let path = path.display();
                log_limited!(
                    info,
                    "vsock: the guest cannot be connected to {path}: {error}"
                );
                return self.refuse(header);
            }
        };
        let connection = Box::new(Connection::accepted(header, socket));
        match self.insert(Slot::Connection(connection), ops) {
            Some(slot) => {
                self.ports.insert(header.ports(), slot);
                self.settle(slot, ops);
            }
            None => self.refuse(header),
        }
    }

    /// Answers a packet with a reset, unless it is one.
    pub(super) fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset {
            self.resets.push_back(header.reset());
        }
    }

    /// The event loop says something about one of our sockets.
    pub(super) fn host_event(&mut self, events: Events, ops: &mut EventOps) {
        let slot = usize::try_from(events.data()).unwrap_or(usize::MAX);
        match self.slots.get_mut(slot) {
            Some(Slot::Client(client)) => {
                let wish = client.wish(events.event_set());
                self.heed(slot, wish, ops);
            }
            // Of a socket that is closed nothing may be believed of another one in its place.
            Some(Slot::Connection(connection))
                if connection.socket().map(|socket| socket.as_raw_fd()) == Some(events.fd()) =>
            {
                connection.host_event(events.event_set());
                self.settle(slot, ops);
            }
            _ => {}
        }
    }

    /// A client said something.
    fn heed(&mut self, slot: usize, wish: Wish, ops: &mut EventOps) {
        let port = match wish {
            Wish::Incomplete => return,
            Wish::Nonsense => return self.remove(slot, ops),
            Wish::Port(port) => port,
        };
        let ports = self.unused_ports(port);
        let Some(place) = self.slots.get_mut(slot) else {
            return;
        };
        // Its descriptor stays with the event loop as it is.
        if let Slot::Client(client) = std::mem::replace(place, Slot::Free) {
            let (socket, deadline) = (client.into_socket(), Instant::now() + PATIENCE);
            let connection = Connection::requested(self.cid, ports, socket, deadline);
            *place = Slot::Connection(Box::new(connection));
            self.ports.insert(ports, slot);
            self.timer.start();
            self.settle(slot, ops);
        }
    }

    /// A port of ours for a connection to `guest`'s that has no other.
    fn unused_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = FIRST_PORT | host.wrapping_add(1) & (FIRST_PORT - 1);
            let ports = Ports { host, guest };
            // There are far more ports than connections.
            if !self.ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    /// Who waited too long goes.
    pub(super) fn tick(&mut self, ops: &mut EventOps) {
        let now = Instant::now();
        let mut is_anyone_waiting = false;
        for slot in 0..self.slots.len() {
            let deadline = match self.slots.get(slot) {
                Some(Slot::Client(client)) => Some(client.deadline),
                Some(Slot::Connection(connection)) => connection.deadline(),
                _ => None,
            };
            match deadline {
                Some(deadline) if deadline <= now => self.abort(slot, ops),
                Some(_) => is_anyone_waiting = true,
                None => {}
            }
        }
        if is_anyone_waiting {
            self.timer.start();
        }
    }

    /// Something happened to the connection in `slot`: lists it if it has something for the guest,
    /// has the event loop watch for what it waits for, and lets it go when nothing is left of it.
    fn settle(&mut self, slot: usize, ops: &mut EventOps) {
        let Some(Slot::Connection(connection)) = self.slots.get_mut(slot) else {
            return;
        };
        if connection.is_host_closed()
            && let Some(socket) = connection.take_socket()
        {
            close(socket, ops);
        }
        if connection.is_parted && !connection.wants_room() {
            return self.remove(slot, ops);
        }
        if connection.wants_turn() && !connection.is_listed {
            connection.is_listed = true;
            self.ready.push_back(slot);
        }
        let wants_room = connection.wants_room();
        if wants_room != connection.watches_room
            && let Some(socket) = connection.socket()
        {
            let events = watch(socket, slot, wants_room);
            match ops.modify(events) {
                Ok(()) => connection.watches_room = wants_room,
                Err(error) => log_limited!(error, "vsock: a socket cannot be watched: {error}"),
            }
        }
    }

    /// Ends what is in `slot`, and tells the guest if it knows of it.
    fn abort(&mut self, slot: usize, ops: &mut EventOps) {
        if let Some(connection) = self.connection(slot)
            && !connection.is_parted
        {
            let header = connection.header(Op::Reset);
            self.resets.push_back(header);
        }
        self.remove(slot, ops);
    }

    /// The guest may use the ports of the connection in `slot` again.
    fn forget(&mut self, slot: usize) {
        if let Some(ports) = self.connection(slot).map(|connection| connection.ports())
            && self.ports.get(&ports) == Some(&slot)
        {
            self.ports.remove(&ports);
            self.last = None;
        }
    }

    fn insert(&mut self, content: Slot, ops: &mut EventOps) -> Option<usize> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < MAX_CONNECTIONS => {
                self.slots.push(Slot::Free);
                self.slots.len() - 1
            }
            None => return None,
        };
        let socket = match &content {
            Slot::Client(client) => Some(client.socket()),
            Slot::Connection(connection) => connection.socket(),
            Slot::Free => None,
        };
        let result = socket.map(|socket| ops.add(watch(socket, slot, false)));
        if let Some(Err(error)) = result {
            log_limited!(error, "vsock: a socket cannot be watched: {error}");
            self.free.push(slot);
            return None;
        }
        if let Some(place) = self.slots.get_mut(slot) {
            *place = content;
        }
        Some(slot)
    }

    fn remove(&mut self, slot: usize, ops: &mut EventOps) {
        self.forget(slot);
        let Some(place) = self.slots.get_mut(slot) else {
            return;
        };
        match std::mem::replace(place, Slot::Free) {
            Slot::Free => return,
            Slot::Client(client) => close(client.into_socket(), ops),
            Slot::Connection(mut connection) => {
                if connection.is_listed {
                    self.ready.retain(|&other| other != slot);
                }
                if let Some(socket) = connection.take_socket() {
                    close(socket, ops);
                }
            }
        }
        self.free.push(slot);
    }

    /// Ends all connections. Their sockets are shut down now and closed by [`Self::bury`].
    pub(super) fn clear(&mut self) {
        for slot in self.slots.drain(..) {
            self.retired.extend(match slot {
                Slot::Free => None,
                Slot::Client(client) => Some(client.into_socket()),
                Slot::Connection(mut connection) => connection.take_socket(),
            });
        }
        for socket in &self.retired {
            // The event loop hears of it too, and calls.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
        self.free.clear();
        self.ports.clear();
        self.last = None;
        self.ready.clear();
        self.resets.clear();
    }

    /// Closes the sockets that a reset left.
    pub(super) fn bury(&mut self, ops: &mut EventOps) {
        for socket in self.retired.drain(..) {
            close(socket, ops);
        }
    }
}

/// What the event loop is asked about a socket. Edge-triggered: nothing is said twice about one that
/// nobody can serve now, and nothing has to be changed when somebody can.
fn watch(socket: BorrowedFd<'_>, slot: usize, room: bool) -> Events {
    let mut set = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    set.set(EventSet::OUT, room);
    // Slots are few.
    let slot = u32::try_from(slot).unwrap_or(u32::MAX);
    Events::with_data_raw(socket.as_raw_fd(), slot, set)
}

/// Connects to a program that listens at `path`, at once or not at all.
fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Closes a socket, once the event loop has forgotten it.
fn close(socket: OwnedFd, ops: &mut EventOps) {
    if let Err(error) = ops.remove(Events::empty_raw(socket.as_fd().as_raw_fd())) {
        log_limited!(error, "vsock: a socket is still watched: {error}");
    }
}

#[cfg(test)]
impl Hub {
    /// Connections and clients.
    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
