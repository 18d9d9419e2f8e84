//! A program of the host's that has connected and not yet said to which port.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use event_manager::EventSet;
use rustix::io::Errno;
use rustix::net::RecvFlags;

/// Bytes of the longest line that we read: `CONNECT 4294967295` and its end, with room to spare.
const MAX_LINE: usize = 32;

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// It has not said all of it.
    Incomplete,
    /// A connection to this port of the guest's.
    Port(u32),
    /// Nothing that we know.
    Nonsense,
}

/// A client until its `CONNECT` line is complete.
#[derive(Debug)]
pub(super) struct Client {
    socket: OwnedFd,
    /// When it must have said what it wants.
    pub(super) deadline: Instant,
}

impl Client {
    pub(super) fn new(socket: UnixStream, deadline: Instant) -> Self {
        Self {
            socket: socket.into(),
            deadline,
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Reads its line and nothing behind it, once all of it is there.
    pub(super) fn wish(&self, events: EventSet) -> Wish {
        let mut bytes = [0; MAX_LINE];
        let count = match rustix::net::recv(&self.socket, &mut bytes[..], RecvFlags::PEEK) {
            Ok((count, _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Wish::Incomplete,
            Err(_) => return Wish::Nonsense,
        };
        let bytes = bytes.get(..count).unwrap_or_default();
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            let ending = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
            return match count == 0 || count == MAX_LINE || events.intersects(ending) {
                true => Wish::Nonsense,
                false => Wish::Incomplete,
            };
        };
        let (line, _) = bytes.split_at(end);
        let mut taken = [0; MAX_LINE];
        let taken = taken.get_mut(..=end).unwrap_or_default();
        match rustix::net::recv(&self.socket, taken, RecvFlags::empty()) {
            Ok((count, _)) if count == end + 1 => parse(line).map_or(Wish::Nonsense, Wish::Port),
            _ => Wish::Nonsense,
        }
    }
}

/// The port of a `CONNECT` line.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let is_connect = words.next()?.eq_ignore_ascii_case("connect");
    let port = words.next()?.parse().ok()?;
    (is_connect && words.next().is_none()).then_some(port)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn wish_of(text: &[u8], events: EventSet) -> (Wish, Vec<u8>) {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.write_all(text).unwrap();
        let client = Client::new(ours.try_clone().unwrap(), Instant::now());
        let wish = client.wish(events);
        let mut rest = [0; 64];
        let count = (&ours).read(&mut rest).unwrap_or(0);
        (wish, rest[..count].to_vec())
    }

    /// If it fails, programs written for Firecracker's sockets cannot connect, or lose what they
    /// send right behind their CONNECT.
    #[test]
    fn a_line_is_read_and_nothing_behind_it() {
        for (text, port) in [
            (&b"CONNECT 52\n"[..], 52),
            (b"connect 4294967295\r\n", u32::MAX),
            (b"CONNECT  7 \n", 7),
        ] {
            let sent = [text, b"hello"].concat();
            let expected = (Wish::Port(port), b"hello".to_vec());
            assert_eq!(wish_of(&sent, EventSet::IN), expected);
        }
    }

    /// If it fails, a line that comes in pieces is refused, or nonsense keeps a place for ever.
    #[test]
    fn what_is_no_line_is_told_from_what_is_not_yet_one() {
        for text in [&b""[..], b"C", b"CONNECT 52", &[b'x'; 31]] {
            assert_eq!(wish_of(text, EventSet::IN).0, Wish::Incomplete);
            let ended = EventSet::IN | EventSet::READ_HANG_UP;
            if !text.is_empty() {
                assert_eq!(wish_of(text, ended).0, Wish::Nonsense);
            }
        }
        for text in [
            &b"\n"[..],
            b"CONNECT\n",
            b"CONNECT 4294967296\n",
            b"CONNECT -1\n",
            b"CONNECT 1 2\n",
            b"CONNEC 1\n",
            b"\xff 1\n",
            &[b'x'; 32],
        ] {
            assert_eq!(wish_of(text, EventSet::IN).0, Wish::Nonsense);
        }
    }
}
