//! Network interfaces.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use cofferdam_devices::virtio::net::{MacAddress, NetLimits};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, RateLimitConfig, is_default};

/// Queue pairs of an interface at most: one for each of as many vCPUs as a VM may have.
pub const MAX_NET_QUEUES: u16 = 32;
/// Bytes of the longest packet that passt takes; the guest is told to make use of it.
pub const PASST_MTU: u16 = 65520;

/// Bytes of the shortest one that IPv6 works with.
pub const MIN_PASST_MTU: u16 = 1280;

/// A virtio-net interface: on a tap, or on passt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetConfig {
    /// The tap's name: attached to if it exists, else made (and gone with the monitor). A `%d` in
    /// it is filled in by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// An open tap that the monitor inherits, by descriptor number, instead of a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// Instead of a tap, a passt of its own: a network that takes no privilege.
    #[serde(skip_serializing_if = "is_default")]
    pub passt: bool,
    /// Ports of the host that lead to the guest, with passt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// How many queue pairs the guest has for it, each with a thread of its own if there are
    /// several. They take a tap of several queues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// The guest's MAC address; a random, locally administered one where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The MTU that the guest is told.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "mtu")]
    pub mtu: Option<u16>,
    /// How fast frames may go.
    #[serde(skip_serializing_if = "is_default")]
    pub rate_limit: NetRateLimit,
}

/// How fast frames may go, as the guest sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetRateLimit {
    /// To the guest.
    #[serde(skip_serializing_if = "is_default")]
    pub rx: RateLimitConfig,
    /// From the guest.
    #[serde(skip_serializing_if = "is_default")]
    pub tx: RateLimitConfig,
}

impl NetRateLimit {
    /// What the device keeps to.
    pub fn limits(&self) -> Result<NetLimits, ConfigError> {
        Ok(NetLimits {
            rx: self.rx.limits("net")?,
            tx: self.tx.limits("net")?,
        })
    }
}

/// An MTU; what does not fit 16 bits is refused like all that is out of range.
fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let Some(mtu) = Option::<u64>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let mtu = u16::try_from(mtu).map_err(|_| D::Error::custom(ConfigError::Mtu(mtu)))?;
    Ok(Some(mtu))
}

/// A port of the host that leads to one of the guest: `[ADDRESS:]HOST:GUEST[/tcp|/udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The host's address; all that it has where not given.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

/// What a port is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl FromStr for Publish {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let bad = || ConfigError::Publish(text.to_owned());
        let (ports, transport) = match text.rsplit_once('/') {
            None => (text, Transport::Tcp),
            Some((ports, "tcp")) => (ports, Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some(_) => return Err(bad()),
        };
        let port = |text: &str| match text.parse() {
            Ok(port @ 1..) => Ok(port),
            _ => Err(bad()),
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(bad)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, host)) => {
                let inner = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                let address: IpAddr = inner.unwrap_or(address).parse().map_err(|_| bad())?;
                // Brackets tell the colons of IPv6 from ours.
                if address.is_ipv6() != inner.is_some() {
                    return Err(bad());
                }
                (Some(address), host)
            }
        };
        Ok(Self {
            address,
            host: port(host)?,
            guest: port(guest)?,
            transport,
        })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            None => {}
        }
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{}:{}/{transport}", self.host, self.guest)
    }
}

impl Serialize for Publish {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Publish {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl NetConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let hosts = [self.tap.is_some(), self.fd.is_some(), self.passt];
        if hosts.iter().filter(|is_given| **is_given).count() != 1 {
            return Err(ConfigError::Net);
        }
        if !self.passt && !self.publish.is_empty() {
            return Err(ConfigError::PublishTap);
        }
        match self.queues {
            Some(count) if !(1..=MAX_NET_QUEUES).contains(&count) => {
                return Err(ConfigError::NetQueues(count));
            }
            Some(2..) if self.tap.is_none() => return Err(ConfigError::QueuesTap),
            _ => {}
        }
        self.rate_limit.limits()?;
        self.mac_address()?;
        match self.mtu {
            Some(mtu) if self.passt && !(MIN_PASST_MTU..=PASST_MTU).contains(&mtu) => {
                Err(ConfigError::PasstMtu(mtu))
            }
            Some(mtu) if mtu < 68 => Err(ConfigError::Mtu(mtu.into())),
            _ => Ok(()),
        }
    }

    /// The MAC address, if one is given. It must be that of one host, not of a group.
    pub fn mac_address(&self) -> Result<Option<MacAddress>, ConfigError> {
        Ok(self.mac.as_deref().map(str::parse).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, the host publishes another port or address than the user named, or all.
    #[test]
    fn ports_to_publish_are_read_and_written() {
        for (text, written) in [
            ("8080:80", "8080:80/tcp"),
            ("53:5353/udp", "53:5353/udp"),
            ("127.0.0.1:8080:80/tcp", "127.0.0.1:8080:80/tcp"),
            ("[::1]:8080:80", "[::1]:8080:80/tcp"),
        ] {
            let publish: Publish = text.parse().unwrap();
            assert_eq!(publish.to_string(), written);
            assert_eq!(written.parse::<Publish>().unwrap(), publish);
        }
        for bad in [
            "",
            "80",
            "80:",
            ":80",
            "80:0",
            "80:65536",
            "80:80/sctp",
            "80:80/",
            "80:80/tcp/tcp",
            "::1:80:80",
            "[127.0.0.1]:80:80",
            "localhost:80:80",
        ] {
            let error = bad.parse::<Publish>().unwrap_err().to_string();
            assert!(error.contains("8080:80"), "{bad}: {error}");
        }
    }

    /// If it fails, an interface has two host sides or none, or what it cannot have is ignored.
    #[test]
    fn an_interface_is_on_a_tap_or_on_passt() {
        let check = |config: NetConfig| config.validate().map_err(|error| error.to_string());
        let passt = NetConfig {
            passt: true,
            publish: vec!["8080:80".parse().unwrap()],
            ..NetConfig::default()
        };
        check(passt.clone()).unwrap();
        let tap = Some("t".to_owned());
        assert!(
            check(NetConfig {
                tap: tap.clone(),
                ..passt.clone()
            })
            .is_err()
        );
        let error = check(NetConfig {
            tap,
            passt: false,
            ..passt.clone()
        })
        .unwrap_err();
        assert!(error.contains("publish"), "{error}");
        let error = check(NetConfig {
            queues: Some(2),
            ..passt.clone()
        })
        .unwrap_err();
        assert!(error.contains("queues"), "{error}");
        let error = check(NetConfig {
            mtu: Some(65535),
            ..passt
        })
        .unwrap_err();
        assert!(error.contains("65520"), "{error}");
    }
}
