//! `update`.

use cofferdam_agent_protocol::api::UpdateRequest;
use oci_spec::runtime::LinuxPids;

use super::control::{agent, failed};
use super::{Failed, Outcome, each, print};
use crate::limits;
use crate::options::{Bytes, Isolation, Options, OptionsError, Restart};
use crate::shim;
use crate::spec;
use crate::state::{Container, Containers, Record, State};

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
    #[arg(short, long, value_name = "BYTES", value_parser = crate::options::memory)]
    memory: Option<Bytes>,
    /// Number of processes; -1: no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
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
    #[error("the VM of container {0} was started for {1} of memory; stop it first to give it more")]
    Memory(String, Bytes),
    #[error(transparent)]
    Options(#[from] OptionsError),
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
        check(&container.record.name, &changed, &state)?;
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

fn check(name: &str, changed: &Options, state: &State) -> Result<(), UpdateError> {
    if changed.rm && changed.restart != Restart::No {
        return Err(UpdateError::Removed(name.to_owned()));
    }
    changed.check_limits()?;
    let Some(vm) = state.vm.filter(|_| state.status.is_live()) else {
        return Ok(());
    };
    if changed.cpus.is_some_and(|cpus| cpus > f64::from(vm.vcpus)) {
        return Err(UpdateError::Cpus(name.to_owned(), vm.vcpus));
    }
    match changed.memory {
        Some(now) if now > vm.memory => Err(UpdateError::Memory(name.to_owned(), vm.memory)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Status, VmSize};

    /// If it fails, a container is refused what its VM has, after an `update` that took it away, or is given
    /// what it has not.
    #[test]
    fn a_vm_has_what_it_was_started_with() {
        let vm = Some(VmSize {
            vcpus: 2,
            memory: Bytes(128 << 20),
        });
        let live = State {
            status: Status::Running,
            vm,
            ..State::default()
        };
        let ended = State {
            status: Status::Exited,
            ..live.clone()
        };
        let of = |cpus, memory: u64, state: &State| {
            let options = Options {
                cpus: Some(cpus),
                memory: Some(Bytes(memory << 20)),
                ..Options::default()
            };
            check("one", &options, state).is_ok()
        };
        assert!(of(0.5, 64, &live) && of(2.0, 128, &live));
        assert!(!of(2.5, 64, &live) && !of(1.0, 129, &live));
        assert!(of(4.0, 1024, &ended));
        let again = Options {
            rm: true,
            restart: Restart::Always,
            ..Options::default()
        };
        assert!(check("one", &again, &ended).is_err());
    }
}
