//! Networks, ports and names.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use cofferdam::config::Transport;

use super::as_text;
use crate::state::is_name;

/// What network a container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// By passt: the host's own connections, without privilege.
    Passt,
    /// Loopback only.
    None,
    /// One of ours: a bridge.
    Named(String),
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "passt" | "default" => Ok(Self::Passt),
            "none" => Ok(Self::None),
            "host" => Err("a VM cannot have the host's network; passt comes nearest to it".into()),
            _ if text.starts_with("container:") => Err(
                "a VM cannot have another's network; let both have one of 'network create'".into(),
            ),
            _ if is_name(text) => Ok(Self::Named(text.to_owned())),
            _ => Err(format!("{text:?} is no name of a network")),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passt => "passt",
            Self::None => "none",
            Self::Named(name) => name,
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
                 {text:?}"
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
            _ if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                Err(format!("{text} is no port: they are from 1 to 65535"))
            }
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

/// Ports to publish, one after the other: `[[ADDRESS:]HOST[-HOST]:]PORT[-PORT][/tcp|/udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    first: Port,
    /// How many more there are.
    more: u16,
}

impl Ports {
    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Port> {
        (0..=self.more).map(move |number| Port {
            host: self.first.host.map(|port| port + number),
            guest: self.first.guest + number,
            ..self.first
        })
    }
}

/// A part of `first-last` apart: where it begins, and how many more there are.
fn range(text: &str) -> Option<(&str, u16)> {
    let Some((first, last)) = text.split_once('-') else {
        return Some((text, 0));
    };
    let ends: (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    Some((first, ends.1.checked_sub(ends.0)?))
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!("{text:?}: a range is FIRST-LAST, as long for the host as for the container")
        };
        let (ports, transport) = match text.split_once('/') {
            Some((ports, transport)) => (ports, format!("/{transport}")),
            None => (text, String::new()),
        };
        let (host, guest) = match ports.rsplit_once(':') {
            Some((host, guest)) => (Some(host), guest),
            None => (None, ports),
        };
        let (guest, more) = range(guest).ok_or_else(bad)?;
        let Some(host) = host else {
            let first = format!("{guest}{transport}").parse()?;
            return Ok(Self { first, more });
        };
        let (address, host) = match host.rsplit_once(':') {
            Some((address, host)) => (format!("{address}:"), host),
            None => (String::new(), host),
        };
        let (host, of_host) = range(host).ok_or_else(bad)?;
        // Free ports have no order.
        if of_host != more && !host.is_empty() {
            return Err(bad());
        }
        let first = format!("{address}{host}:{guest}{transport}").parse()?;
        Ok(Self { first, more })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.iter().last().unwrap_or(self.first);
        match (self.more, last.address, last.host) {
            (0, ..) => return self.first.fmt(f),
            (_, Some(IpAddr::V4(address)), _) => write!(f, "{address}:")?,
            (_, Some(IpAddr::V6(address)), _) => write!(f, "[{address}]:")?,
            (_, None, _) => {}
        }
        if let (Some(first), Some(last)) = (self.first.host, last.host) {
            write!(f, "{first}-{last}:")?;
        } else if last.address.is_some() {
            f.write_str(":")?;
        }
        let (first, transport) = (self.first.guest, name(last.transport));
        write!(f, "{first}-{}/{transport}", last.guest)
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
as_text!(Ports);
as_text!(AddHost);

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a container is on another network than was said.
    #[test]
    fn networks_are_read() {
        assert_eq!("default".parse(), Ok(Network::Passt));
        assert_eq!("bridge".parse(), Ok(Network::Named("bridge".into())));
        for text in ["host", "container:web", "../x", ""] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

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

    /// If it fails, a range of ports is published elsewhere than asked for, or in part.
    #[test]
    fn ranges_are_read() {
        for (text, expected) in [
            ("80/tcp", "80/tcp"),
            ("8000-8001:80-81/udp", "8000:80/udp 8001:81/udp"),
            (
                "127.0.0.1:5-6:7-8/tcp",
                "127.0.0.1:5:7/tcp 127.0.0.1:6:8/tcp",
            ),
            ("[::1]::7-8/tcp", "[::1]::7/tcp [::1]::8/tcp"),
            ("7-8/tcp", "7/tcp 8/tcp"),
        ] {
            let ports: Ports = text.parse().unwrap();
            let each: Vec<String> = ports.iter().map(|port| port.to_string()).collect();
            assert_eq!(each.join(" "), expected);
            assert_eq!(ports.to_string(), text);
        }
        for text in [
            "1-2:1",
            "1:1-2",
            "2-1:2-1",
            "0-1:1-2",
            "1-:1",
            "65535-65536:1-2",
            "a-b",
        ] {
            assert!(text.parse::<Ports>().is_err(), "{text}");
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
