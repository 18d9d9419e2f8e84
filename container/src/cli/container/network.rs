//! `network`.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{Failed, Outcome, each, print};
use crate::cli::ask::confirmed;
use crate::cli::format::{self, Template};
use crate::networks::{DEFAULT, Network, Networks, NetworksError, Subnet, Wanted};
use crate::options::Network as Chosen;
use crate::paths;
use crate::state::{Containers, StateError};

/// What there is to do with networks.
#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Command {
    /// Make a network: a bridge with NAT and names
    Create {
        /// Its addresses [default: a free part of 10.91.0.0/16]
        #[arg(long, value_name = "ADDRESS/BITS")]
        subnet: Option<Subnet>,
        /// The host's own address in it [default: the first]
        #[arg(long, value_name = "ADDRESS", requires = "subnet")]
        gateway: Option<Ipv4Addr>,
        /// Nothing leads out of it
        #[arg(long)]
        internal: bool,
        /// Set a label
        #[arg(long, value_name = "NAME[=VALUE]")]
        label: Vec<String>,
        /// Its name
        name: String,
    },
    /// List networks
    #[command(visible_alias = "list")]
    Ls {
        /// Only their names
        #[arg(short, long)]
        quiet: bool,
        /// `json`, or a template such as '{{.Name}} {{.Subnet}}'
        #[arg(long, value_name = "FORMAT")]
        format: Option<Template>,
    },
    /// Print all that is known of networks
    Inspect {
        /// A template such as '{{.Subnet}}'
        #[arg(short, long, value_name = "FORMAT")]
        format: Option<Template>,
        /// Names
        #[arg(value_name = "NETWORK", required = true)]
        names: Vec<String>,
    },
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm {
        /// Names
        #[arg(value_name = "NETWORK", required = true)]
        names: Vec<String>,
    },
    /// Remove all networks that no container has
    Prune {
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
}

pub(in crate::cli) fn run(command: Command) -> Outcome {
    let networks = Networks::at(&paths::data());
    match command {
        Command::Create {
            subnet,
            gateway,
            internal,
            label,
            name,
        } => {
            let wanted = Wanted {
                subnet,
                gateway,
                internal,
                labels: label,
            };
            let network = networks.make(&name, &wanted)?;
            print(&format!("{}\n", network.name))?;
            Ok(0)
        }
        Command::Ls { quiet, format } => {
            // So that it is seen before it is used.
            networks.find(DEFAULT)?;
            let rows: Vec<Value> = networks.list()?.iter().map(row).collect();
            let columns = [
                ("NETWORK ID", "ID"),
                ("NAME", "Name"),
                ("DRIVER", "Driver"),
                ("SUBNET", "Subnet"),
            ];
            let id = quiet.then_some("Name");
            print(&format::list(&rows, &columns, id, format.as_ref())?)?;
            Ok(0)
        }
        Command::Inspect { format, names } => {
            let found: Result<Vec<Value>, NetworksError> = names
                .iter()
                .map(|name| Ok(document(&networks, &networks.find(name)?)))
                .collect();
            print(&format::documents(found?, format.as_ref())?)?;
            Ok(0)
        }
        Command::Rm { names } => each(&names, |name| {
            networks.remove(name, user(name)?.as_deref())?;
            Ok(print(&format!("{name}\n"))?)
        }),
        Command::Prune { force } => {
            if force || confirmed("all networks that no container has")? {
                remove_unused()?;
            }
            Ok(0)
        }
    }
}

/// Removes the networks that no container has.
pub(in crate::cli) fn remove_unused() -> Result<(), Failed> {
    let networks = Networks::at(&paths::data());
    for network in networks.list()? {
        if network.name != DEFAULT && user(&network.name)?.is_none() {
            networks.remove(&network.name, None)?;
            print(&format!("{}\n", network.name))?;
        }
    }
    Ok(())
}

/// All there is to know about a network, if there is one of that name.
pub(in crate::cli) fn known(name: &str) -> Result<Option<Value>, NetworksError> {
    let networks = Networks::at(&paths::data());
    match networks.find(name) {
        Ok(network) => Ok(Some(document(&networks, &network))),
        Err(NetworksError::Unknown(_) | NetworksError::Name(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn row(network: &Network) -> Value {
    json!({
        "ID": network.id.chars().take(12).collect::<String>(),
        "Name": network.name,
        "Driver": network.driver,
        "Scope": "local",
        "Subnet": network.subnet.to_string(),
    })
}

fn document(networks: &Networks, network: &Network) -> Value {
    let mut all = json!(network);
    let leases = networks.leases(network).into_iter();
    all["Containers"] = leases
        .map(|(address, id)| {
            (
                id,
                json!({ "IPv4Address": format!("{address}/{}", network.subnet.prefix()) }),
            )
        })
        .collect();
    all
}

/// A container that has the network.
fn user(name: &str) -> Result<Option<String>, StateError> {
    let mut all = Containers::open()?.list()?.into_iter();
    let has = |c: &crate::state::Container| {
        c.record.options.network == Some(Chosen::Named(name.to_owned()))
    };
    Ok(all.find(has).map(|container| container.record.name))
}
