//! A container on a network: a network namespace, which netavark connects to the bridge. A VM's guest has
//! its interface mirrored; a process on the host's kernel is in it.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::publish::{Held, PublishError, Published};
use super::{Networks, NetworksError};
use crate::files::private_directory;
use crate::mirror::{self, Mirror, MirrorError};
use crate::network::{hosts, resolv_conf};
use crate::options::{Network as Chosen, Options, Port, transport_name};
use crate::paths;
use crate::shim::Plan;
use crate::spec;
use crate::state::{self, Attached, Container, Containers, StateError};

/// Where distributions have it; it is none of their users'.
const PLACES: [&str; 4] = [
    "/usr/lib/podman",
    "/usr/libexec/podman",
    "/usr/local/libexec/podman",
    "/usr/bin",
];

/// Why a container is not on its network.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The network.
    #[error(transparent)]
    Networks(#[from] NetworksError),
    /// A file of the container's.
    #[error(transparent)]
    State(#[from] StateError),
    /// The namespace's interfaces.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// A port.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Not root.
    #[error("--network {0} takes root, which bridges belong to; --network passt does not")]
    Root(String),
    /// Something about a network, and none.
    #[error("--ip and --network-alias take a network: bridge, or one that 'network create' made")]
    NoNetwork,
    /// Not installed.
    #[error("networks need netavark and aardvark-dns (Debian: the packages of these names)")]
    NoNetavark,
    /// A step of our own.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It says no.
    #[error("netavark: {0}")]
    Netavark(String),
}

fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> LinkError {
    let action = action.into();
    move |source| LinkError::Io { action, source }
}

/// Of a container while it is on a network. Dropped, it no longer is.
#[derive(Debug)]
pub struct Link {
    dir: PathBuf,
    /// Of a VM: what of the namespace its guest has.
    mirror: Option<Mirror>,
    /// Its ports. They go behind what leads to them.
    _ports: Published,
    /// What it has there.
    pub attached: Attached,
}

/// What is kept to undo it, by whomever.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    network: String,
    address: Ipv4Addr,
    netavark: Value,
}

const MADE: &str = "network.json";
const NETNS: &str = "netns";

/// Where the network namespace of a container on a network is, by its directory of sockets.
pub fn netns(run: &Path) -> PathBuf {
    run.join(NETNS)
}

impl Link {
    /// Connects a container, whose plan becomes that of one in the network; nothing if it has none of
    /// these networks.
    pub fn connect(
        container: &Container,
        plan: &mut Plan,
        ports: &[Port],
    ) -> Result<Option<Self>, LinkError> {
        let options = &container.record.options;
        let Some(Chosen::Named(name)) = &options.network else {
            return Ok(None);
        };
        check(options)?;
        // Of a life that was killed.
        disconnect(container);
        sweep();
        let held = Held::take(ports)?;
        let networks = Networks::at(&paths::data());
        let network = networks.find(name)?;
        let dir = container.run.clone();
        // Outlives the lock, which it takes itself.
        let undo = Undo(&dir);
        let lock = networks.lock()?;
        let id = &container.record.id;
        let address = networks.lease(&network, id, options.ip)?;
        let made = Made {
            network: network.name.clone(),
            address,
            netavark: configuration(container, &network, address, ports),
        };
        state::save(&dir.join(MADE), &made)?;
        let netns = netns(&dir);
        make_netns(&netns)?;
        let answer = netavark("setup", &dir)?;
        drop(lock);
        let mirror = mirror::within(&netns, Mirror::scan)??;
        let taps = mirror.taps();
        let mac = taps.first().map(|tap| tap.mac.clone());
        let hosts = hosts(
            &options.add_host,
            &spec::hostname(id, options),
            Some(address),
        );
        let resolv_conf = resolv_conf(options, &servers(&answer[name]), None);
        let mirror = match plan {
            Plan::Vm(machine, guest) => {
                machine.taps = taps;
                machine.netns = Some(netns);
                let request = mirror.request();
                (guest.network.interfaces, guest.network.routes) =
                    (request.interfaces, request.routes);
                (guest.network.hosts, guest.network.resolv_conf) = (hosts, resolv_conf);
                Some(mirror)
            }
            Plan::Process(bundle) => {
                (bundle.hosts, bundle.resolv_conf) = (hosts, resolv_conf);
                None
            }
        };
        let published = held.lead_to(address).map_err(io("serve the ports"))?;
        let attached = Attached {
            network: network.name.clone(),
            address,
            prefix: network.subnet.prefix(),
            gateway: network.gateway,
            mac: mac.unwrap_or_default(),
        };
        std::mem::forget(undo);
        Ok(Some(Self {
            dir,
            mirror,
            _ports: published,
            attached,
        }))
    }

