//! Where the serial console leads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the serial console leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsoleConfig {
    /// The monitor's standard input and output.
    #[default]
    Stdio,
    /// Nowhere: the guest has no serial port.
    Off,
    /// Output goes to a file, which is made or emptied.
    File(PathBuf),
    /// A Unix socket that the monitor listens on.
    Socket(PathBuf),
    /// A pseudoterminal; its name is in the log.
    Pty,
}

impl std::str::FromStr for ConsoleConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None => match text {
                "stdio" => Ok(Self::Stdio),
                "off" => Ok(Self::Off),
                "pty" => Ok(Self::Pty),
                _ => Err("expected stdio, off, pty, file=PATH or socket=PATH".into()),
            },
            Some((_, "")) => Err("the path is empty".into()),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("socket", path)) => Ok(Self::Socket(path.into())),
            Some(_) => Err("expected stdio, off, pty, file=PATH or socket=PATH".into()),
        }
    }
}

impl std::fmt::Display for ConsoleConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Off => f.write_str("off"),
            Self::Pty => f.write_str("pty"),
            Self::File(path) => write!(f, "file={}", path.display()),
            Self::Socket(path) => write!(f, "socket={}", path.display()),
        }
    }
}

impl Serialize for ConsoleConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConsoleConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
