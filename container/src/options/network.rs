//! Networks, ports and names.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use cofferdam::config::Transport;

use super::as_text;

/// What network a container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// By passt: the host's own connections, without privilege.
    Passt,
    /// Loopback only.
    None,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "passt" | "default" => Ok(Self::Passt),
            "none" => Ok(Self::None),
            "host" => Err("a VM cannot have the host's network; there are passt and none".into()),
            _ => Err(format!(
                "there is no network {text:?}; there are passt and none"
            )),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passt => "passt",
            Self::None => "none",
        })
    }
}

/// A port to publish: `[[ADDRESS:]HOST:]PORT[/tcp|/udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The host's address; all that it has where not given.
    pub address: Option<IpAddr>,
    /// The host's port; any free one where not given.
    pub host: Option<u16>,
    /// The container's port.
    pub guest: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "expected [[ADDRESS:]HOST:]PORT[/tcp|/udp], as 8080:80 or 127.0.0.1::53/udp, not \
                 {text:?}; ranges are not there yet"
            )
        };
        let (ports, transport) = match text.rsplit_once('/') {
            None => (text, Transport::Tcp),
            Some((ports, "tcp")) => (ports, Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some(_) => return Err(bad()),
        };
        let number = |text: &str| match text.parse() {
            Ok(port @ 1_u16..) => Ok(port),
            _ => Err(bad()),
        };
        let (host, guest) = match ports.rsplit_once(':') {
            None => (None, ports),
            Some((host, guest)) => (Some(host), guest),
        };
        let (address, host) = match host.map(|host| host.rsplit_once(':').ok_or(host)) {
            None => (None, None),
            Some(Err(host)) => (None, Some(host)),
            Some(Ok((address, host))) => {
                let inner = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                let parsed: IpAddr = inner.unwrap_or(address).parse().map_err(|_| bad())?;
                // Brackets tell the colons of IPv6 from ours.
                if parsed.is_ipv6() != inner.is_some() {
                    return Err(bad());
                }
                (Some(parsed), Some(host).filter(|host| !host.is_empty()))
            }
        };
        Ok(Self {
            address,
            host: host.map(number).transpose()?,
            guest: number(guest)?,
            transport,
        })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        match self.host {
            Some(host) => write!(f, "{host}:")?,
            None if self.address.is_some() => f.write_str(":")?,
            None => {}
        }
        write!(f, "{}/{}", self.guest, name(self.transport))
    }
}

/// How it is written behind a port.
pub fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

/// A line of /etc/hosts: `NAME:ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddHost {
    /// The host's name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

impl FromStr for AddHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("expected NAME:ADDRESS, not {text:?}");
        let (name, address) = text.split_once([':', '=']).ok_or_else(bad)?;
        let inner = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
        let address = inner.unwrap_or(address).parse().map_err(|_| bad())?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(bad());
        }
        Ok(Self {
            name: name.to_owned(),
            address,
        })
    }
}

impl fmt::Display for AddHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.address)
    }
}

as_text!(Network);
as_text!(Port);
as_text!(AddHost);

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a port is published elsewhere than asked for.
    #[test]
    fn ports_are_read() {
        for (text, address, host, guest) in [
            ("80/tcp", None, None, 80),
            ("8080:80/tcp", None, Some(8080), 80),
            ("127.0.0.1:8080:80/udp", Some("127.0.0.1"), Some(8080), 80),
            ("127.0.0.1::80/tcp", Some("127.0.0.1"), None, 80),
            ("[::1]:8080:80/tcp", Some("::1"), Some(8080), 80),
        ] {
            let port: Port = text.parse().unwrap();
            let expected = address.map(|address| address.parse().unwrap());
            assert_eq!(
                (port.address, port.host, port.guest),
                (expected, host, guest)
            );
            assert_eq!(port.to_string(), text);
        }
        for text in [
            "",
            "0",
            "80:",
            "a:80",
            "::1:1:2",
            "1:2:3:4",
            "8000-8010:80-90",
            "80/sctp",
        ] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }

    /// If it fails, names do not lead where the user said.
    #[test]
    fn hosts_are_read() {
        let host: AddHost = "db:::1".parse().unwrap();
        assert_eq!(
            (host.name.as_str(), host.address),
            ("db", "::1".parse().unwrap())
        );
        assert!("db".parse::<AddHost>().is_err());
        assert!("a b:1.2.3.4".parse::<AddHost>().is_err());
    }
}