    /// Joins the VM's tap, which its monitor has made by now, with the network.
    pub fn join(&self) -> Result<(), LinkError> {
        match &self.mirror {
            Some(mirror) => Ok(mirror::within(&netns(&self.dir), || mirror.join())??),
            None => Ok(()),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        undo(&self.dir);
    }
}

struct Undo<'a>(&'a Path);

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        undo(self.0);
    }
}

/// Whether a container of these options can be on its network.
pub fn check(options: &Options) -> Result<(), LinkError> {
    let Some(Chosen::Named(name)) = &options.network else {
        return match options.ip.is_some() || !options.network_alias.is_empty() {
            true => Err(LinkError::NoNetwork),
            false => Ok(()),
        };
    };
    Networks::at(&paths::data()).find(name)?;
    if !rustix::process::geteuid().is_root() {
        return Err(LinkError::Root(name.to_owned()));
    }
    find().map(drop)
}

/// Takes a container off its network, if it is on one.
pub fn disconnect(container: &Container) {
    undo(&container.run);
}

/// Takes those off their networks whose shims were killed: their ports are others' now.
fn sweep() {
    let all = Containers::open().and_then(|containers| containers.list());
    for container in all.unwrap_or_default() {
        if !container.run.join(MADE).exists() || container.is_held() {
            continue;
        }
        // Nobody starts it meanwhile.
        if let Ok(_lock) = container.lock() {
            disconnect(&container);
        }
    }
}

