//! What is said at a shim's socket: a request in a line of JSON, a reply in another, then, of an
//! attachment, frames.

use std::io::{self, BufRead, Read, Write};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest line, in bytes.
const MAX_LINE: u64 = 1 << 16;
/// The longest frame, in bytes.
const MAX_FRAME: usize = 1 << 20;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Request {
    /// Run the container's process. Answered when it runs, or cannot.
    Start,
    /// What it prints from now on, and its end, in frames.
    Attach {
        /// The output is wanted, too, and not only the end.
        output: bool,
        /// Frames of input will come; their end is that of the container's input.
        input: bool,
    },
    /// Send a signal.
    Kill {
        /// Its number.
        signal: i32,
    },
    /// Send a signal, and KILL after so many seconds. Answered when the container has ended.
    Stop {
        /// The signal's number.
        signal: i32,
        /// Seconds.
        timeout: u32,
    },
    /// Freeze the container.
    Pause,
    /// Thaw it.
    Resume,
}

/// What a shim says to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done, or: frames follow.
    Done,
    /// It cannot be.
    Failed(Failure),
}

/// Why a container did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Docker's exit code for it: 125, 126 or 127.
    pub code: u8,
    /// What went wrong and why.
    pub message: String,
}

/// A piece of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// To the container's input.
    Input(Vec<u8>),
    /// The input is at its end.
    InputEnd,
    /// Rows and columns of the client's terminal.
    Size(u16, u16),
    /// Of the container's standard output.
    Output(Vec<u8>),
    /// Of its standard error.
    Error(Vec<u8>),
    /// How it ended. The last one.
    End(i32),
}

impl Frame {
    /// Writes it in one piece.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let end;
        let size;
        let (kind, data): (u8, &[u8]) = match self {
            Self::Input(data) => (0, data),
            Self::InputEnd => (1, &[]),
            Self::Size(rows, columns) => {
                let (r, c) = (rows.to_le_bytes(), columns.to_le_bytes());
                size = [r[0], r[1], c[0], c[1]];
                (2, &size)
            }
            Self::Output(data) => (3, data),
            Self::Error(data) => (4, data),
            Self::End(code) => {
                end = code.to_le_bytes();
                (5, &end)
            }
        };
        let length = u32::try_from(data.len()).map_err(io::Error::other)?;
        let mut all = Vec::with_capacity(5 + data.len());
        all.push(kind);
        all.extend(length.to_le_bytes());
        all.extend(data);
        to.write_all(&all)
    }

    /// Reads one; `None` at the end.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut kind = [0];
        if from.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::other("a frame is too long"));
        }
        let mut data = vec![0; length];
        from.read_exact(&mut data)?;
        Ok(Some(match (kind[0], data.as_slice()) {
            (0, _) => Self::Input(data),
            (1, []) => Self::InputEnd,
            (2, &[a, b, c, d]) => {
                Self::Size(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
            }
            (3, _) => Self::Output(data),
            (4, _) => Self::Error(data),
            (5, &[a, b, c, d]) => Self::End(i32::from_le_bytes([a, b, c, d])),
            _ => return Err(io::Error::other("a frame is of no known kind")),
        }))
    }
}

/// Writes a line of JSON.
pub fn write_line(to: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads a line of JSON.
pub fn read_line<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<T> {
    let mut line = Vec::new();
    from.take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(crate::json::from_slice(&line)?)
}

/// Asks and waits for the answer. What follows it can be read from the reader.
pub fn ask(stream: &UnixStream, request: &Request) -> io::Result<(Reply, impl BufRead + use<>)> {
    let mut reader = io::BufReader::new(stream.try_clone()?);
    write_line(&mut &*stream, request)?;
    let reply = read_line(&mut reader)?;
    Ok((reply, reader))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, output or input is lost or garbled on its way, or a broken client ends the
    /// shim.
    #[test]
    fn frames_survive() {
        let frames = [
            Frame::Input(b"in".to_vec()),
            Frame::InputEnd,
            Frame::Size(24, 80),
            Frame::Output(Vec::new()),
            Frame::Error(vec![0; 70_000]),
            Frame::End(-1),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut from).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut from).unwrap(), None);
        for bad in [
            &[9, 0, 0, 0, 0][..],
            &[0, 255, 255, 255, 255],
            &[2, 1, 0, 0, 0, 0],
            &[0, 1],
        ] {
            assert!(Frame::read(&mut &*bad).is_err(), "{bad:?}");
        }
    }

    /// If it fails, clients and shims do not understand each other.
    #[test]
    fn requests_survive() {
        let request = Request::Stop {
            signal: 15,
            timeout: 10,
        };
        let mut line = Vec::new();
        write_line(&mut line, &request).unwrap();
        assert_eq!(read_line::<Request>(&mut line.as_slice()).unwrap(), request);
        assert!(read_line::<Request>(&mut &b""[..]).is_err());
        assert!(read_line::<Request>(&mut &b"{\"do\":\"fly\"}\n"[..]).is_err());
    }
}
