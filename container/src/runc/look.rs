//! Commands that show what there is: processes, containers, figures, features.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::text::{visible, visible_bytes};
use cofferdam_agent_protocol::api;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::cli::Global;
use super::control::{Error, agent, io_error, running};
use super::stand_in;
use super::store::{Container, Status};
use crate::shim::container as of_container;

#[derive(Debug, clap::Args)]
pub(super) struct PsArgs {
    /// json: numbers on the host, of processes that look like the guest's for 10 seconds
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    format: String,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
    /// Taken for runc's sake
    #[arg(
        value_name = "OPTION",
        allow_hyphen_values = true,
        trailing_var_arg = true,
        hide = true
    )]
    options: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// table or json
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    format: String,
    /// IDs alone
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct EventsArgs {
    /// Seconds between figures, as 5s
    #[arg(long, value_name = "SECONDS", default_value = "5s")]
    interval: String,
    /// Print the figures once
    #[arg(long)]
    stats: bool,
    /// The container's ID
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct SpecArgs {
    /// The directory that it goes to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
}

pub(super) fn ps(global: &Global, args: &PsArgs) -> Result<(), Error> {
    let container = running(global, &args.id)?;
    let all = || Ok::<_, Error>(agent(&container)?.pids(of_container(&container.record.id))?);
    if args.format == "json" {
        // Of a guest that does not answer, the process that stands for it.
        let pids = all().map(|all| stand_in::start(&all.processes));
        let pids = pids.unwrap_or_default();
        return match pids.is_empty() {
            true => print(&format!("{}\n", json!([container.record.pid]))),
            false => print(&format!("{}\n", json!(pids))),
        };
    }
    let mut text = String::from("UID        PID  PPID S     TIME CMD\n");
    for process in all()?.processes {
        let seconds = process.cpu_us / 1_000_000;
        text.push_str(&format!(
            "{:<8} {:>5} {:>5} {} {:02}:{:02}:{:02} {}\n",
            process.uid,
            process.pid,
            process.ppid,
            visible(&process.state),
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            visible(&process.command.join(" "))
        ));
    }
    print(&text)
}

pub(super) fn list(global: &Global, args: &ListArgs) -> Result<(), Error> {
    let all = global.store().list()?;
    if args.quiet {
        let ids: Vec<String> = all.iter().map(|c| format!("{}\n", c.record.id)).collect();
        return print(&ids.concat());
    }
    if args.format == "json" {
        let states: Vec<Value> = all.iter().map(Container::state).collect();
        return print(&format!("{}\n", json!(states)));
    }
    let mut text = format!(
        "{:<24} {:<8} {:<10} {:<40} {}\n",
        "ID", "PID", "STATUS", "BUNDLE", "CREATED"
    );
    for container in all {
        let state = container.state();
        text.push_str(&format!(
            "{:<24} {:<8} {:<10} {:<40} {}\n",
            container.record.id,
            state["pid"],
            container.status().name(),
            visible_bytes(container.record.bundle.as_os_str().as_bytes()),
            container.record.created
        ));
    }
    print(&text)
}

pub(super) fn events(global: &Global, args: &EventsArgs) -> Result<(), Error> {
    let container = running(global, &args.id)?;
    let seconds = args.interval.trim_end_matches('s').parse::<u64>();
    let seconds = seconds.ok().filter(|seconds| *seconds > 0);
    let interval = seconds.map(Duration::from_secs);
    let interval = interval.ok_or_else(|| {
        Error::Argument(format!(
            "--interval {}: seconds are expected, as 5s",
            args.interval
        ))
    })?;
    let agent = agent(&container)?;
    let id = container.record.id.clone();
    let figures = || -> Result<String, Error> {
        let stats = agent.stats(of_container(&id))?;
        Ok(format!("{}\n", figures_of(&id, &stats)))
    };
    if args.stats {
        return print(&figures()?);
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = api::NextEventRequest::new();
            while let Ok(event) = agent.next_event(last.clone()) {
                last.after = event.sequence;
                if event.has_oom() {
                    let _ = print(&format!("{}\n", json!({"type": "oom", "id": event.id})));
                }
            }
        });
        // Until the container is gone.
        while container.status() != Status::Stopped {
            print(&figures()?)?;
            let until = Instant::now() + interval;
            while Instant::now() < until && container.status() != Status::Stopped {
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    })
}

/// What a container uses, as runc prints it.
fn figures_of(id: &str, stats: &api::StatsResponse) -> Value {
    let cpu = |key: &str| stats.cpu_stat.get(key).copied().unwrap_or(0);
    let nanoseconds = |key: &str| cpu(key).saturating_mul(1000);
    let events = |key: &str| stats.memory_events.get(key).copied().unwrap_or(0);
    json!({"type": "stats", "id": id, "data": {
        "cpu": {
            "usage": {
                "total": nanoseconds("usage_usec"),
                "kernel": nanoseconds("system_usec"),
                "user": nanoseconds("user_usec"),
            },
            "throttling": {
                "periods": cpu("nr_periods"),
                "throttledPeriods": cpu("nr_throttled"),
                "throttledTime": nanoseconds("throttled_usec"),
            },
        },
        "memory": {
            "usage": {
                "limit": stats.memory_limit,
                "usage": stats.memory,
                "max": stats.memory_peak,
                "failcnt": events("max"),
            },
            "swap": {"limit": stats.swap_limit, "usage": stats.swap},
            "raw": stats.memory_stat,
        },
        "pids": {"current": stats.pids, "limit": stats.pids_limit},
        "blkio": {
            "ioServiceBytesRecursive": stats.io.iter().flat_map(|io| [
                json!({"major": io.major, "minor": io.minor, "op": "Read", "value": io.read_bytes}),
                json!({"major": io.major, "minor": io.minor, "op": "Write", "value": io.write_bytes}),
            ]).collect::<Vec<_>>(),
        },
        "network_interfaces": stats.network.iter().map(|io| json!({
            "Name": io.name, "RxBytes": io.rx_bytes, "RxPackets": io.rx_packets,
            "RxErrors": io.rx_errors, "RxDropped": io.rx_dropped, "TxBytes": io.tx_bytes,
            "TxPackets": io.tx_packets, "TxErrors": io.tx_errors, "TxDropped": io.tx_dropped,
        })).collect::<Vec<_>>(),
    }})
}

pub(super) fn features() -> Result<(), Error> {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": oci_spec::runtime::VERSION,
        "mountOptions": ["bind", "rbind", "ro", "rw", "rro", "nosuid", "suid", "nodev", "dev",
            "noexec", "exec", "noatime", "relatime", "private", "rprivate", "slave", "rslave",
            "shared", "rshared", "tmpcopyup"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": {"v1": false, "v2": true, "systemd": true, "systemdUser": true},
            "seccomp": {"enabled": true, "archs": ["SCMP_ARCH_X86_64"]},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
        },
    });
    print(&format!("{features:#}\n"))
}

pub(super) fn spec(args: &SpecArgs) -> Result<(), Error> {
    let path = args.bundle.join("config.json");
    let mut spec = Spec::default();
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(true));
        process.set_args(Some(vec!["sh".into()]));
    }
    let failed = || io_error(format!("cannot make {}", path.display()));
    let mut text = serde_json::to_vec_pretty(&spec).map_err(|e| failed()(e.into()))?;
    text.push(b'\n');
    let file = std::fs::File::create_new(&path);
    file.and_then(|mut file| file.write_all(&text))
        .map_err(failed())
}

/// Prints what was asked for. A reader that closed the pipe has seen enough.
pub(super) fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(io_error("cannot print")(error))
        }
        _ => Ok(()),
    }
}
