//! Names by a server that listens in the container's network namespace, at a loopback address: Docker's, for
//! containers on networks with names. The guest has another loopback. So the agent passes on what the
//! container asks, and the shim, which is in that namespace, asks there.
//!
//! The guest may ask whatever it likes, as often as it likes: port 53 at loopback addresses of a namespace
//! that is the container's own is what a plain container reaches, too.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use cofferdam_agent_protocol::NAMES_PORT;
use cofferdam_agent_protocol::names::{DNS, Question, Transport, read_message, write_message};

/// Questions at the same time; of more the connections are closed.
const MAX_ASKING: usize = 64;
/// How long a server may take, and how long the guest, for a piece of a question.
const PATIENCE: Duration = Duration::from_secs(15);
/// Of a thread that asks, in bytes.
const STACK: usize = 64 << 10;
/// As many servers as resolvers look at.
const MAX_SERVERS: usize = 3;
/// Bytes of a resolv.conf that are looked at: the container may write to it.
const MAX_FILE: u64 = 64 << 10;

/// The name servers at loopback addresses that a resolv.conf names.
pub(super) fn servers(file: Option<&Path>) -> Vec<Ipv4Addr> {
    let mut text = Vec::new();
    if let Some(file) = file.and_then(|path| File::open(path).ok()) {
        // What cannot be read names nobody.
        let _ = file.take(MAX_FILE).read_to_end(&mut text);
    }
    servers_in(&String::from_utf8_lossy(&text))
}

fn servers_in(text: &str) -> Vec<Ipv4Addr> {
    let words = text.lines().map(|line| {
        let mut words = line.split_whitespace();
        (words.next(), words.next())
    });
    let servers = words.filter(|(word, _)| *word == Some("nameserver"));
    let addresses = servers.take(MAX_SERVERS).filter_map(|(_, address)| {
        let address = address?.parse().ok();
        address.filter(Ipv4Addr::is_loopback)
    });
    addresses.collect()
}

/// Answers the guest's questions, in this thread's network namespace, for as long as this process lives.
/// `run`: where the sockets of its VM are.
pub(super) fn serve(run: &Path) -> io::Result<()> {
    let socket = run.join(format!("vsock_{NAMES_PORT}"));
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(socket)?;
    spawn(move || {
        let one = Arc::new(());
        for connection in listener.incoming() {
            let Ok(connection) = connection else {
                // There are no descriptors left, say.
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            if Arc::strong_count(&one) > MAX_ASKING {
                continue;
            }
            let one = Arc::clone(&one);
            // Without a thread or an answer the connection is closed, and who asked asks again.
            let _ = spawn(move || {
                let _ = answer(connection);
                drop(one);
            });
        }
    })
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("names".into());
    thread.stack_size(STACK).spawn(work).map(drop)
}

fn answer(mut guest: UnixStream) -> io::Result<()> {
    guest.set_read_timeout(Some(PATIENCE))?;
    guest.set_write_timeout(Some(PATIENCE))?;
    let question = Question::read(&mut guest)?;
    if !question.server.is_loopback() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    write_message(&mut guest, &ask(&question, DNS)?)
}

fn ask(question: &Question, port: u16) -> io::Result<Vec<u8>> {
    let to = (question.server, port);
    match question.transport {
        Transport::Udp => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(&question.message)?;
            let mut answer = vec![0; usize::from(u16::MAX)];
            let length = socket.recv(&mut answer)?;
            answer.truncate(length);
            Ok(answer)
        }
        Transport::Tcp => {
            let mut server = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
            server.set_read_timeout(Some(PATIENCE))?;
            server.set_write_timeout(Some(PATIENCE))?;
            write_message(&mut server, &question.message)?;
            server.flush()?;
            read_message(&mut server)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// If it fails, a container with Docker's name server finds no names, or its questions go to servers that
    /// it reaches itself.
    #[test]
    fn only_loopback_servers_are_served() {
        let text = "search x\nnameserver 127.0.0.11\n nameserver\t127.0.0.53 # x\nnameserver 10.0.0.1\n\
             nameserver 127.0.0.99\noptions ndots:0\n";
        let servers = servers_in(text);
        assert_eq!(
            servers,
            [[127, 0, 0, 11], [127, 0, 0, 53]].map(Ipv4Addr::from)
        );
        assert!(servers_in("nameserver\nnameserver ::1\n#nameserver 127.0.0.1").is_empty());
    }

    /// If it fails, answers of name servers are lost or mixed up.
    #[test]
    fn servers_are_asked_by_both_transports() {
        let (udp, tcp) = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        let ports = (
            udp.local_addr().unwrap().port(),
            tcp.local_addr().unwrap().port(),
        );
        thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, from) = udp.recv_from(&mut buffer).unwrap();
            udp.send_to(&[b"udp ", &buffer[..length]].concat(), from)
                .unwrap();
            let (mut connection, _) = tcp.accept().unwrap();
            let message = read_message(&mut connection).unwrap();
            write_message(&mut connection, &[b"tcp ".as_slice(), &message].concat()).unwrap();
        });
        for (transport, port, expected) in [
            (Transport::Udp, ports.0, "udp who?"),
            (Transport::Tcp, ports.1, "tcp who?"),
        ] {
            let question = Question {
                transport,
                server: Ipv4Addr::LOCALHOST,
                message: b"who?".to_vec(),
            };
            assert_eq!(ask(&question, port).unwrap(), expected.as_bytes());
        }
    }

    /// If it fails, a guest can have the shim ask servers elsewhere.
    #[test]
    fn other_servers_are_not_asked() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let question = Question {
            transport: Transport::Udp,
            server: [10, 0, 0, 1].into(),
            message: b"who?".to_vec(),
        };
        question.write(&mut guest).unwrap();
        let error = answer(ours).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}
