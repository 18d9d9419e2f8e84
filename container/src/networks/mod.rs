//! Networks: bridges of the host's, with NAT and names, to which containers' VMs are connected.
//! netavark makes the bridge, the firewall's rules and published ports, and aardvark-dns answers for
//! names; it is root's. What is here is which networks there are, and who has which address.

mod link;
mod publish;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::files::{FileError, file, private_directory, remove_tree};
use crate::options::{as_text, pairs};
use crate::state::{self, Lock, Now, StateError, named, new_id};

pub use link::{Link, LinkError, check, disconnect, netns};

/// The network that is there without having been made.
pub const DEFAULT: &str = "bridge";
/// Of names that mean something else.
const RESERVED: [&str; 5] = ["none", "host", "passt", "default", "container"];

/// Why there is no such network.
#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    /// None has the name.
    #[error("no such network: {0}; 'cofferdam network create {0}' makes it")]
    Unknown(String),
    /// The name is none.
    #[error(
        "{0:?} cannot be the name of a network: [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed, none, host, passt, default and container are not"
    )]
    Name(String),
    /// The name is another's.
    #[error("the network {0} exists already")]
    Exists(String),
    /// Its addresses are another's.
    #[error("{0} overlaps with another network of the host's; give another --subnet")]
    Overlap(Subnet),
    /// A gateway or an address from elsewhere.
    #[error("{0} is no address for a machine in {1}")]
    Outside(Ipv4Addr, Subnet),
    /// Somebody has it.
    #[error("the address {0} is in use by container {1}")]
    Taken(Ipv4Addr, String),
    /// Everybody has one.
    #[error(
        "the network {0} has no free address; remove containers, or make one with a larger --subnet"
    )]
    Full(String),
    /// All of ours are somebody's.
    #[error("all of 10.91.0.0/16 is in use; give --subnet")]
    NoSubnet,
    /// Containers are connected to it.
    #[error("network {0} is in use by container {1}")]
    InUse(String, String),
    /// The one that is always there.
    #[error("the network bridge cannot be removed; it takes nothing while nobody uses it")]
    Default,
    /// A record or lock.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file or directory of ours.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Addresses that belong together: `10.91.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    first: u32,
    prefix: u8,
}

impl Subnet {
    fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let first = address.to_bits() & Self::mask(prefix);
        Self { first, prefix }
    }

    fn mask(prefix: u8) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
    }

    fn last(self) -> u32 {
        self.first | !Self::mask(self.prefix)
    }

    fn overlaps(self, other: Self) -> bool {
        self.first <= other.last() && other.first <= self.last()
    }

    /// Whether a machine can have it: neither the network's own address nor its broadcast's.
    fn has(self, address: Ipv4Addr) -> bool {
        (self.first + 1..self.last()).contains(&address.to_bits())
    }

    /// Those that machines can have.
    fn machines(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.first + 1..self.last()).map(Ipv4Addr::from_bits)
    }

    /// How many bits are the network's.
    pub fn prefix(self) -> u8 {
        self.prefix
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no IPv4 network such as 10.91.7.0/24, of /8 to /29");
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let prefix = prefix.parse().map_err(|_| bad())?;
        let subnet = Self::new(address.parse().map_err(|_| bad())?, prefix);
        let is_whole = address.parse() == Ok(Ipv4Addr::from_bits(subnet.first));
        match (8..=29).contains(&prefix) && is_whole {
            true => Ok(subnet),
            false => Err(bad()),
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.first), self.prefix)
    }
}

as_text!(Subnet);

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    /// Its name.
    pub name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// When it was made, as RFC 3339 has it.
    pub created: String,
    /// Always `bridge`.
    pub driver: String,
    /// The bridge, on the host.
    pub interface: String,
    /// Its addresses.
    pub subnet: Subnet,
    /// The host's own in it.
    pub gateway: Ipv4Addr,
    /// Nothing leads out of it.
    pub internal: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// How a network is to be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Some that is free, if not given.
    pub subnet: Option<Subnet>,
    /// The first of the subnet, if not given.
    pub gateway: Option<Ipv4Addr>,
    /// Nothing leads out of it.
    pub internal: bool,
    /// `NAME=VALUE`.
    pub labels: Vec<String>,
}

