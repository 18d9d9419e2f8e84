//! Streams: connections that carry the bytes of one standard stream or further descriptor of a process, or
//! an archive.
//!
//! The host connects and says `NAME TOKEN\n`; from there on it is the stream's own bytes, one way.
//! The end of a stream is the end of the connection in its direction.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

/// The longest greeting, with its newline, in bytes.
pub const MAX_GREETING: usize = 256;

/// Which stream a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// To the process.
    Stdin,
    /// From the process, or from its terminal.
    Stdout,
    /// From the process.
    Stderr,
    /// To the process, at the descriptor of that number.
    Input(u32),
    /// From the process, at the descriptor of that number.
    Output(u32),
    /// A tar archive, either way.
    Archive,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("stdin"),
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::Input(number) => write!(f, "in{number}"),
            Self::Output(number) => write!(f, "out{number}"),
            Self::Archive => f.write_str("archive"),
        }
    }
}

impl FromStr for Name {
    type Err = GreetingError;

    fn from_str(name: &str) -> Result<Self, GreetingError> {
        Ok(match name {
            "stdin" => Self::Stdin,
            "stdout" => Self::Stdout,
            "stderr" => Self::Stderr,
            "archive" => Self::Archive,
            _ => {
                let number = |prefix: &str| name.strip_prefix(prefix)?.parse().ok();
                let input = number("in").map(Self::Input);
                let found = input.or_else(|| number("out").map(Self::Output));
                return found.ok_or(GreetingError::Malformed);
            }
        })
    }
}

/// Why a connection is no stream.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// It ended or failed before its first line did.
    #[error("a stream's connection ended before its greeting")]
    Read(#[source] io::Error),
    /// Its first line is no greeting.
    #[error("a stream's greeting is not `NAME TOKEN` within {MAX_GREETING} bytes")]
    Malformed,
}

/// What a connection says first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Greeting {
    /// Which stream it is.
    pub name: Name,
    /// Whose it is: as in `Streams.token` or `CopyRequest.token`.
    pub token: String,
}

impl fmt::Display for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.name, self.token)
    }
}

impl Greeting {
    /// Reads a greeting, and not a byte more.
    pub fn read(connection: &mut impl Read) -> Result<Self, GreetingError> {
        let line = read_line(connection, MAX_GREETING).map_err(GreetingError::Read)?;
        let line = line.ok_or(GreetingError::Malformed)?;
        let (name, token) = line.split_once(' ').ok_or(GreetingError::Malformed)?;
        if token.is_empty() {
            return Err(GreetingError::Malformed);
        }
        Ok(Self {
            name: name.parse()?,
            token: token.to_owned(),
        })
    }
}

/// Reads a line of UTF-8 and not a byte more, so that what follows is left to its reader. `None`:
/// it is longer than `limit`, or no UTF-8.
pub(crate) fn read_line(from: &mut impl Read, limit: usize) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < limit {
        from.read_exact(&mut byte)?;
        if byte == *b"\n" {
            return Ok(String::from_utf8(line).ok());
        }
        line.extend(byte);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a stream goes to the wrong process, loses its first bytes, or a stranger's
    /// connection counts as one.
    #[test]
    fn greetings_are_read_to_their_end() {
        let greeting = Greeting {
            name: Name::Stdout,
            token: "a b".into(),
        };
        let text = format!("{greeting}data");
        let mut rest = text.as_bytes();
        assert_eq!(Greeting::read(&mut rest).unwrap(), greeting);
        assert_eq!(rest, b"data");
        let long = format!("stdin {}\n", "x".repeat(MAX_GREETING));
        for name in [Name::Input(3), Name::Output(4711)] {
            assert_eq!(name.to_string().parse::<Name>().unwrap(), name);
        }
        for bad in [
            "stdin\n",
            "stdin \n",
            "tty x\n",
            "in x\n",
            "out-1 x\n",
            "stdin \u{e9}",
            "",
            &long,
        ] {
            assert!(Greeting::read(&mut bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Greeting::read(&mut &b"stdin \xff\n"[..]).is_err());
    }
}
