//! Questions to a name server on the host that the guest cannot reach: one at a loopback address of the
//! container's network namespace, where Docker has one (127.0.0.11). The guest's loopback is another.
//!
//! For each question the agent connects to the host's port [`crate::NAMES_PORT`], says it, and reads the
//! answer; then the connection ends. Both are DNS messages, whose contents are nobody's business here.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;

/// The port of name servers.
pub const DNS: u16 = 53;

/// How a question is asked: servers answer otherwise by one than by the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// By a datagram.
    Udp,
    /// By a connection.
    Tcp,
}

/// A question to a name server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// How it was asked, and is to be.
    pub transport: Transport,
    /// Who is asked.
    pub server: Ipv4Addr,
    /// The DNS message.
    pub message: Vec<u8>,
}

impl Question {
    /// Says it: its transport, its server, its message.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let transport = match self.transport {
            Transport::Udp => b'u',
            Transport::Tcp => b't',
        };
        to.write_all(&[transport])?;
        to.write_all(&self.server.octets())?;
        write_message(to, &self.message)
    }

    /// Hears one.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let (mut transport, mut server) = ([0], [0; 4]);
        from.read_exact(&mut transport)?;
        let transport = match transport {
            [b'u'] => Transport::Udp,
            [b't'] => Transport::Tcp,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        from.read_exact(&mut server)?;
        Ok(Self {
            transport,
            server: server.into(),
            message: read_message(from)?,
        })
    }
}

/// Writes a DNS message behind its length, as DNS has it on connections.
pub fn write_message(to: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // At once: a segment for two bytes is one too many.
    to.write_all(&[&length.to_be_bytes(), message].concat())
}

/// Reads a DNS message behind its length.
pub fn read_message(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    from.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    from.read_exact(&mut message)?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a question of the guest's reaches another server than it was for, or none.
    #[test]
    fn questions_are_heard_as_they_were_said() {
        for transport in [Transport::Udp, Transport::Tcp] {
            let question = Question {
                transport,
                server: [127, 0, 0, 11].into(),
                message: b"who?".to_vec(),
            };
            let mut said = Vec::new();
            question.write(&mut said).unwrap();
            assert_eq!(Question::read(&mut said.as_slice()).unwrap(), question);
            for short in 0..said.len() {
                assert!(Question::read(&mut &said[..short]).is_err());
            }
            said[0] = b'x';
            assert!(Question::read(&mut said.as_slice()).is_err());
        }
        assert!(write_message(&mut Vec::new(), &[0; 1 << 16]).is_err());
    }
}