/// All networks.
#[derive(Clone, Debug)]
pub struct Networks {
    dir: PathBuf,
    containers: PathBuf,
}

const RECORD: &str = "network.json";
const LEASES: &str = "leases";

impl Networks {
    /// Those below a directory.
    pub fn at(data: &Path) -> Self {
        Self {
            dir: data.join("networks"),
            containers: data.join("containers"),
        }
    }

    /// Keeps others from changing networks.
    fn lock(&self) -> Result<Lock, NetworksError> {
        private_directory(&self.dir)?;
        Ok(state::lock(&self.dir.join(".lock"), true)?)
    }

    /// Makes one.
    pub fn make(&self, name: &str, wanted: &Wanted) -> Result<Network, NetworksError> {
        let _lock = self.lock()?;
        if !state::is_name(name) || RESERVED.contains(&name) {
            return Err(NetworksError::Name(name.to_owned()));
        }
        let all = self.list()?;
        if all.iter().any(|network| network.name == name) {
            return Err(NetworksError::Exists(name.to_owned()));
        }
        let table = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let network = new(name, wanted, &all, &routed(&table))?;
        let leases = self.dir.join(name).join(LEASES);
        fs::create_dir_all(&leases).map_err(file("cannot make", &leases))?;
        state::save(&self.dir.join(name).join(RECORD), &network)?;
        Ok(network)
    }

    /// The network of that name. The default one is made if it is not there.
    pub fn find(&self, name: &str) -> Result<Network, NetworksError> {
        match named::find(&self.dir, name, RECORD)? {
            Some(network) => Ok(network),
            None if name == DEFAULT => match self.make(name, &Wanted::default()) {
                // Somebody else did at the same time.
                Err(NetworksError::Exists(_)) => {
                    Ok(state::load(&self.dir.join(name).join(RECORD))?)
                }
                other => other,
            },
            None => Err(NetworksError::Unknown(name.to_owned())),
        }
    }

    /// All of them, by name.
    pub fn list(&self) -> Result<Vec<Network>, NetworksError> {
        Ok(named::list(&self.dir, RECORD)?)
    }

    /// Removes one that nobody uses. `user`: the container that has it, if one does.
    pub fn remove(&self, name: &str, user: Option<&str>) -> Result<(), NetworksError> {
        if name == DEFAULT {
            return Err(NetworksError::Default);
        }
        let network = self.find(name)?;
        let _lock = self.lock()?;
        if let Some(container) = user {
            return Err(NetworksError::InUse(network.name, container.to_owned()));
        }
        let dir = self.dir.join(&network.name);
        Ok(remove_tree(&dir)?)
    }

    /// The addresses that containers have: whose they are, by their IDs.
    pub fn leases(&self, network: &Network) -> BTreeMap<Ipv4Addr, String> {
        let dir = self.dir.join(&network.name).join(LEASES);
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let lease = |entry: fs::DirEntry| {
            let address = entry.file_name().to_str()?.parse().ok()?;
            Some((address, fs::read_to_string(entry.path()).ok()?))
        };
        entries.filter_map(lease).collect()
    }

