//! The calls of the protocol.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cofferdam_agent_protocol::VERSION;
use cofferdam_agent_protocol::api::*;
use cofferdam_agent_protocol::procfs;
use cofferdam_agent_protocol::service::Agent;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use ttrpc::TtrpcContext;

use crate::containers::Containers;
use crate::error::{Context, Error, Result};
use crate::spec::Resources;
use crate::{archive, clock, network, power, processes};

/// Who answers them.
#[derive(Debug)]
pub struct Service {
    /// What they are about.
    pub containers: Arc<Containers>,
    /// Microseconds from boot to the agent's first instruction.
    pub started_us: u64,
    /// Microseconds from boot to when calls could be taken.
    pub ready_us: Arc<std::sync::OnceLock<u64>>,
    /// One of these at a time.
    pub network: std::sync::Mutex<()>,
}

/// Microseconds since boot.
pub fn uptime_us() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap_or_else(|_| TimeSpec::new(0, 0));
    u64::try_from(time.tv_sec() * 1_000_000 + time.tv_nsec() / 1000).unwrap_or(0)
}

fn pid_response(pid: i32) -> PidResponse {
    let mut response = PidResponse::new();
    response.pid = pid.unsigned_abs();
    response
}

/// The number of a signal; real-time ones too.
fn signal_number(signal: u32) -> Result<i32> {
    let bad = || Error::invalid(format!("signal {signal}"), "there is none of this number");
    i32::try_from(signal)
        .ok()
        .filter(|signal| (1..=64).contains(signal))
        .ok_or_else(bad)
}

fn send_signal(pid: i32, signal: i32) -> Result<()> {
    // nix knows no real-time signals.
    // SAFETY: it takes two numbers.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error())
            .context(|| format!("send signal {signal} to {pid}")),
    }
}

impl Service {
    fn signal_all(&self, id: &str, signal: i32) -> Result<()> {
        let cgroup = self.containers.cgroup(id)?;
        if signal == libc::SIGKILL {
            return cgroup.kill();
        }
        for pid in cgroup.pids()? {
            // Who ended meanwhile needs none.
            let _ = i32::try_from(pid).map(|pid| send_signal(pid, signal));
        }
        Ok(())
    }

    fn stats_of(&self, id: &str) -> Result<StatsResponse> {
        let mut stats = self.containers.cgroup(id)?.stats();
        stats.network = procfs::network("self");
        stats.guest_memory = procfs::memory("MemTotal");
        stats.guest_available = procfs::memory("MemAvailable");
        Ok(stats)
    }

    fn update_limits(&self, request: &UpdateRequest) -> Result<()> {
        let resources: Resources = serde_json::from_slice(&request.resources)
            .map_err(|error| Error::invalid("resources", error))?;
        self.containers.cgroup(&request.id)?.apply(&resources)
    }
}

/// Done, with nothing to say.
fn done(result: Result<()>) -> ttrpc::Result<Empty> {
    result?;
    Ok(Empty::new())
}

impl Agent for Service {
    fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        if request.version != VERSION {
            let why =
                format!("the agent speaks version {VERSION}; are programs of two releases mixed?");
            return Err(
                Error::invalid(format!("protocol version {}", request.version), why).into(),
            );
        }
        let mut response = HelloResponse::new();
        response.version = VERSION;
        let name = nix::sys::utsname::uname().context(|| "ask the kernel for its name".into())?;
        response.kernel = name.release().to_string_lossy().into_owned();
        response.started_us = self.started_us;
        response.ready_us = self.ready_us.get().copied().unwrap_or(0);
        Ok(response)
    }

    fn network(&self, _: &TtrpcContext, request: NetworkRequest) -> ttrpc::Result<Empty> {
        let _one = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        done(network::set(&request))
    }

    fn clock(&self, _: &TtrpcContext, request: ClockRequest) -> ttrpc::Result<ClockResponse> {
        if request.move_ns != 0 {
            clock::move_by(request.move_ns, request.slowly)?;
        }
        let mut response = ClockResponse::new();
        response.unix_ns = clock::now()?;
        Ok(response)
    }

    fn create(&self, _: &TtrpcContext, request: CreateRequest) -> ttrpc::Result<PidResponse> {
        Ok(pid_response(self.containers.create(&request)?))
    }

    fn start(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        done(self.containers.start(&request.id))
    }

    fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<PidResponse> {
        Ok(pid_response(self.containers.exec(&request)?))
    }

    fn delete(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        done(self.containers.delete(&request.id, &request.exec))
    }

    fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let signal = signal_number(request.signal)?;
        if request.all {
            return done(self.signal_all(&request.id, signal));
        }
        let pid = self.containers.pid(&request.id, &request.exec)?;
        done(send_signal(pid, signal))
    }

    fn wait(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitResponse> {
        Ok(self.containers.wait_for(&request.id, &request.exec)?)
    }

    fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        done(
            self.containers
                .resize(&request.id, &request.exec, &request.size),
        )
    }

    fn close_stdin(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        done(self.containers.close_stdin(&request.id, &request.exec))
    }

    fn pids(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<PidsResponse> {
        let mut response = PidsResponse::new();
        let pids = self.containers.cgroup(&request.id)?.pids()?;
        response.processes = pids.into_iter().filter_map(processes::info).collect();
        Ok(response)
    }

    fn stats(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<StatsResponse> {
        Ok(self.stats_of(&request.id)?)
    }

    fn pause(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        done(self.containers.freeze(&request.id, true))
    }

    fn resume(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        done(self.containers.freeze(&request.id, false))
    }

    fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        done(self.update_limits(&request))
    }

    fn next_event(&self, _: &TtrpcContext, request: NextEventRequest) -> ttrpc::Result<Event> {
        Ok(self.containers.event_after(request.after))
    }

    fn copy_out(&self, _: &TtrpcContext, request: CopyRequest) -> ttrpc::Result<Empty> {
        done(archive::copy_out(&self.containers, &request))
    }

    fn copy_in(&self, _: &TtrpcContext, request: CopyRequest) -> ttrpc::Result<Empty> {
        done(archive::copy_in(&self.containers, &request))
    }

    fn stat(&self, _: &TtrpcContext, request: StatRequest) -> ttrpc::Result<StatResponse> {
        Ok(archive::stat(&self.containers, &request)?)
    }

    fn changes(&self, _: &TtrpcContext, request: ChangesRequest) -> ttrpc::Result<Empty> {
        done(archive::changes(&self.containers, &request))
    }

    fn poweroff(&self, _: &TtrpcContext, request: PoweroffRequest) -> ttrpc::Result<Empty> {
        power::off(
            &self.containers,
            Duration::from_millis(request.grace_ms.into()),
        )
    }
}
