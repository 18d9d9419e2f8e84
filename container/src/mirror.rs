//! What netavark or an engine put into a container's network namespace, mirrored into the guest: each
//! interface there is joined with a tap, so that what arrives at it goes to the guest's and back, and the
//! guest is told its MAC, addresses, MTU and routes.
//!
//! `ip` and `tc` (iproute2) do it, in the namespace that this process is in; where there is nothing to
//! mirror, neither is started.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use cofferdam_agent_protocol::api;
use cofferdam_devices::virtio::net::{TapError, bring_up};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

use crate::vm::Tap;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The namespace.
    #[error("cannot enter the network namespace {0}")]
    Enter(PathBuf, #[source] io::Error),
    /// A new one.
    #[error("cannot make a network namespace")]
    Make(#[source] io::Error),
    /// An interface of a new one.
    #[error(transparent)]
    Interface(#[from] TapError),
    /// Not there.
    #[error("cannot run {program} (Debian: the package iproute2)")]
    Run {
        /// The program.
        program: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{command}: {said}")]
    Failed {
        /// What was run.
        command: String,
        /// What it said.
        said: String,
    },
    /// It says what nobody expects.
    #[error("cannot understand {command}")]
    Answer {
        /// What was run.
        command: String,
        /// In what way.
        #[source]
        source: serde_json::Error,
    },
    /// An interface that came when the VM was there already.
    #[error(
        "the interface {0} came into the container's network namespace after the container was made, \
         and its VM cannot have it any more; set the network up before 'create' or in a createRuntime hook"
    )]
    Late(String),
}

/// All that a guest has of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mirror {
    /// The MAC of a device that waits for an interface which comes when the VM is there already.
    #[serde(default)]
    spare: Option<String>,
    interfaces: Vec<Interface>,
    routes: Vec<Route>,
    /// Loopback addresses of the namespace's where somebody answers the guest's questions for names.
    #[serde(default)]
    pub(crate) nameservers: Vec<Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Interface {
    name: String,
    mac: String,
    /// The MAC that its device in the VM was made with, if not that.
    #[serde(default)]
    device: String,
    mtu: u32,
    addresses: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Route {
    destination: String,
    gateway: String,
    device: String,
    metric: u32,
}

/// An interface, as `ip -json address` has it.
#[derive(Debug, Deserialize)]
struct Link {
    ifname: String,
    link_type: String,
    #[serde(default)]
    address: String,
    mtu: u32,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    #[serde(default)]
    local: String,
    prefixlen: u8,
    #[serde(default)]
    scope: String,
}

/// A route, as `ip -json route` has it.
#[derive(Debug, Deserialize)]
struct Line {
    dst: String,
    #[serde(default)]
    gateway: String,
    #[serde(default)]
    dev: String,
    #[serde(default)]
    protocol: String,
    #[serde(default)]
    metric: u32,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// How our taps are called; what else is called so is not mirrored.
const TAP: &str = "cofferdam";
/// The MAC of a device that waits for an interface, until it gets that one's.
const SPARE: &str = "02:00:00:00:00:01";

/// Enters the namespace at a path, or makes one. This thread and those that it starts from now on are
/// in it.
pub(crate) fn enter(netns: Option<&Path>) -> Result<(), MirrorError> {
    match netns {
        Some(path) => enter_path(path),
        None => {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|error| MirrorError::Make(error.into()))?;
            Ok(bring_up("lo")?)
        }
    }
}

/// Whether this namespace has nothing that could be mirrored. It takes a system call or two, and `ip`
/// some milliseconds.
fn is_bare() -> bool {
    let is_other = |entry: &InterfaceAddress| {
        let is_loopback = entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        !is_loopback && !entry.interface_name.starts_with(TAP)
    };
    getifaddrs().is_ok_and(|mut all| !all.any(|entry| is_other(&entry)))
}

/// Enters the namespace at a path.
pub(crate) fn enter_path(path: &Path) -> Result<(), MirrorError> {
    let enter = || Ok(setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?);
    enter().map_err(|source| MirrorError::Enter(path.to_owned(), source))
}

/// Gives an interface of this namespace to that at a path, where it is called `own`, has the addresses
/// that it has here, and is up.
pub(crate) fn give(name: &str, own: &str, netns: &Path) -> Result<(), MirrorError> {
    let links: Vec<Link> = ask(&["-json", "address", "show", "dev", name])?;
    let addresses: Vec<_> = links.into_iter().map(interface).collect();
    let path = netns.to_string_lossy();
    run(
        "ip",
        &["link", "set", "dev", name, "netns", &path, "name", own],
    )?;
    within(netns, || {
        for address in addresses.iter().flat_map(|one| &one.addresses) {
            run("ip", &["address", "add", address, "dev", own])?;
        }
        run("ip", &["link", "set", "dev", own, "up"]).map(drop)
    })?
}

/// Does something in the namespace at a path, on a thread that goes there.
pub(crate) fn within<T: Send>(
    path: &Path,
    work: impl FnOnce() -> T + Send,
) -> Result<T, MirrorError> {
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            enter_path(path)?;
            Ok(work())
        });
        match there.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn run(program: &'static str, args: &[&str]) -> Result<Vec<u8>, MirrorError> {
    // Users and engines rarely have it in theirs.
    let paths = std::env::var("PATH").unwrap_or_default();
    let path = format!("{paths}:/usr/sbin:/usr/bin:/sbin:/bin");
    let output = Command::new(program).args(args).env("PATH", path).output();
    let output = output.map_err(|source| MirrorError::Run { program, source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr)
        .trim()
        .replace('\n', "; ");
    Err(MirrorError::Failed {
        command: command(program, args),
        said,
    })
}

fn command(program: &str, args: &[&str]) -> String {
    format!("{program} {}", args.join(" "))
}

fn ask<T: for<'a> Deserialize<'a>>(args: &[&str]) -> Result<Vec<T>, MirrorError> {
    let text = run("ip", args)?;
    if text.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    crate::json::from_slice(&text).map_err(|source| MirrorError::Answer {
        command: command("ip", args),
        source,
    })
}

impl Mirror {
    /// What there is in this namespace.
    pub(crate) fn scan() -> Result<Self, MirrorError> {
        if is_bare() {
            return Ok(Self::default());
        }
        let links: Vec<Link> = ask(&["-json", "address", "show"])?;
        let mut lines: Vec<Line> = Vec::new();
        if links.iter().any(is_mirrored) {
            lines = ask(&["-json", "-4", "route", "show"])?;
            lines.extend(ask::<Line>(&["-json", "-6", "route", "show"])?);
        }
        Ok(Self::of(links, lines))
    }

    fn of(links: Vec<Link>, lines: Vec<Line>) -> Self {
        let interfaces: Vec<_> = links
            .into_iter()
            .filter(is_mirrored)
            .map(interface)
            .collect();
        let is_ours = |name: &str| interfaces.iter().any(|one| one.name == name);
        let mut routes: Vec<_> = lines
            .into_iter()
            // The kernel makes its own of the addresses, in the guest, too.
            .filter(|line| line.protocol != "kernel" && is_ours(&line.dev))
            .filter(|line| line.kind.as_deref().is_none_or(|kind| kind == "unicast"))
            .map(route)
            .collect();
        // What gateways are reached by comes first.
        routes.sort_by_key(|route| !route.gateway.is_empty());
        Self {
            spare: None,
            interfaces,
            routes,
            nameservers: Vec::new(),
        }
    }

    /// Where there is no interface yet, has a device that waits for one.
    pub(crate) fn wait_for_one(&mut self) {
        self.spare = self.interfaces.is_empty().then(|| SPARE.to_owned());
    }

    /// A tap for each interface, or one for that which may come.
    pub(crate) fn taps(&self) -> Vec<Tap> {
        if let Some(mac) = &self.spare {
            return vec![Tap {
                name: format!("{TAP}0"),
                mac: mac.clone(),
                mtu: None,
            }];
        }
        let tap = |(number, interface): (usize, &Interface)| Tap {
            name: format!("{TAP}{number}"),
            mac: interface.mac.clone(),
            mtu: u16::try_from(interface.mtu).ok(),
        };
        self.interfaces.iter().enumerate().map(tap).collect()
    }

    /// Joins interfaces and taps, which the monitor has made.
    pub(crate) fn join(&self) -> Result<(), MirrorError> {
        for (number, interface) in self.interfaces.iter().enumerate() {
            let (name, tap) = (interface.name.as_str(), format!("{TAP}{number}"));
            let mtu = interface.mtu.to_string();
            run("ip", &["link", "set", &tap, "mtu", &mtu, "up"])?;
            redirect(name, &tap)?;
            redirect(&tap, name)?;
        }
        Ok(())
    }

    /// What has changed since `before`: nothing, or what the guest is to be told. An interface that has come
    /// takes the device that waited for one, and is joined with its tap.
    pub(crate) fn since(&mut self, before: &Self) -> Result<bool, MirrorError> {
        self.spare.clone_from(&before.spare);
        for one in &mut self.interfaces {
            let known = before.interfaces.iter().find(|other| other.mac == one.mac);
            one.device = match known {
                Some(known) => known.device.clone(),
                None => {
                    let late = || MirrorError::Late(one.name.clone());
                    self.spare.take().ok_or_else(late)?
                }
            };
        }
        if self.spare != before.spare {
            self.join()?;
        }
        Ok(self != before)
    }

    /// As the agent is told.
    pub(crate) fn request(&self) -> api::NetworkRequest {
        let mut request = api::NetworkRequest::new();
        for one in &self.interfaces {
            let mut interface = api::Interface::new();
            interface.name.clone_from(&one.name);
            interface.mac.clone_from(&one.mac);
            interface.device.clone_from(&one.device);
            interface.mtu = one.mtu;
            interface.addresses.clone_from(&one.addresses);
            request.interfaces.push(interface);
        }
        for one in &self.routes {
            let mut route = api::Route::new();
            route.destination.clone_from(&one.destination);
            route.gateway.clone_from(&one.gateway);
            route.device.clone_from(&one.device);
            route.metric = one.metric;
            request.routes.push(route);
        }
        let servers = self.nameservers.iter().map(Ipv4Addr::to_string);
        request.nameservers.extend(servers);
        request
    }
}

fn is_mirrored(link: &Link) -> bool {
    link.link_type == "ether" && !link.ifname.starts_with(TAP)
}

fn interface(link: Link) -> Interface {
    let addresses = link.addr_info.iter();
    // The kernel gives itself those of the link.
    let addresses =
        addresses.filter(|address| address.scope != "link" && !address.local.is_empty());
    Interface {
        addresses: addresses
            .map(|address| format!("{}/{}", address.local, address.prefixlen))
            .collect(),
        name: link.ifname,
        mac: link.address,
        device: String::new(),
        mtu: link.mtu,
    }
}

fn route(line: Line) -> Route {
    let destination = match (line.dst.as_str(), line.gateway.contains(':')) {
        ("default", _) if !line.gateway.is_empty() => String::new(),
        ("default", true) => "::/0".into(),
        ("default", false) => "0.0.0.0/0".into(),
        (host, _) if !host.contains('/') => match host.contains(':') {
            true => format!("{host}/128"),
            false => format!("{host}/32"),
        },
        (net, _) => net.to_owned(),
    };
    Route {
        destination,
        gateway: line.gateway,
        device: line.dev,
        metric: line.metric,
    }
}

/// Lets all that arrives at one interface leave at the other.
fn redirect(from: &str, to: &str) -> Result<(), MirrorError> {
    run("tc", &["qdisc", "add", "dev", from, "ingress"])?;
    let filter = [
        "filter", "add", "dev", from, "parent", "ffff:", "protocol", "all", "matchall", "action",
        "mirred", "egress", "redirect", "dev", to,
    ];
    run("tc", &filter).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Mirror {
        let links = serde_json::json!([
            {"ifname": "lo", "link_type": "loopback", "mtu": 65536, "addr_info": []},
            {"ifname": "eth0", "link_type": "ether", "address": "ca:fe:00:00:00:01", "mtu": 1450,
             "addr_info": [
                {"family": "inet", "local": "10.88.0.5", "prefixlen": 16, "scope": "global"},
                {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"}]},
            {"ifname": "cofferdam0", "link_type": "ether", "address": "0a:00:00:00:00:01", "mtu": 1450},
        ]);
        let lines = serde_json::json!([
            {"dst": "default", "gateway": "10.88.0.1", "dev": "eth0", "protocol": "static", "metric": 100},
            {"dst": "10.88.0.0/16", "dev": "eth0", "protocol": "kernel", "scope": "link"},
            {"dst": "169.254.1.1", "dev": "eth0", "scope": "link", "protocol": "boot"},
            {"type": "unreachable", "dst": "10.9.0.0/16", "dev": "eth0"},
        ]);
        let parse = |value| crate::json::from_value(value).unwrap();
        Mirror::of(parse(links), crate::json::from_value(lines).unwrap())
    }

    /// If it fails, a guest has other addresses or routes than its engine gave it.
    #[test]
    fn namespaces_are_mirrored() {
        let network = example();
        let request = network.request();
        assert_eq!(request.interfaces.len(), 1);
        let eth0 = &request.interfaces[0];
        assert_eq!((eth0.name.as_str(), eth0.mtu), ("eth0", 1450));
        assert_eq!(eth0.addresses, ["10.88.0.5/16"]);
        let routes: Vec<_> = request
            .routes
            .iter()
            .map(|route| (route.destination.as_str(), route.gateway.as_str()))
            .collect();
        assert_eq!(routes, [("169.254.1.1/32", ""), ("", "10.88.0.1")]);
        let taps = network.taps();
        assert_eq!(
            (taps[0].name.as_str(), taps[0].mtu),
            ("cofferdam0", Some(1450))
        );
    }

    /// If it fails, a guest lacks what came between `create` and `start`, and nobody says so.
    #[test]
    fn changes_are_seen() {
        let network = example();
        assert!(!network.clone().since(&network).unwrap());
        let mut before = network.clone();
        before.routes.clear();
        assert!(network.clone().since(&before).unwrap());
        let error = network.clone().since(&Mirror::default());
        let error = error.unwrap_err().to_string();
        assert!(error.contains("eth0"), "{error}");
    }

    /// If it fails, a guest whose network comes late has no device for it, or one that nobody needs.
    #[test]
    fn a_device_waits_where_there_is_none() {
        let mut network = example();
        network.wait_for_one();
        assert_eq!(network.taps()[0].mac, "ca:fe:00:00:00:01");
        let mut none = Mirror::default();
        none.wait_for_one();
        let [tap] = none.taps().try_into().unwrap();
        assert_eq!((tap.name.as_str(), tap.mac.as_str()), ("cofferdam0", SPARE));
        assert!(none.request().interfaces.is_empty());
    }
}
