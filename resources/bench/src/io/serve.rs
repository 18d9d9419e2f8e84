//! The host's side of network and vsock jobs: what guests talk to, in threads of this program.

use std::fs;
use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::io::FdFlags;
use socket2::{Domain, SockAddr, Socket, Type};

/// The tap, which outlives the monitors.
pub const TAP: &str = "bench0";
/// The Unix socket for connections to the guest, the servers' having the port behind its name.
pub const VSOCK: &str = "/tmp/vsock";
/// The directory that guests share, in the lab's memory.
pub const SHARE: &str = "/tmp/share";
/// The Unix socket at which the peer's file-system process answers.
pub const VIRTIOFSD: &str = "/tmp/virtiofsd";
/// The host's address on the tap; the guest has the next one.
const ADDRESS: &str = "10.66.0.1";
/// Where the servers listen: a port of TCP, UDP and vsock.
const PORT: u16 = 5000;
/// Datagrams of an answer.
const BURST: u32 = 64;
/// Longest message, or piece of a stream, that a guest asks for.
const LONGEST: usize = 1 << 20;

/// Makes the tap and serves what comes by it.
pub fn network() -> io::Result<()> {
    for arguments in [["tunctl", "-t", TAP, ""], ["ifconfig", TAP, ADDRESS, "up"]] {
        let arguments = arguments.iter().filter(|argument| !argument.is_empty());
        let status = Command::new("/bin/busybox").args(arguments).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("{TAP}: {status}")));
        }
    }
    let listener = std::net::TcpListener::bind((ADDRESS, PORT))?;
    thread::spawn(move || {
        while let Ok((connection, _)) = listener.accept() {
            thread::spawn(|| {
                connection
                    .set_nodelay(true)
                    .and_then(|()| stream(connection))
            });
        }
    });
    let socket = UdpSocket::bind((ADDRESS, PORT))?;
    thread::spawn(move || packets(&socket));
    Ok(())
}

/// Serves vsock, both ways in which a monitor brings a guest's connection to the host: the
/// kernel's, and a Unix socket named by the port.
pub fn vsock() -> io::Result<()> {
    let kernel = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    kernel.bind(&SockAddr::vsock(libc::VMADDR_CID_ANY, u32::from(PORT)))?;
    kernel.listen(8)?;
    thread::spawn(move || {
        while let Ok((connection, _)) = kernel.accept() {
            thread::spawn(|| stream(connection));
        }
    });
    let unix = UnixListener::bind(format!("{VSOCK}_{PORT}"))?;
    thread::spawn(move || {
        while let Ok((connection, _)) = unix.accept() {
            thread::spawn(|| stream(connection));
        }
    });
    Ok(())
}

/// Makes the shared directory, and has a process of `virtiofsd` serve it to each monitor that
/// connects, one after the other. Ours starts its own.
pub fn files(virtiofsd: &Path) -> io::Result<()> {
    fs::create_dir(SHARE)?;
    let listener = UnixListener::bind(VIRTIOFSD)?;
    // The processes inherit it, so that a monitor that comes between two of them waits.
    rustix::io::fcntl_setfd(&listener, FdFlags::empty())?;
    let mut command = Command::new(virtiofsd);
    command
        .arg(format!("--fd={}", listener.as_raw_fd()))
        .args(["-o", &format!("source={SHARE}"), "-o", "xattr"])
        // The other kind changes the root in a way that an initramfs does not allow.
        .args(["-o", "sandbox=chroot", "-o", "log_level=err"]);
    thread::spawn(move || {
        // It lives as long as its monitor, of whose end it complains. If it fails, nobody answers.
        while let Ok(output) = command.output() {
            if !output.status.success() {
                let _ = io::stderr().write_all(&output.stderr);
                break;
            }
        }
        drop(listener);
    });
    Ok(())
}

/// Does what is asked for on a stream, until its other end is closed.
fn stream(mut connection: impl Read + Write) -> io::Result<()> {
    let mut data = vec![0xa5; LONGEST];
    loop {
        let mut request = [0; 16];
        connection.read_exact(&mut request)?;
        let (head, count) = request.split_at(8);
        let (what, size) = head.split_at(4);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let size = usize::try_from(number(size)).unwrap_or(LONGEST);
        let piece = data
            .get_mut(..size)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        for _ in 0..number(count) {
            if what.first() != Some(&b'r') {
                connection.read_exact(piece)?;
            }
            if what.first() != Some(&b's') {
                connection.write_all(piece)?;
            }
        }
        if what.first() == Some(&b's') {
            connection.write_all(b"!")?;
        }
    }
}

/// Answers datagrams as their first byte asks for it.
fn packets(socket: &UdpSocket) -> io::Result<()> {
    let mut data = vec![0; LONGEST];
    loop {
        let (size, sender) = socket.recv_from(&mut data)?;
        let message = data.get(..size).unwrap_or_default();
        let answers = match message.first() {
            Some(b'a') => 1,
            Some(b'b') => BURST,
            _ => 0,
        };
        for _ in 0..answers {
            socket.send_to(message, sender)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn request(what: u8, size: u32, count: u64) -> Vec<u8> {
        let mut request = u32::from(what).to_le_bytes().to_vec();
        request.extend(size.to_le_bytes());
        request.extend(count.to_le_bytes());
        request
    }

    /// If it fails, a guest waits for ever for what it asked for.
    #[test]
    fn a_stream_does_one_request_after_the_other() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(|| stream(theirs));
        ours.write_all(&request(b'e', 3, 2)).unwrap();
        let mut answer = [0; 3];
        for text in [b"abc", b"def"] {
            ours.write_all(text).unwrap();
            ours.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, text);
        }
        ours.write_all(&request(b's', 4, 2)).unwrap();
        ours.write_all(b"12345678").unwrap();
        ours.read_exact(&mut answer[..1]).unwrap();
        ours.write_all(&request(b'r', 3, 1)).unwrap();
        ours.read_exact(&mut answer).unwrap();
        drop(ours);
        assert!(server.join().unwrap().is_err());
    }

    /// If it fails, a burst has no answer or more than one.
    #[test]
    fn datagrams_are_answered_as_they_ask() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        thread::spawn(move || packets(&server));
        for message in ["i--", "i--", "a--", "b--"] {
            client.send(message.as_bytes()).unwrap();
        }
        let mut data = [0; 8];
        assert_eq!(client.recv(&mut data).unwrap(), 3);
        assert_eq!(data[0], b'a');
        for _ in 0..BURST {
            client.recv(&mut data).unwrap();
            assert_eq!(data[0], b'b');
        }
    }
}