    /// Gives a container an address, the one that it wants or the lowest that is free.
    fn lease(
        &self,
        network: &Network,
        id: &str,
        wanted: Option<Ipv4Addr>,
    ) -> Result<Ipv4Addr, NetworksError> {
        let dir = self.dir.join(&network.name).join(LEASES);
        let mut leases = self.leases(network);
        // Of containers that are gone, and its own of a life before.
        leases.retain(|address, owner| {
            let stays = owner != id && self.containers.join(&*owner).exists();
            if !stays {
                let _ = fs::remove_file(dir.join(address.to_string()));
            }
            stays
        });
        let address = match wanted {
            Some(address) => {
                if !network.subnet.has(address) || address == network.gateway {
                    return Err(NetworksError::Outside(address, network.subnet));
                }
                if let Some(owner) = leases.get(&address) {
                    return Err(NetworksError::Taken(address, owner.clone()));
                }
                address
            }
            None => {
                let is_free = |a: &Ipv4Addr| *a != network.gateway && !leases.contains_key(a);
                let free = network.subnet.machines().find(is_free);
                free.ok_or_else(|| NetworksError::Full(network.name.clone()))?
            }
        };
        let path = dir.join(address.to_string());
        let write = || fs::File::create(&path)?.write_all(id.as_bytes());
        write().map_err(file("cannot write", &path))?;
        Ok(address)
    }

    fn release(&self, network: &Network, address: Ipv4Addr) {
        let dir = self.dir.join(&network.name).join(LEASES);
        let _ = fs::remove_file(dir.join(address.to_string()));
    }
}

/// A network as wanted, beside those that there are and what the host has routes to.
fn new(
    name: &str,
    wanted: &Wanted,
    all: &[Network],
    routed: &[Subnet],
) -> Result<Network, NetworksError> {
    let ours: Vec<Subnet> = all.iter().map(|network| network.subnet).collect();
    let overlaps = |subnet: Subnet| {
        let taken = ours.iter().chain(routed);
        taken.copied().any(|other| subnet.overlaps(other))
    };
    let subnet = match wanted.subnet {
        Some(subnet) if overlaps(subnet) => return Err(NetworksError::Overlap(subnet)),
        Some(subnet) => subnet,
        None => {
            let mut all = (0..=255).map(|n| Subnet::new(Ipv4Addr::new(10, 91, n, 0), 24));
            all.find(|s| !overlaps(*s)).ok_or(NetworksError::NoSubnet)?
        }
    };
    let gateway = wanted
        .gateway
        .unwrap_or(Ipv4Addr::from_bits(subnet.first + 1));
    if !subnet.has(gateway) {
        return Err(NetworksError::Outside(gateway, subnet));
    }
    // A number will not do: networks of another data directory may be there at the same time. The kernel
    // takes 15 characters.
    let interface = |id: &str| format!("cofferdam-{}", id.get(..5).unwrap_or(id));
    let is_free = |id: &String| all.iter().all(|network| network.interface != interface(id));
    let id = std::iter::repeat_with(new_id)
        .find(is_free)
        .unwrap_or_default();
    Ok(Network {
        name: name.to_owned(),
        interface: interface(&id),
        id,
        created: Now::text(),
        driver: "bridge".into(),
        subnet,
        gateway,
        internal: wanted.internal,
        labels: pairs(&wanted.labels),
    })
}