fn undo(dir: &Path) {
    let Ok(made) = state::load::<Made>(&dir.join(MADE)) else {
        return;
    };
    let networks = Networks::at(&paths::data());
    let _lock = networks.lock();
    let netns = netns(dir);
    if let Err(error) = netavark("teardown", dir) {
        log::warn!("{}", crate::describe(&error));
    }
    let _ = umount2(&netns, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(&netns);
    if let Ok(network) = networks.find(&made.network) {
        networks.release(&network, made.address);
    }
    let _ = fs::remove_file(dir.join(MADE));
}

/// Makes a network namespace that stays for as long as the file `path`.
fn make_netns(path: &Path) -> Result<(), LinkError> {
    let make = || -> io::Result<()> {
        File::create(path)?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let none: Option<&str> = None;
        let own = Some("/proc/thread-self/ns/net");
        Ok(mount(own, path, none, MsFlags::MS_BIND, none)?)
    };
    // A thread of its own: it is the one that goes there.
    let made = thread::scope(|scope| match scope.spawn(make).join() {
        Ok(made) => made,
        Err(panic) => std::panic::resume_unwind(panic),
    });
    made.map_err(io("make a network namespace"))
}

fn find() -> Result<PathBuf, LinkError> {
    let places = PLACES.iter().map(Path::new);
    let mut found = places.filter(|dir| {
        ["netavark", "aardvark-dns"]
            .iter()
            .all(|program| dir.join(program).exists())
    });
    found
        .next()
        .map(Path::to_owned)
        .ok_or(LinkError::NoNetavark)
}

/// What netavark is told: as Podman does.
fn configuration(
    container: &Container,
    network: &super::Network,
    address: Ipv4Addr,
    ports: &[Port],
) -> Value {
    let record = &container.record;
    let port = |port: &Port| {
        json!({
            "container_port": port.guest,
            "host_port": port.host,
            "host_ip": port.address.map(|address| address.to_string()).unwrap_or_default(),
            "protocol": transport_name(port.transport),
            "range": 1,
        })
    };
    // The container has no IPv6 that a rule could lead to.
    let ports = ports
        .iter()
        .filter(|port| !port.address.is_some_and(|a| a.is_ipv6()));
    let ports: Vec<Value> = ports.map(port).collect();
    json!({
        "container_id": record.id,
        "container_name": record.name,
        "port_mappings": ports,
        "networks": { &network.name: {
            "static_ips": [address],
            "interface_name": "eth0",
            "aliases": aliases(&record.id, &record.name, &record.options),
        }},
        "network_info": { &network.name: {
            "name": network.name,
            "id": network.id,
            "driver": "bridge",
            "network_interface": network.interface,
            "subnets": [{ "subnet": network.subnet, "gateway": network.gateway }],
            "ipv6_enabled": false,
            "internal": network.internal,
            "dns_enabled": true,
            "ipam_options": { "driver": "host-local" },
        }},
    })
}

/// The names that a container has for others.
fn aliases(id: &str, name: &str, options: &Options) -> Vec<String> {
    let mut all = vec![name.to_owned(), spec::hostname(id, options)];
    all.push(id.chars().take(12).collect());
    all.extend(options.network_alias.iter().cloned());
    all.sort();
    all.dedup();
    all
}

/// The name servers of netavark's answer, as lines of a resolv.conf.
fn servers(answer: &Value) -> String {
    let texts = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let mut text = String::new();
    for (key, word) in [
        ("dns_server_ips", "nameserver"),
        ("dns_search_domains", "search"),
    ] {
        for value in texts(key) {
            if let Some(value) = value.as_str() {
                text += &format!("{word} {value}\n");
            }
        }
    }
    text
}

/// Runs netavark for the namespace and the configuration in a directory.
fn netavark(action: &str, dir: &Path) -> Result<Value, LinkError> {
    let place = find()?;
    let made: Made = state::load(&dir.join(MADE))?;
    let own = paths::run().join("netavark");
    private_directory(&own).map_err(StateError::from)?;
    let (input, output) = (dir.join("netavark.in"), dir.join("netavark.out"));
    let log = dir.join("netavark.log");
    let run = || -> io::Result<_> {
        fs::write(&input, made.netavark.to_string())?;
        Command::new(place.join("netavark"))
            .arg("--config")
            .arg(&own)
            .arg("--aardvark-binary")
            .arg(place.join("aardvark-dns"))
            .arg(action)
            .arg(netns(dir))
            .env_clear()
            .env("PATH", search_path())
            // Files and no pipes: aardvark-dns lives on, and would hold them open.
            .stdin(File::open(&input)?)
            .stdout(File::create(&output)?)
            .stderr(File::create(&log)?)
            .status()
    };
    let status = run().map_err(io("run netavark"))?;
    let said = fs::read(&output).unwrap_or_default();
    let answer: Value = crate::json::from_slice(&said).unwrap_or_default();
    if status.success() {
        return Ok(answer);
    }
    // What is wrong it says in its answer, and more in its log.
    let error = answer["error"].as_str().map(str::to_owned);
    let said = fs::read_to_string(&log).unwrap_or_default();
    let last = said.lines().last().unwrap_or("it says nothing").to_owned();
    Err(LinkError::Netavark(error.unwrap_or(last)))
}

/// Where netavark finds iptables; and systemd-run only where there is a systemd to run things.
fn search_path() -> &'static str {
    match Path::new("/run/systemd/system").exists() {
        true => "/usr/sbin:/usr/bin:/sbin:/bin",
        false => "/usr/sbin:/sbin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, containers do not find each other by name.
    #[test]
    fn names_are_known() {
        let answer = json!({"dns_search_domains": ["dns.podman"], "dns_server_ips": ["10.91.0.1"]});
        assert_eq!(
            servers(&answer),
            "nameserver 10.91.0.1\nsearch dns.podman\n"
        );
        assert_eq!(servers(&Value::Null), "");
        let options = Options {
            hostname: Some("box".into()),
            network_alias: vec!["db".into(), "box".into()],
            ..Options::default()
        };
        let all = aliases("0123456789abcdef", "web", &options);
        assert_eq!(all, ["0123456789ab", "box", "db", "web"]);
    }
}
