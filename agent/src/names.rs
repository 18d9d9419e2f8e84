//! Name servers at loopback addresses of the host's side: who asks one of them in the guest asks us, and we
//! ask the host.
//!
//! The container's own programs can have the port of name servers, at all addresses, as in a plain
//! container. So we listen at another one, and the kernel leads questions there: three small programs
//! change the port when a socket is connected, when a datagram is sent and when the answer is received.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cofferdam_agent_protocol::NAMES_PORT;
use cofferdam_agent_protocol::names::{DNS, Question, Transport, read_message, write_message};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::bpf::{self, EXIT, Instruction, Kind, LOAD_WORD, MOVE, Others, instruction};
use crate::error::{Context, Error, Result};

/// Those that are served.
static SERVED: Mutex<Vec<Ipv4Addr>> = Mutex::new(Vec::new());
/// Threads that ask.
static ASKING: AtomicUsize = AtomicUsize::new(0);
/// Questions at the same time, of all servers. Who asks by datagrams asks again, and a connection is closed.
const MAX_ASKING: usize = 64;
/// How long an answer may take: longer than who asks waits for it.
const PATIENCE_S: i64 = 20;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(30);
/// Of a thread that asks, in bytes.
const STACK: usize = 64 << 10;
/// Attempts to find a port that is free for datagrams and for connections.
const ATTEMPTS: usize = 16;

/// Serves the name servers at these loopback addresses, those that are not served yet.
pub fn serve(servers: &[String]) -> Result<()> {
    let mut served = SERVED.lock().unwrap_or_else(PoisonError::into_inner);
    for text in servers {
        let bad = || Error::invalid(format!("name server {text:?}"), "no loopback address");
        let server = text.parse().ok().filter(Ipv4Addr::is_loopback);
        let server = server.ok_or_else(bad)?;
        if !served.contains(&server) {
            serve_one(server)?;
            served.push(server);
        }
    }
    Ok(())
}

fn serve_one(server: Ipv4Addr) -> Result<()> {
    let doing = || format!("serve names at {server}");
    let (datagrams, connections) = listen(server).context(doing)?;
    let port = datagrams.local_addr().context(doing)?.port();
    for (occasion, from, to) in [
        (BPF_CGROUP_INET4_CONNECT, DNS, port),
        (BPF_CGROUP_UDP4_SENDMSG, DNS, port),
        (BPF_CGROUP_UDP4_RECVMSG, port, DNS),
    ] {
        let kind = Kind {
            program: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
            attach: occasion,
        };
        let program = change_port(server, from, to);
        bpf::attach(Path::new(CGROUPS), kind, &program, Others::Kept).context(doing)?;
    }
    spawn(move || answer_datagrams(server, &Arc::new(datagrams))).context(doing)?;
    spawn(move || answer_connections(server, &connections)).context(doing)?;
    Ok(())
}

