//! `update`.

use cofferdam_agent_protocol::api::UpdateRequest;
use oci_spec::runtime::LinuxPids;

use super::control::{agent, failed};
use super::{Failed, Outcome, each, print};
use crate::limits;
use crate::options::{Bytes, Isolation, Options, Restart};
use crate::shim;
use crate::spec;
use crate::state::{Container, Containers, Record, State};
use crate::vm;

const RULES: &str = "\
It holds at once and at each start. A VM that runs has the vCPUs and the memory it was started with: what
needs more than those is for a container that does not run.";

/// Change the limits of containers
#[derive(Debug, clap::Args)]
#[command(after_help = RULES)]
pub(in crate::cli) struct Args {
    /// CPUs, also a fraction
    #[arg(long, value_name = "NUMBER", value_parser = crate::options::cpus)]
    cpus: Option<f64>,
    /// Memory
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<Bytes>,
    /// Number of processes; -1: no limit
    #[arg(
        long,
        value_name = "NUMBER",
        group = "change",
        allow_negative_numbers = true
    )]
    pids_limit: Option<i64>,
    /// When it is started again by itself: no, always, unless-stopped, on-failure[:TIMES]
    #[arg(long, value_name = "POLICY")]
    restart: Option<Restart>,
    /// Names or IDs
    #[arg(value_name = "CONTAINER", required = true)]
    names: Vec<String>,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
enum UpdateError {
    #[error("nothing is to be changed; there are --cpus, --memory, --pids-limit and --restart")]
    Nothing,
    #[error("the VM of container {0} has {1} vCPUs; stop it first to give it more CPUs")]
    Cpus(String, u8),
    #[error("the VM of container {0} was started with less memory; stop it first to give it more")]
    Memory(String),
    #[error("container {0} is removed when it ends (--rm), and so not started again")]
    Removed(String),
}

impl Args {
    fn is_empty(&self) -> bool {
        let limits = self.memory.is_none() && self.pids_limit.is_none();
        limits && self.cpus.is_none() && self.restart.is_none()
    }

    fn apply(&self, options: &mut Options) {
        options.cpus = self.cpus.or(options.cpus);
        options.memory = self.memory.or(options.memory);
        options.pids_limit = self.pids_limit.or(options.pids_limit);
        options.restart = self.restart.unwrap_or(options.restart);
    }
}

pub(super) fn update(args: &Args) -> Outcome {
    if args.is_empty() {
        return Err(UpdateError::Nothing.into());
    }
    let containers = Containers::open()?;
    each(&args.names, |name| {
        let container = containers.find(name)?;
        let state = container.state()?;
        let mut changed = container.record.options.clone();
        args.apply(&mut changed);
        check(&container, &changed, &state)?;
        if state.status.is_live() {
            at_once(&container, &changed, &state)?;
        }
        containers.update(&container, |record, spec| -> Result<(), Failed> {
            args.apply(&mut record.options);
            spec::set_resources(spec, &record.options);
            Ok(())
        })?;
        Ok(print(&format!("{name}\n"))?)
    })
}

fn check(container: &Container, changed: &Options, state: &State) -> Result<(), UpdateError> {
    let Record { name, options, .. } = &container.record;
    if changed.rm && changed.restart != Restart::No {
        return Err(UpdateError::Removed(name.clone()));
    }
    if options.isolation == Isolation::Process || !state.status.is_live() {
        return Ok(());
    }
    let vcpus = vm::vcpus(options.cpus);
    if changed.cpus.is_some_and(|cpus| cpus > f64::from(vcpus)) {
        return Err(UpdateError::Cpus(name.clone(), vcpus));
    }
    let has = options.memory.unwrap_or(vm::DEFAULT_MEMORY);
    match changed.memory {
        Some(now) if now > has => Err(UpdateError::Memory(name.clone())),
        _ => Ok(()),
    }
}

/// In the container that runs, and in what limits its VM on the host.
fn at_once(container: &Container, changed: &Options, state: &State) -> Result<(), Failed> {
    let Record { id, options, .. } = &container.record;
    let mut resources = spec::resources(changed);
    if let Some(limit) = changed.pids_limit {
        // Also that there is none any more.
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    let resources = serde_json::to_vec(&resources).map_err(std::io::Error::other)?;
    if options.isolation == Isolation::Process {
        let runtime = shim::find_runtime(options.runtime)?;
        return Ok(shim::update_process(runtime, id, &resources)?);
    }
    let mut request = UpdateRequest::new();
    request.id.clone_from(id);
    request.resources = resources;
    agent(container).map_err(failed)?.update(request)?;
    if let (Some(cgroup), Some(cpus)) = (&state.cgroup, changed.cpus) {
        limits::set_cpus(cgroup, cpus)?;
    }
    Ok(())
}
