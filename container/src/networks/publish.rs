//! Published ports, as the host has them: sockets that hold them, so that no two containers and no program
//! of the host's have the same. The firewall's rules lead IPv4 past them; whatever arrives here, above all
//! by IPv6, which containers do not have, is passed on to the container.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cofferdam::config::Transport;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};

use crate::options::Port;

/// Connections that are passed on at once. More wait until one of them ends.
const MAX_CONNECTIONS: usize = 512;
/// Who talks by UDP at once. Beyond that, who has been silent the longest is forgotten.
const MAX_TALKS: usize = 256;
/// How long who talks by UDP may be silent, as with Docker.
const SILENCE: Duration = Duration::from_secs(90);
/// How long the container may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between looks whether there is room for one more connection.
const FULL: Duration = Duration::from_millis(100);
/// Connections that may wait.
const BACKLOG: i32 = 128;
/// The largest datagram.
const DATAGRAM: usize = 1 << 16;
/// Of a thread that copies, in bytes.
const STACK: usize = 64 << 10;

/// Somebody else has a port.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot publish {port} on the host; is it another container's, or a program's of the host?"
)]
pub struct PublishError {
    port: Port,
    source: io::Error,
}

/// A port that is ours: nobody else can listen there.
#[derive(Debug)]
struct Door {
    socket: Socket,
    /// The container's port.
    to: u16,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Ports that are ours, and lead nowhere yet.
#[derive(Debug)]
pub struct Held(Vec<Door>);

impl Held {
    /// Takes all of them, or none.
    pub fn take(ports: &[Port]) -> Result<Self, PublishError> {
        let mut doors = Vec::new();
        for port in ports {
            let addresses: &[IpAddr] = match &port.address {
                Some(address) => std::slice::from_ref(address),
                None => &[
                    IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                ],
            };
            for &address in addresses {
                let at = SocketAddr::new(address, port.host.unwrap_or(0));
                match open(at, port.transport) {
                    Ok(socket) => doors.push(Door {
                        socket,
                        to: port.guest,
                    }),
                    // Of a host without IPv6 nobody expects it.
                    Err(error) if port.address.is_none() && is_no_ipv6(at, &error) => {}
                    Err(source) => {
                        let port = *port;
                        return Err(PublishError { port, source });
                    }
                }
            }
        }
        Ok(Self(doors))
    }

