//! The host's journal, in its native protocol (systemd's "Native Journal Protocol").

use std::io;
use std::os::unix::net::UnixDatagram;

use super::output::Stream;
use crate::state::Record;

/// Where it listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// A container's way to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    /// The fields of every line.
    fields: Vec<u8>,
}

impl Journal {
    /// With the fields by which Docker's users look for a container.
    pub fn open(record: &Record) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SOCKET)?;
        // A full journal holds no container up: its lines are lost.
        socket.set_nonblocking(true)?;
        let mut fields = Vec::new();
        let id = record.id.get(..12).unwrap_or(&record.id);
        for (name, value) in [
            ("SYSLOG_IDENTIFIER", id),
            ("CONTAINER_ID", id),
            ("CONTAINER_ID_FULL", &record.id),
            ("CONTAINER_NAME", &record.name),
            ("IMAGE_NAME", &record.options.image),
        ] {
            field(&mut fields, name, value.as_bytes());
        }
        Ok(Self { socket, fields })
    }

    /// Writes a line.
    pub fn write(&self, stream: Stream, line: &[u8]) -> io::Result<()> {
        self.socket
            .send(&message(&self.fields, stream, line))
            .map(drop)
    }
}

fn message(fields: &[u8], stream: Stream, line: &[u8]) -> Vec<u8> {
    // As of syslog: an error, or information.
    let priority = match stream {
        Stream::Stderr => "3",
        Stream::Stdout => "6",
    };
    let mut message = fields.to_vec();
    field(&mut message, "PRIORITY", priority.as_bytes());
    field(
        &mut message,
        "MESSAGE",
        line.strip_suffix(b"\n").unwrap_or(line),
    );
    message
}

/// What has line ends in it goes with its length: or a container could write fields of its own.
fn field(to: &mut Vec<u8>, name: &str, value: &[u8]) {
    to.extend(name.as_bytes());
    match value.contains(&b'\n') {
        false => to.push(b'='),
        true => {
            to.push(b'\n');
            to.extend((value.len() as u64).to_le_bytes());
        }
    }
    to.extend(value);
    to.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, lines do not reach the journal, or a container writes fields that are not its own.
    #[test]
    fn lines_are_messages() {
        let mut fields = Vec::new();
        field(&mut fields, "A", b"1");
        let text = message(&fields, Stream::Stderr, b"hello\n");
        assert_eq!(text, b"A=1\nPRIORITY=3\nMESSAGE=hello\n");
        let text = message(&[], Stream::Stdout, b"a\nA=2\n");
        assert_eq!(text, b"PRIORITY=6\nMESSAGE\n\x05\0\0\0\0\0\0\0a\nA=2\n");
    }
}
