//! `inspect`, `port`, `top`, `stats`: what is known of containers.

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::api::StatsResponse;
use cofferdam_agent_protocol::{cgroup, procfs};
use serde_json::{Value, json};

use super::control::{agent, failed, on_the_host};
use super::{Failed, Outcome, print};
use crate::cli::format::{self, Template, table};
use crate::create;
use crate::options::{Bytes, Isolation, Port, pairs};
use crate::shim::container as of;
use crate::state::{Container, Containers, State, StateError, Status};

/// Kinds of things that have names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Thing {
    Container,
    Image,
    Volume,
    Network,
}

impl Thing {
    /// In the order in which a name is looked for.
    const ALL: [Self; 4] = [Self::Container, Self::Image, Self::Volume, Self::Network];
}

/// Print all that is known of containers, images, volumes and networks
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Only of this kind
    #[arg(long = "type", value_name = "KIND")]
    thing: Option<Thing>,
    /// A template such as '{{.State.Status}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Template>,
    /// Names or IDs
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

impl Args {
    /// The same of containers only.
    pub(super) fn containers(self) -> Self {
        let thing = Some(Thing::Container);
        Self { thing, ..self }
    }
}

/// Print the ports that a container publishes
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PortArgs {
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
    /// Only where this port of the container's is
    #[arg(value_name = "PORT[/tcp|/udp]")]
    port: Option<Port>,
}

/// List a container's processes
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct TopArgs {
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
}

