//! The network of a container: what its guest is told of addresses, routes and names.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use cofferdam::config::{Publish, Transport};
use nix::ifaddrs::getifaddrs;

use crate::options::{AddHost, Network, Options, Port};

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// passt needs one to take after.
    #[error(
        "the host has no IPv4 default route for passt to take after; --network bridge needs none, and \
         --network none is no network at all"
    )]
    NoRoute,
    /// Ports of a container that nobody can reach.
    #[error("ports cannot be published without a network")]
    NoPorts,
    /// No port of the host's.
    #[error("there is no free port for {0}")]
    Port(Port, #[source] io::Error),
}

/// The host's way out, whose addresses a guest behind passt has, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// The host's address.
    pub address: Ipv4Addr,
    /// Bits of it that are the network's.
    pub prefix: u32,
    /// Who leads on.
    pub gateway: Ipv4Addr,
}

/// What network a container gets.
pub fn uplink(options: &Options) -> Result<Option<Uplink>, NetworkError> {
    let found = match options.network {
        // Ports are netavark's there.
        Some(Network::Named(_)) => return Ok(None),
        Some(Network::None) => None,
        Some(Network::Passt) => Some(host_uplink().ok_or(NetworkError::NoRoute)?),
        None => host_uplink(),
    };
    match found {
        None if !options.publish.is_empty() || options.publish_all => Err(match options.network {
            Some(Network::None) => NetworkError::NoPorts,
            _ => NetworkError::NoRoute,
        }),
        found => Ok(found),
    }
}

/// The host's default route and the address of its interface.
pub fn host_uplink() -> Option<Uplink> {
    let (interface, gateway) = default_route(&fs::read_to_string("/proc/net/route").ok()?)?;
    getifaddrs().ok()?.find_map(|entry| {
        let of = |address: Option<nix::sys::socket::SockaddrStorage>| {
            Some(address?.as_sockaddr_in()?.ip())
        };
        (entry.interface_name == interface).then_some(())?;
        Some(Uplink {
            address: of(entry.address)?,
            prefix: of(entry.netmask)?.to_bits().count_ones(),
            gateway,
        })
    })
}

/// Whether the host has passt installed.
pub fn has_passt() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir| dir.join("passt").is_file())
}

/// The interface and gateway of the default route in the text of /proc/net/route, that with the
/// lowest metric.
fn default_route(table: &str) -> Option<(String, Ipv4Addr)> {
    let mut best: Option<(u32, String, Ipv4Addr)> = None;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, "00000000", gateway, _, _, _, metric, "00000000", ..] = fields[..] else {
            continue;
        };
        // As the kernel has it in memory: the first byte is the lowest.
        let gateway = u32::from_str_radix(gateway, 16).ok()?.swap_bytes();
        let metric = metric.parse().ok()?;
        if gateway != 0 && best.as_ref().is_none_or(|(other, ..)| metric < *other) {
            best = Some((metric, name.to_owned(), Ipv4Addr::from_bits(gateway)));
        }
    }
    best.map(|(_, name, gateway)| (name, gateway))
}

/// The text of the container's /etc/resolv.conf: the user's servers, or the host's. Never empty, as
/// there is to be such a file also where the host has none.
pub fn resolv_conf(options: &Options, host: &str, gateway: Option<Ipv4Addr>) -> String {
    let mut text = String::new();
    let line = |text: &mut String, words: &[&str]| {
        text.push_str(&words.join(" "));
        text.push('\n');
    };
    let of_host = |key: &'static str| {
        let lines = host.lines().filter_map(move |line| line.strip_prefix(key));
        lines.map(str::trim).filter(|rest| !rest.is_empty())
    };
    if options.dns.is_empty() {
        for server in of_host("nameserver ") {
            let address = server.parse::<IpAddr>();
            // The host's own loopback is where passt leads the gateway's address.
            let server = match (address, gateway) {
                (Ok(address), Some(gateway)) if address.is_loopback() => gateway.to_string(),
                _ => server.to_owned(),
            };
            line(&mut text, &["nameserver", &server]);
        }
    }
    for server in &options.dns {
        line(&mut text, &["nameserver", &server.to_string()]);
    }
    match options.dns_search.as_slice() {
        [] => of_host("search ").for_each(|domains| line(&mut text, &["search", domains])),
        domains => line(&mut text, &["search", &domains.join(" ")]),
    }
    match options.dns_option.as_slice() {
        [] => of_host("options ").for_each(|all| line(&mut text, &["options", all])),
        all => line(&mut text, &["options", &all.join(" ")]),
    }
    match text.is_empty() {
        true => "# The host has no name server.\n".into(),
        false => text,
    }
}