/// What the host has routes to, by the text of /proc/net/route; not the rest of the world.
fn routed(table: &str) -> Vec<Subnet> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| Some(u32::from_str_radix(text, 16).ok()?.swap_bytes());
        let (destination, mask) = (number(fields.get(1)?)?, number(fields.get(7)?)?);
        let prefix = u8::try_from(mask.leading_ones()).ok()?;
        (prefix != 0).then(|| Subnet::new(Ipv4Addr::from_bits(destination), prefix))
    };
    table.lines().skip(1).filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, networks have addresses that are others'.
    #[test]
    fn subnets_do_not_overlap() {
        let subnet = |text: &str| text.parse::<Subnet>();
        for text in ["10.91.0.0/24", "10.0.0.0/8", "192.168.1.8/29"] {
            assert_eq!(subnet(text).unwrap().to_string(), text);
        }
        for text in [
            "10.91.0.1/24",
            "10.0.0.0",
            "10.0.0.0/30",
            "0.0.0.0/0",
            "x/24",
            "fd00::/64",
        ] {
            assert!(subnet(text).is_err(), "{text}");
        }
        let table = "Iface\tDestination\tGateway\n\
            eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            br0\t00005B0A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
        let routed = routed(table);
        assert_eq!(routed, [subnet("10.91.0.0/24").unwrap()]);
        let first = new("a", &Wanted::default(), &[], &routed).unwrap();
        assert_eq!(first.subnet.to_string(), "10.91.1.0/24");
        assert_eq!(first.gateway, Ipv4Addr::new(10, 91, 1, 1));
        let all = [first];
        let second = new("b", &Wanted::default(), &all, &routed).unwrap();
        assert_eq!(second.subnet.to_string(), "10.91.2.0/24");
        assert_ne!(second.interface, all[0].interface);
        // Nor another data directory's, of which we know nothing; it is one that the kernel takes.
        let elsewhere = new("a", &Wanted::default(), &[], &routed).unwrap();
        assert_ne!(elsewhere.interface, all[0].interface);
        assert_eq!(elsewhere.interface.len(), 15);
        let wide = Wanted {
            subnet: Some(subnet("10.0.0.0/8").unwrap()),
            ..Wanted::default()
        };
        assert!(matches!(
            new("c", &wide, &all, &[]),
            Err(NetworksError::Overlap(_))
        ));
        let elsewhere = Wanted {
            gateway: Some(Ipv4Addr::LOCALHOST),
            ..Wanted::default()
        };
        assert!(matches!(
            new("c", &elsewhere, &all, &[]),
            Err(NetworksError::Outside(..))
        ));
    }

    /// If it fails, two containers have one address, or none is free any more though few are taken.
    #[test]
    fn addresses_are_leased_once() {
        let dir = std::env::temp_dir().join(format!("cofferdam-networks-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let networks = Networks::at(&dir);
        assert!(networks.list().unwrap().is_empty());
        for bad in ["none", "host", "../x", ""] {
            assert!(networks.make(bad, &Wanted::default()).is_err(), "{bad}");
        }
        let wanted = Wanted {
            subnet: Some("198.51.100.0/29".parse().unwrap()),
            ..Wanted::default()
        };
        let network = networks.make("net", &wanted).unwrap();
        assert!(matches!(
            networks.make("net", &wanted),
            Err(NetworksError::Exists(_))
        ));
        assert_eq!(networks.find("net").unwrap(), network);
        assert!(networks.find("other").is_err());
        for id in ["a", "b", "c", "d", "e", "f"] {
            fs::create_dir_all(dir.join("containers").join(id)).unwrap();
        }
        let address = |last| Ipv4Addr::new(198, 51, 100, last);
        assert_eq!(networks.lease(&network, "a", None).unwrap(), address(2));
        assert_eq!(
            networks.lease(&network, "b", Some(address(6))).unwrap(),
            address(6)
        );
        for wrong in [1, 6, 7] {
            assert!(networks.lease(&network, "c", Some(address(wrong))).is_err());
        }
        for (id, last) in [("c", 3), ("d", 4), ("e", 5), ("a", 2)] {
            assert_eq!(networks.lease(&network, id, None).unwrap(), address(last));
        }
        assert!(matches!(
            networks.lease(&network, "f", None),
            Err(NetworksError::Full(_))
        ));
        // Of one that is gone, and of one that gave it back.
        fs::remove_dir(dir.join("containers/c")).unwrap();
        assert_eq!(networks.lease(&network, "f", None).unwrap(), address(3));
        networks.release(&network, address(6));
        assert_eq!(networks.leases(&network).len(), 4);
        assert!(matches!(
            networks.remove("net", Some("x")),
            Err(NetworksError::InUse(..))
        ));
        networks.remove("net", None).unwrap();
        assert!(matches!(
            networks.remove(DEFAULT, None),
            Err(NetworksError::Default)
        ));
        fs::remove_dir_all(dir).unwrap();
    }
}