    /// Passes what arrives on to a container.
    pub fn lead_to(self, container: Ipv4Addr) -> io::Result<Published> {
        let (over, stop) = io::pipe()?;
        let streams = Arc::new(Streams::default());
        let gate = Gate {
            doors: self.0,
            container,
            streams: Arc::clone(&streams),
            talks: Vec::new(),
        };
        let thread = thread::Builder::new().name("ports".into());
        let thread = thread.spawn(move || gate.stay_open(&over))?;
        Ok(Published {
            stop: Some(stop),
            streams,
            thread: Some(thread),
        })
    }
}

fn is_no_ipv6(at: SocketAddr, error: &io::Error) -> bool {
    let number = error.raw_os_error();
    at.is_ipv6() && matches!(number, Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn open(at: SocketAddr, transport: Transport) -> io::Result<Socket> {
    let family = match at {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let kind = match transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(family, kind, flags, None)?;
    if at.is_ipv6() {
        // IPv4 has a socket of its own.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if transport == Transport::Udp {
        bind(&socket, &at)?;
        return Ok(Socket::Udp(socket.into()));
    }
    // Connections of who had the port before may still fade away.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &at)?;
    listen(&socket, BACKLOG)?;
    Ok(Socket::Tcp(socket.into()))
}

/// Ports that lead to a container. Dropped, they are free again, and all connections end.
#[derive(Debug)]
pub struct Published {
    /// Dropped, the thread ends.
    stop: Option<PipeWriter>,
    streams: Arc<Streams>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Published {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.streams.end();
    }
}

/// Both ends of all connections.
#[derive(Debug, Default)]
struct Streams(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    all: Vec<Weak<TcpStream>>,
    /// None may be any more.
    is_over: bool,
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, stream: TcpStream) -> Arc<TcpStream> {
        // Of who is gone without a word we hear some day.
        let _ = sockopt::set_socket_keepalive(&stream, true);
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        let mut open = self.lock();
        if open.is_over {
            let _ = stream.shutdown(Shutdown::Both);
        }
        open.all.push(Arc::downgrade(&stream));
        stream
    }

    fn are_full(&self) -> bool {
        let all = &mut self.lock().all;
        all.retain(|stream| stream.strong_count() > 0);
        all.len() >= 2 * MAX_CONNECTIONS
    }

    fn end(&self) {
        let mut open = self.lock();
        open.is_over = true;
        for stream in open.all.iter().filter_map(Weak::upgrade) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Somebody who talks with the container by UDP.
#[derive(Debug)]
struct Talk {
    /// Which of the doors he came to.
    door: usize,
    client: SocketAddr,
    /// To the container.
    inside: UdpSocket,
    last: Instant,
}

struct Gate {
    doors: Vec<Door>,
    container: Ipv4Addr,
    streams: Arc<Streams>,
    talks: Vec<Talk>,
}

impl Gate {
    /// Until the other end of `over` is gone.
    fn stay_open(mut self, over: &PipeReader) {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let full = self.streams.are_full();
            let patience = if full { FULL } else { SILENCE };
            let Some(ready) = self.wait(over, full, patience) else {
                return;
            };
            for at in ready.talks {
                self.answer(at, &mut buffer);
            }
            for at in ready.doors {
                self.enter(at, &mut buffer);
            }
            self.talks.retain(|talk| talk.last.elapsed() < SILENCE);
        }
    }

    /// Where something arrived; nothing when it is over.
    fn wait(&self, over: &PipeReader, full: bool, patience: Duration) -> Option<Ready> {
        let open = |door: &Door| !(full && matches!(door.socket, Socket::Tcp(_)));
        let doors: Vec<usize> = (0..self.doors.len())
            .filter(|&at| self.doors.get(at).is_some_and(open))
            .collect();
        let sockets = doors
            .iter()
            .filter_map(|&at| Some(self.doors.get(at)?.fd()));
        let talks = self.talks.iter().map(|talk| talk.inside.as_fd());
        let mut polled: Vec<PollFd> = [over.as_fd()]
            .into_iter()
            .chain(sockets)
            .chain(talks)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let timeout = Timespec::try_from(patience).ok();
        if poll(&mut polled, timeout.as_ref()).is_err() {
            // There is no memory, say.
            thread::sleep(FULL);
            return Some(Ready::default());
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        if ready.next() == Some(true) {
            return None;
        }
        let doors = doors.into_iter().filter(|_| ready.next() == Some(true));
        Some(Ready {
            doors: doors.collect(),
            talks: (0..self.talks.len())
                .filter(|_| ready.next() == Some(true))
                .collect(),
        })
    }

    /// Somebody is at a door.
    fn enter(&mut self, at: usize, buffer: &mut [u8]) {
        let Some(door) = self.doors.get(at) else {
            return;
        };
        let to = SocketAddr::new(self.container.into(), door.to);
        match &door.socket {
            Socket::Tcp(listener) => match listener.accept() {
                Ok((client, _)) => pass_on(&self.streams, client, to),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // No descriptor is free, say.
                Err(_) => thread::sleep(FULL),
            },
            Socket::Udp(socket) => {
                let Ok((count, client)) = socket.recv_from(buffer) else {
                    return;
                };
                let data = buffer.get(..count).unwrap_or_default();
                if let Ok(talk) = self.talk(at, client, to) {
                    talk.last = Instant::now();
                    // Datagrams may be lost.
                    let _ = talk.inside.send(data);
                }
            }
        }
    }

    /// The talk of a client, with a socket of its own, so that answers find him.
    fn talk(&mut self, door: usize, client: SocketAddr, to: SocketAddr) -> io::Result<&mut Talk> {
        let known = |talk: &Talk| talk.door == door && talk.client == client;
        let at = match self.talks.iter().position(known) {
            Some(at) => at,
            None => {
                let inside = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                inside.connect(to)?;
                inside.set_nonblocking(true)?;
                if self.talks.len() >= MAX_TALKS {
                    let oldest =
                        (0..self.talks.len()).min_by_key(|&at| self.talks.get(at).map(|t| t.last));
                    self.talks.swap_remove(oldest.unwrap_or_default());
                }
                self.talks.push(Talk {
                    door,
                    client,
                    inside,
                    last: Instant::now(),
                });
                self.talks.len() - 1
            }
        };
        self.talks
            .get_mut(at)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The container says something to who talks with it.
    fn answer(&mut self, at: usize, buffer: &mut [u8]) {
        let Some(talk) = self.talks.get_mut(at) else {
            return;
        };
        // Else nobody listens in the container: he hears nothing.
        if let Ok(count) = talk.inside.recv(buffer)
            && let Some(Socket::Udp(socket)) = self.doors.get(talk.door).map(|door| &door.socket)
        {
            talk.last = Instant::now();
            let data = buffer.get(..count).unwrap_or_default();
            let _ = socket.send_to(data, talk.client);
        }
    }
}

/// Where something arrived.
#[derive(Debug, Default)]
struct Ready {
    doors: Vec<usize>,
    talks: Vec<usize>,
}

impl Door {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Udp(socket) => socket.as_fd(),
        }
    }
}

/// Connects a client with the container, on threads of their own. One that cannot be is closed.
fn pass_on(streams: &Arc<Streams>, client: TcpStream, to: SocketAddr) {
    let client = streams.add(client);
    let streams = Arc::clone(streams);
    let thread = thread::Builder::new().name("port".into()).stack_size(STACK);
    let _ = thread.spawn(move || {
        let Ok(inside) = TcpStream::connect_timeout(&to, PATIENCE) else {
            return;
        };
        let inside = streams.add(inside);
        let (from, into) = (Arc::clone(&client), Arc::clone(&inside));
        let thread = thread::Builder::new().name("port".into()).stack_size(STACK);
        if thread.spawn(move || copy(&from, &into)).is_ok() {
            copy(&inside, &client);
        }
    });
}

/// Copies to the end of `from`, which becomes that of `to`.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = [0; 16 << 10];
    let copied = loop {
        match from.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                let data = buffer.get(..count).unwrap_or_default();
                if let Err(error) = io::Write::write_all(&mut to, data) {
                    break Err(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    if copied.is_ok() {
        let _ = to.shutdown(Shutdown::Write);
        return;
    }
    // The other direction ends, too.
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A port that nobody has, which leads to one of the container's, which is the host here.
    fn port(to: u16, transport: Transport) -> Port {
        let any = (Ipv4Addr::UNSPECIFIED, 0);
        let host = match transport {
            Transport::Tcp => TcpListener::bind(any).unwrap().local_addr(),
            Transport::Udp => UdpSocket::bind(any).unwrap().local_addr(),
        };
        Port {
            address: None,
            host: Some(host.unwrap().port()),
            guest: to,
            transport,
        }
    }

    /// The host's addresses at which a port is reached.
    fn addresses(port: Port) -> Vec<SocketAddr> {
        let v6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).map(|_| Ipv6Addr::LOCALHOST.into());
        let all = [Ok(IpAddr::from(Ipv4Addr::LOCALHOST)), v6];
        let at = |address| SocketAddr::new(address, port.host.unwrap());
        all.into_iter().flatten().map(at).collect()
    }

    /// If it fails, two containers publish one port, or a container one of a program of the host's.
    #[test]
    fn a_port_is_held() {
        for transport in [Transport::Tcp, Transport::Udp] {
            let port = port(80, transport);
            let held = Held::take(&[port]).unwrap();
            for address in [None, Some(Ipv4Addr::LOCALHOST.into())] {
                let again = Port { address, ..port };
                let error = Held::take(&[again]).unwrap_err();
                assert!(error.to_string().contains(&again.to_string()), "{error}");
            }
            // Not half of what was wanted stays taken.
            let other = self::port(81, transport);
            assert!(Held::take(&[other, port]).is_err());
            drop(Held::take(&[other]).unwrap());
            drop(held);
            Held::take(&[port]).unwrap();
        }
    }

    /// If it fails, nobody reaches a server that has only IPv4 by the host's IPv6, bytes are lost, or
    /// connections outlive the container.
    #[test]
    fn connections_are_passed_on() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = port(server.local_addr().unwrap().port(), Transport::Tcp);
        let published = Held::take(&[port])
            .unwrap()
            .lead_to(Ipv4Addr::LOCALHOST)
            .unwrap();
        for at in addresses(port) {
            let mut client = TcpStream::connect(at).unwrap();
            client.write_all(&vec![b'x'; 1 << 20]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let (mut inside, _) = server.accept().unwrap();
            let mut text = Vec::new();
            inside.read_to_end(&mut text).unwrap();
            assert_eq!(text.len(), 1 << 20);
            // The other direction is open still.
            inside.write_all(b"answer").unwrap();
            drop(inside);
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert_eq!(text, "answer");
        }
        let mut client = TcpStream::connect(addresses(port)[0]).unwrap();
        let (mut inside, _) = server.accept().unwrap();
        drop(published);
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
        assert!(matches!(inside.read(&mut [0]), Ok(0) | Err(_)));
        // Nobody listens there: who asks is cut off.
        drop(server);
        let published = Held::take(&[port])
            .unwrap()
            .lead_to(Ipv4Addr::LOCALHOST)
            .unwrap();
        let mut client = TcpStream::connect(addresses(port)[0]).unwrap();
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
        drop(published);
    }

    /// If it fails, datagrams do not arrive, or their answers come to somebody else.
    #[test]
    fn datagrams_are_passed_on() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = port(server.local_addr().unwrap().port(), Transport::Udp);
        let _published = Held::take(&[port])
            .unwrap()
            .lead_to(Ipv4Addr::LOCALHOST)
            .unwrap();
        for at in addresses(port) {
            let clients = [(); 2].map(|()| {
                let any: IpAddr = match at {
                    SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                    SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                };
                let client = UdpSocket::bind((any, 0)).unwrap();
                client.connect(at).unwrap();
                client
            });
            for round in 0..2 {
                for (number, client) in clients.iter().enumerate() {
                    let word = format!("{round} of {number}");
                    client.send(word.as_bytes()).unwrap();
                    let mut buffer = [0; 64];
                    let (count, from) = server.recv_from(&mut buffer).unwrap();
                    assert_eq!(&buffer[..count], word.as_bytes());
                    server.send_to(&buffer[..count], from).unwrap();
                    let count = client.recv(&mut buffer).unwrap();
                    assert_eq!(&buffer[..count], word.as_bytes());
                }
            }
        }
    }
}