/// The text of the container's /etc/hosts.
pub fn hosts(extra: &[AddHost], hostname: &str, address: Option<Ipv4Addr>) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for AddHost { name, address } in extra {
        let _ = writeln!(text, "{address}\t{name}");
    }
    if let Some(address) = address {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

/// The ports to publish, each with one of the host's: where none is named, a free one.
pub fn ports(options: &Options, exposed: &[String]) -> Result<Vec<Port>, NetworkError> {
    let mut ports: Vec<Port> = options.publish.iter().flat_map(|p| p.iter()).collect();
    if options.publish_all {
        ports.extend(options.expose.iter().flat_map(|p| p.iter()));
        ports.extend(exposed.iter().filter_map(|port| port.parse::<Port>().ok()));
    }
    // Held until all are chosen, or one would be chosen twice.
    let mut held = Vec::new();
    for port in ports.iter_mut().filter(|port| port.host.is_none()) {
        let address = port.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let at = SocketAddr::new(address, 0);
        let bound = match port.transport {
            Transport::Tcp => TcpListener::bind(at).and_then(|socket| {
                let at = socket.local_addr();
                held.push((Some(socket), None));
                at
            }),
            Transport::Udp => UdpSocket::bind(at).and_then(|socket| {
                let at = socket.local_addr();
                held.push((None, Some(socket)));
                at
            }),
        };
        port.host = Some(
            bound
                .map_err(|error| NetworkError::Port(*port, error))?
                .port(),
        );
    }
    Ok(ports)
}

/// As the monitor's configuration has it.
pub fn publish(ports: &[Port]) -> Vec<Publish> {
    let publish = |port: &Port| {
        Some(Publish {
            address: port.address,
            host: port.host?,
            guest: port.guest,
            transport: port.transport,
        })
    };
    ports.iter().filter_map(publish).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, guests have no way out, or a worse one than the host.
    #[test]
    fn the_default_route_is_found() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth1\t00000000\t0100000A\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
            eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
        let (name, gateway) = default_route(table).unwrap();
        assert_eq!(
            (name.as_str(), gateway),
            ("eth0", Ipv4Addr::new(192, 168, 1, 1))
        );
        assert_eq!(default_route(""), None);
        assert_eq!(default_route("x\neth0 00000000 zz 0 0 0 0 00000000"), None);
    }

    /// If it fails, names are asked for where nobody answers.
    #[test]
    fn name_servers_are_the_hosts_or_the_users() {
        let host = "# x\nnameserver 127.0.0.53\nnameserver 9.9.9.9\nsearch lan\noptions edns0\n";
        let gateway = Some(Ipv4Addr::new(10, 0, 0, 1));
        let mut options = Options::default();
        assert_eq!(
            resolv_conf(&options, host, gateway),
            "nameserver 10.0.0.1\nnameserver 9.9.9.9\nsearch lan\noptions edns0\n"
        );
        // Else the agent would be told of no such file, and the container could not be made.
        assert!(resolv_conf(&options, "", gateway).starts_with('#'));
        options.dns = vec!["1.1.1.1".parse().unwrap()];
        options.dns_search = vec!["a".into(), "b".into()];
        assert_eq!(
            resolv_conf(&options, host, gateway),
            "nameserver 1.1.1.1\nsearch a b\noptions edns0\n"
        );
        let text = hosts(&["db:10.0.0.9".parse().unwrap()], "box", gateway);
        assert!(text.contains("10.0.0.9\tdb\n") && text.ends_with("10.0.0.1\tbox\n"));
    }

    /// If it fails, a port without a number of the host's is not published, or two get one.
    #[test]
    fn free_ports_are_found() {
        let options = Options {
            publish: vec!["80".parse().unwrap(), "127.0.0.1::80".parse().unwrap()],
            publish_all: true,
            ..Options::default()
        };
        let ports = ports(&options, &["53/udp".into()]).unwrap();
        let hosts: std::collections::HashSet<_> = ports.iter().map(|p| p.host.unwrap()).collect();
        assert_eq!((ports.len(), hosts.len(), publish(&ports).len()), (3, 3, 3));
    }

    /// If it fails, ports are promised that nobody can reach.
    #[test]
    fn ports_need_a_network() {
        let options = Options {
            network: Some(Network::None),
            publish: vec!["80".parse().unwrap()],
            ..Options::default()
        };
        assert!(matches!(uplink(&options), Err(NetworkError::NoPorts)));
    }
}
