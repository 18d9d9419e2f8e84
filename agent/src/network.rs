//! The guest's network, as the host says it is.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use cofferdam_agent_protocol::ETC;
use cofferdam_agent_protocol::api::{Interface, NetworkRequest, Route};
use nix::net::if_::if_nametoindex;
use nix::unistd::sethostname;

use crate::error::{Context, Error, Result};
use crate::names;
use crate::netlink::Netlink;

const CLASS: &str = "/sys/class/net";

fn netlink() -> Result<Netlink> {
    Netlink::new().context(|| "reach the kernel's network".into())
}

/// Brings up the loopback interface, which is always the first.
pub fn loopback_up() -> Result<()> {
    netlink()?
        .set_up(1, true)
        .context(|| "bring up the loopback interface".into())
}

/// Does all that the request names.
pub fn set(request: &NetworkRequest) -> Result<()> {
    let mut netlink = netlink()?;
    for interface in &request.interfaces {
        set_interface(&mut netlink, interface)?;
    }
    for route in &request.routes {
        add_route(&mut netlink, route)?;
    }
    names::serve(&request.nameservers)?;
    if !request.hostname.is_empty() {
        sethostname(&request.hostname)
            .context(|| format!("set the guest's name to {}", request.hostname))?;
    }
    fs::create_dir_all(ETC).context(|| format!("make the directory {ETC}"))?;
    let hostname = match request.hostname.as_str() {
        "" => String::new(),
        name => format!("{name}\n"),
    };
    for (name, text) in [
        ("resolv.conf", &request.resolv_conf),
        ("hosts", &request.hosts),
        ("hostname", &hostname),
    ] {
        if !text.is_empty() {
            // In place: containers have it mounted.
            let path = Path::new(ETC).join(name);
            fs::write(&path, text).context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

fn index_of(name: &str) -> Result<u32> {
    if_nametoindex(name).context(|| format!("find the interface {name}"))
}

fn set_interface(netlink: &mut Netlink, interface: &Interface) -> Result<()> {
    // One that was given its MAC before is found by that.
    let mut name = match interface.device.as_str() {
        "" => find(&interface.mac)?,
        device => find(device).or_else(|_| find(&interface.mac))?,
    };
    let index = index_of(&name)?;
    let addresses: Vec<_> = interface
        .addresses
        .iter()
        .map(|text| parse(text))
        .collect::<Result<_>>()?;
    let doing = |what: &str| format!("{what} the interface {}", interface.mac);
    netlink
        .set_up(index, false)
        .context(|| doing("bring down"))?;
    if !interface.device.is_empty() {
        let mac = mac(&interface.mac)?;
        netlink
            .set_mac(index, mac)
            .context(|| doing("set the MAC of"))?;
    }
    if !interface.name.is_empty() && interface.name != name {
        netlink
            .rename(index, &interface.name)
            .context(|| format!("rename the interface {name} to {}", interface.name))?;
        name.clone_from(&interface.name);
    }
    if interface.mtu != 0 {
        netlink
            .set_mtu(index, interface.mtu)
            .context(|| format!("set the MTU of {name} to {}", interface.mtu))?;
    }
    netlink
        .remove_addresses(index)
        .context(|| doing("take the addresses from"))?;
    netlink.set_up(index, true).context(|| doing("bring up"))?;
    for (address, prefix) in addresses {
        netlink
            .add_address(index, address, prefix)
            .context(|| format!("give {name} the address {address}/{prefix}"))?;
    }
    Ok(())
}

/// The name of the interface with a MAC; of the first that has one if it does not matter which.
fn find(mac: &str) -> Result<String> {
    let mut all: Vec<_> = fs::read_dir(CLASS)
        .context(|| "list the interfaces".into())?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    all.sort();
    let read = |name: &str, file: &str| {
        fs::read_to_string(format!("{CLASS}/{name}/{file}"))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let found = all.into_iter().find(|name| {
        // ARPHRD_ETHER, with a device behind it.
        let real = read(name, "type") == "1" && Path::new(CLASS).join(name).join("device").exists();
        real && (mac.is_empty() || read(name, "address").eq_ignore_ascii_case(mac))
    });
    let what = if mac.is_empty() {
        "network interface".into()
    } else {
        format!("interface with MAC {mac}")
    };
    found.ok_or(Error::NotFound(what))
}

/// The bytes of a MAC.
fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    let mac = bytes.and_then(|bytes| bytes.try_into().ok());
    mac.ok_or_else(|| Error::invalid(format!("MAC {text:?}"), "not as 52:54:00:12:34:56"))
}

/// An address and the length of its prefix.
fn parse(text: &str) -> Result<(IpAddr, u8)> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then_some((address, prefix))
    });
    parsed.ok_or_else(|| {
        Error::invalid(
            format!("address {text:?}"),
            "not as 10.0.0.2/24 or fd00::2/64",
        )
    })
}

fn add_route(netlink: &mut Netlink, route: &Route) -> Result<()> {
    let what = || format!("route to {:?} by {:?}", route.destination, route.gateway);
    let gateway = match route.gateway.as_str() {
        "" => None,
        text => {
            let bad = |_| Error::invalid(what(), "the gateway is no address");
            Some(text.parse::<IpAddr>().map_err(bad)?)
        }
    };
    let destination = match (route.destination.as_str(), gateway) {
        ("" | "default", Some(IpAddr::V6(_))) => (Ipv6Addr::UNSPECIFIED.into(), 0),
        ("" | "default", _) => (Ipv4Addr::UNSPECIFIED.into(), 0),
        (text, _) => parse(text)?,
    };
    let index = match route.device.as_str() {
        "" => None,
        name => Some(index_of(name)?),
    };
    if gateway.is_none() && index.is_none() {
        return Err(Error::invalid(
            what(),
            "it has neither a gateway nor a device",
        ));
    }
    netlink
        .add_route(destination, gateway, index, route.metric)
        .context(|| format!("add the {}", what()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, an interface has no or another address.
    #[test]
    fn addresses_are_read() {
        assert_eq!(
            parse("10.0.0.2/24").unwrap(),
            ("10.0.0.2".parse().unwrap(), 24)
        );
        assert_eq!(
            parse("fd00::2/64").unwrap(),
            ("fd00::2".parse().unwrap(), 64)
        );
        for bad in [
            "",
            "10.0.0.2",
            "10.0.0.2/33",
            "x/8",
            "fd00::/129",
            "10.0.0.2/-1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    /// If it fails, an interface that came late has another MAC than the engine gave it.
    #[test]
    fn macs_are_read() {
        assert_eq!(
            mac("52:54:00:12:34:ff").unwrap(),
            [0x52, 0x54, 0, 0x12, 0x34, 0xff]
        );
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "x:0:0:0:0:0"] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }
}