fn listen(server: Ipv4Addr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempts = 0;
    loop {
        let datagrams = UdpSocket::bind((server, 0))?;
        attempts += 1;
        match TcpListener::bind(datagrams.local_addr()?) {
            Err(error) if attempts == ATTEMPTS => return Err(error),
            Err(_) => {}
            Ok(connections) => return Ok((datagrams, connections)),
        }
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().name("names".into());
    thread.stack_size(STACK).spawn(work).map(drop)
}

/// Does something on a thread of its own, if there are not too many.
fn ask_apart(work: impl FnOnce() + Send + 'static) {
    struct One;
    impl Drop for One {
        fn drop(&mut self) {
            ASKING.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let before = ASKING.fetch_add(1, Ordering::Relaxed);
    let one = One;
    if before < MAX_ASKING {
        // Without a thread it is as if there were too many.
        let _ = spawn(move || {
            let _one = one;
            work();
        });
    }
}

fn answer_datagrams(server: Ipv4Addr, socket: &Arc<UdpSocket>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let message = buffer.get(..length).unwrap_or_default().to_vec();
        let socket = Arc::clone(socket);
        ask_apart(move || {
            if let Ok(answer) = ask(server, Transport::Udp, message) {
                // Whoever is gone has no use for it.
                let _ = socket.send_to(&answer, from);
            }
        });
    }
}

fn answer_connections(server: Ipv4Addr, listener: &TcpListener) {
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else {
            // There is no memory, say.
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        ask_apart(move || {
            let _ = answer_connection(server, &mut connection);
        });
    }
}

/// Answers one question after the other, to the end.
fn answer_connection(server: Ipv4Addr, connection: &mut TcpStream) -> io::Result<()> {
    connection.set_read_timeout(Some(IDLE))?;
    connection.set_write_timeout(Some(IDLE))?;
    loop {
        let message = read_message(connection)?;
        write_message(connection, &ask(server, Transport::Tcp, message)?)?;
    }
}

/// Asks the host.
fn ask(server: Ipv4Addr, transport: Transport, message: Vec<u8>) -> io::Result<Vec<u8>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    let patience = TimeVal::seconds(PATIENCE_S);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    let host = VsockAddr::new(libc::VMADDR_CID_HOST, NAMES_PORT);
    connect(socket.as_raw_fd(), &host)?;
    let mut host = File::from(socket);
    let question = Question {
        transport,
        server,
        message,
    };
    question.write(&mut host)?;
    read_message(&mut host)
}

/// Where the guest's cgroups are: all processes are in them.
const CGROUPS: &str = "/sys/fs/cgroup";
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_UDP4_SENDMSG: u32 = 14;
const BPF_CGROUP_UDP4_RECVMSG: u32 = 19;

const STORE_WORD: u8 = 0x63; // BPF_STX | BPF_MEM | BPF_W
const JUMP_UNLESS_32: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K

/// Where struct bpf_sock_addr has the other side's address and port, in the network's order.
const ADDRESS: i16 = 4;
const PORT: i16 = 24;

/// The program that gives an address another port, if its port is `from`. It lets everything pass.
fn change_port(address: Ipv4Addr, from: u16, to: u16) -> Vec<Instruction> {
    // The context is r1; r2 is for us.
    const SCRATCH: u8 = 2;
    let address = i32::from_ne_bytes(address.octets());
    vec![
        instruction(LOAD_WORD, SCRATCH, 1, ADDRESS, 0),
        instruction(JUMP_UNLESS_32, SCRATCH, 0, 4, address),
        instruction(LOAD_WORD, SCRATCH, 1, PORT, 0),
        instruction(JUMP_UNLESS_32, SCRATCH, 0, 2, from.to_be().into()),
        instruction(MOVE, SCRATCH, 0, 0, to.to_be().into()),
        instruction(STORE_WORD, 1, SCRATCH, PORT, 0),
        instruction(MOVE, 0, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, what the container sends to other servers or ports goes elsewhere, or its questions go
    /// nowhere.
    #[test]
    fn one_port_of_one_address_is_changed() {
        let run = |address: [u8; 4], port: u16| {
            let program = change_port([127, 0, 0, 200].into(), 53, 4000);
            let (mut at, mut register, mut changed) = (0, 0u32, port);
            let value = |one: &Instruction| u32::from_ne_bytes(one.value.to_ne_bytes());
            loop {
                let one = &program[at];
                at += 1;
                match (one.code, one.registers & 15) {
                    (LOAD_WORD, _) if one.offset == ADDRESS => {
                        register = u32::from_ne_bytes(address);
                    }
                    (LOAD_WORD, _) => register = changed.to_be().into(),
                    (JUMP_UNLESS_32, _) if register != value(one) => {
                        at += usize::try_from(one.offset).unwrap();
                    }
                    (JUMP_UNLESS_32, _) | (MOVE, 0) => {}
                    (MOVE, _) => register = value(one),
                    (STORE_WORD, _) => {
                        changed = u16::from_be(u16::try_from(register).unwrap());
                    }
                    (EXIT, _) => return changed,
                    code => panic!("{code:?}"),
                }
            }
        };
        assert_eq!(run([127, 0, 0, 200], 53), 4000);
        assert_eq!(run([127, 0, 0, 200], 54), 54);
        assert_eq!(run([127, 0, 0, 1], 53), 53);
    }

    /// If it fails, the host can have the guest serve at an address that is not its own.
    #[test]
    fn other_addresses_are_refused() {
        for bad in ["10.0.0.1", "::1", "", "localhost"] {
            assert!(serve(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