/// Print what containers use
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct StatsArgs {
    /// Once, not again and again
    #[arg(long)]
    no_stream: bool,
    /// `json`, or a template such as '{{.Name}} {{.MemUsage}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<Template>,
    /// Names or IDs [default: all that run]
    #[arg(value_name = "CONTAINER")]
    names: Vec<String>,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
enum InspectError {
    #[error("No such object: {0}")]
    Nothing(String),
    #[error("container {name} does not publish port {port}")]
    Port { name: String, port: Port },
    #[error("cannot read the cgroup {0}")]
    Cgroup(PathBuf, #[source] io::Error),
}

/// What it runs, with its arguments.
pub(super) fn command_line(container: &Container) -> Vec<String> {
    let record = &container.record;
    let none = oci_spec::image::Config::default();
    let config = record.image_config.config().as_ref().unwrap_or(&none);
    crate::spec::command(&record.options, config).unwrap_or_default()
}

/// A published port as `ps` has it.
pub(super) fn published(port: &Port) -> String {
    let address = port
        .address
        .map_or("0.0.0.0".into(), |address| address.to_string());
    let guest = Port {
        address: None,
        host: None,
        ..*port
    };
    format!("{address}:{}->{guest}", port.host.unwrap_or_default())
}

pub(super) fn inspect(args: &Args) -> Outcome {
    let mut found = Vec::new();
    let mut code = 0;
    for name in &args.names {
        match known(name, args.thing) {
            Ok(value) => found.push(value),
            // The others are shown all the same.
            Err(failed) => {
                eprintln!("cofferdam: {}", crate::describe(failed.error.as_ref()));
                code = 1;
            }
        }
    }
    print(&format::documents(found, args.format.as_ref())?)?;
    Ok(code)
}

/// What is known of the first thing of that name.
fn known(name: &str, thing: Option<Thing>) -> Result<Value, Failed> {
    let wanted = Thing::ALL
        .into_iter()
        .filter(|one| thing.is_none_or(|thing| thing == *one));
    for thing in wanted {
        let found = match thing {
            Thing::Container => known_container(name)?,
            Thing::Image => {
                crate::cli::image::known(name).map_err(|error| Failed { code: 1, error })?
            }
            Thing::Volume => super::volume::known(name)?,
            Thing::Network => super::network::known(name)?,
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
    Err(InspectError::Nothing(name.to_owned()).into())
}

fn known_container(name: &str) -> Result<Option<Value>, Failed> {
    match Containers::open()?.find(name) {
        Ok(container) => Ok(Some(document(&container, &container.state()?))),
        Err(StateError::Unknown(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// All that is known of a container, by Docker's names.
fn document(container: &Container, state: &State) -> Value {
    let record = &container.record;
    let options = &record.options;
    let mut command = command_line(container).into_iter();
    let path = command.next();
    let args: Vec<String> = command.collect();
    let mounts: Vec<Value> = record.shares.iter().map(mount).collect();
    let spec: Value =
        crate::state::load(&container.bundle().join("config.json")).unwrap_or_default();
    let process = &spec["process"];
    let of_image = record.image_config.config().as_ref();
    json!({
        "Id": record.id,
        "Created": record.created,
        "Path": path,
        "Args": args,
        "State": {
            "Status": state.status.name(),
            "Running": state.status.is_live(),
            "Paused": state.status == Status::Paused,
            "Restarting": state.status == Status::Restarting,
            "OOMKilled": state.oom_killed,
            "Dead": false,
            "Pid": state.pid,
            "ExitCode": state.exit_code,
            "Error": state.error,
            "StartedAt": state.started.as_deref().unwrap_or("0001-01-01T00:00:00Z"),
            "FinishedAt": state.finished.as_deref().unwrap_or("0001-01-01T00:00:00Z"),
            "Health": state.health,
        },
        "Image": record.image,
        "LogPath": container.log(),
        "Name": format!("/{}", record.name),
        "RestartCount": state.restarts,
        "Driver": "erofs",
        "Platform": "linux",
        "Mounts": mounts,
        "Config": {
            "Hostname": spec["hostname"],
            "User": options.user.as_deref().or(of_image.and_then(|c| c.user().as_deref())).unwrap_or(""),
            "Tty": options.tty,
            "OpenStdin": options.interactive,
            "StdinOnce": options.stdin_once,
            "Env": process["env"],
            "Cmd": options.command,
            "Image": options.image,
            "WorkingDir": process["cwd"],
            "Entrypoint": options.entrypoint,
            "Labels": create::labels(record),
            "StopSignal": options.stop_signal,
            "StopTimeout": options.stop_timeout,
            "Healthcheck": record.health.as_ref().map(|health| json!({
                "Test": health.command,
                "Interval": nanoseconds(health.interval),
                "Timeout": nanoseconds(health.timeout),
                "StartPeriod": nanoseconds(health.start_period),
                "Retries": health.retries,
            })),
        },
        "HostConfig": {
            "AutoRemove": options.rm,
            "LogConfig": { "Type": options.log_driver.name(), "Config": pairs(&options.log_opt) },
            "Isolation": options.isolation,
            "Memory": options.memory.map_or(0, |bytes| bytes.0),
            "NanoCpus": options.cpus.map_or(0, crate::options::nanocpus),
            "NetworkMode": options.network.as_ref().map_or("default".into(), |n| n.to_string()),
            "PidsLimit": options.pids_limit,
            "Privileged": options.privileged,
            "ReadonlyRootfs": options.read_only,
            "RestartPolicy": { "Name": options.restart.to_string() },
            "CapAdd": options.cap_add,
            "CapDrop": options.cap_drop,
            "SecurityOpt": options.security_opt,
        },
        "NetworkSettings": {
            "Ports": ports(state),
            "IPAddress": state.attached.as_ref().map(|one| one.address.to_string()).unwrap_or_default(),
            "Networks": state.attached.as_ref().map(|one| json!({ &one.network: {
                "IPAddress": one.address,
                "IPPrefixLen": one.prefix,
                "Gateway": one.gateway,
                "MacAddress": one.mac,
            }})),
        },
        "Cofferdam": {
            "Layers": record.layers,
            "Kernel": options.kernel,
            "Shim": state.shim,
            "Cgroup": state.cgroup,
            "Directory": container.dir,
            "Runtime": container.run,
        },
    })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn mount(share: &crate::state::Share) -> Value {
    json!({
        "Type": if share.volume.is_some() { "volume" } else { "bind" },
        "Name": share.volume,
        "Source": share.source,
        "Destination": share.target,
        "RW": !share.read_only,
    })
}

fn ports(state: &State) -> Value {
    let mut ports = serde_json::Map::new();
    for port in &state.ports {
        let guest = Port {
            address: None,
            host: None,
            ..*port
        };
        let address = port
            .address
            .map_or("0.0.0.0".into(), |address| address.to_string());
        let host = port.host.unwrap_or_default().to_string();
        let list = ports.entry(guest.to_string()).or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(json!({ "HostIp": address, "HostPort": host }));
        }
    }
    Value::Object(ports)
}

pub(super) fn port(args: &PortArgs) -> Outcome {
    let container = Containers::open()?.find(&args.name)?;
    let state = container.state()?;
    let live = state.status.is_live();
    let is_asked = |port: &&Port| {
        let asked = |asked: &Port| (asked.guest, asked.transport) == (port.guest, port.transport);
        live && args.port.as_ref().is_none_or(asked)
    };
    let found: Vec<&Port> = state.ports.iter().filter(is_asked).collect();
    match args.port {
        Some(port) if found.is_empty() => {
            let name = container.record.name;
            return Err(InspectError::Port { name, port }.into());
        }
        _ => {}
    }
    for port in found {
        let address = port
            .address
            .map_or("0.0.0.0".into(), |address| address.to_string());
        let host = port.host.unwrap_or_default();
        let guest = Port {
            address: None,
            host: None,
            ..*port
        };
        match args.port {
            Some(_) => print(&format!("{address}:{host}\n"))?,
            None => print(&format!("{guest} -> {address}:{host}\n"))?,
        }
    }
    Ok(0)
}

pub(super) fn top(args: &TopArgs) -> Outcome {
    let container = Containers::open()?.find(&args.name)?;
    let processes = match container.record.options.isolation {
        Isolation::Vm => {
            let agent = agent(&container).map_err(failed)?;
            agent.pids(of(&container.record.id))?.processes
        }
        Isolation::Process => {
            let (_, cgroup) = on_the_host(&container).map_err(failed)?;
            let pids = cgroup::pids(&cgroup).map_err(|e| InspectError::Cgroup(cgroup, e))?;
            pids.into_iter().filter_map(procfs::process).collect()
        }
    };
    let mut lines = vec![
        ["UID", "PID", "PPID", "S", "TIME", "CMD"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for process in processes {
        let seconds = process.cpu_us / 1_000_000;
        lines.push(vec![
            process.uid.to_string(),
            process.pid.to_string(),
            process.ppid.to_string(),
            process.state,
            format!(
                "{:02}:{:02}:{:02}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            ),
            process.command.join(" "),
        ]);
    }
    print(&table(&lines))?;
    Ok(0)
}

pub(super) fn stats(args: &StatsArgs) -> Outcome {
    let containers = Containers::open()?;
    let mut before: Vec<(String, Instant, u64)> = Vec::new();
    loop {
        let chosen = match args.names.as_slice() {
            [] => running(&containers)?,
            names => names
                .iter()
                .map(|n| containers.find(n))
                .collect::<Result<Vec<_>, _>>()?,
        };
        // A share of a CPU is one of a time.
        if before.is_empty() {
            for container in &chosen {
                let (at, stats) = (Instant::now(), read(container)?);
                before.push((container.record.id.clone(), at, cpu_us(&stats)));
            }
            thread::sleep(Duration::from_millis(500));
        }
        let mut rows = Vec::new();
        for container in &chosen {
            let (at, stats) = (Instant::now(), read(container)?);
            let id = &container.record.id;
            let last = before.iter_mut().find(|(other, ..)| other == id);
            let share = last.map_or(0.0, |(_, then, us)| {
                let time = at.duration_since(*then).as_secs_f64() * 1e6;
                let used = cpu_us(&stats).saturating_sub(*us);
                (*then, *us) = (at, cpu_us(&stats));
                used as f64 / time.max(1.0) * 100.0
            });
            rows.push(usage(container, &stats, share));
        }
        show(args, &rows)?;
        if args.no_stream {
            return Ok(0);
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn running(containers: &Containers) -> Result<Vec<Container>, Failed> {
    let mut all = containers.list()?;
    all.retain(|c| c.state().is_ok_and(|state| state.status == Status::Running));
    Ok(all)
}

fn read(container: &Container) -> Result<StatsResponse, Failed> {
    if container.record.options.isolation == Isolation::Vm {
        let agent = agent(container).map_err(failed)?;
        return Ok(agent.stats(of(&container.record.id))?);
    }
    let (pid, cgroup) = on_the_host(container).map_err(failed)?;
    let mut stats = cgroup::stats(&cgroup);
    stats.network = procfs::network(&pid.to_string());
    stats.guest_memory = procfs::memory("MemTotal");
    Ok(stats)
}

fn cpu_us(stats: &StatsResponse) -> u64 {
    stats
        .cpu_stat
        .get("usage_usec")
        .copied()
        .unwrap_or_default()
}

fn usage(container: &Container, stats: &StatsResponse, share: f64) -> Value {
    let limit = match stats.memory_limit {
        0 => stats.guest_memory,
        limit => limit,
    };
    // Without what the kernel would drop at once, as Docker counts.
    let idle = stats
        .memory_stat
        .get("inactive_file")
        .copied()
        .unwrap_or_default();
    let used = stats.memory.saturating_sub(idle);
    let network = stats
        .network
        .iter()
        .fold((0, 0), |(rx, tx), i| (rx + i.rx_bytes, tx + i.tx_bytes));
    let io = stats
        .io
        .iter()
        .fold((0, 0), |(r, w), io| (r + io.read_bytes, w + io.write_bytes));
    let pair = |(a, b): (u64, u64)| format!("{} / {}", Bytes(a), Bytes(b));
    json!({
        "ID": container.record.id.get(..12),
        "Name": container.record.name,
        "CPUPerc": format!("{share:.2}%"),
        "MemUsage": pair((used, limit)),
        "MemPerc": format!("{:.2}%", used as f64 / (limit.max(1)) as f64 * 100.0),
        "NetIO": pair(network),
        "BlockIO": pair(io),
        "PIDs": stats.pids.to_string(),
    })
}

fn show(args: &StatsArgs, rows: &[Value]) -> Result<(), Failed> {
    let columns = [
        ("CONTAINER ID", "ID"),
        ("NAME", "Name"),
        ("CPU %", "CPUPerc"),
        ("MEM USAGE / LIMIT", "MemUsage"),
        ("MEM %", "MemPerc"),
        ("NET I/O", "NetIO"),
        ("BLOCK I/O", "BlockIO"),
        ("PIDS", "PIDs"),
    ];
    if !args.no_stream && args.format.is_none() {
        // A terminal's way of saying: from the top, on an empty screen.
        print("\x1b[H\x1b[2J")?;
    }
    let text = format::list(rows, &columns, None, args.format.as_ref())?;
    Ok(print(&text)?)
}
