//! What runs: KVM, guest memory, vCPUs, the devices on their buses, and how it all ends.

mod builder;
mod devices;
pub mod fsd;
mod kvm;
mod last_exits;
mod lifecycle;
mod memory;
mod passt;
mod prefault;
mod root;
mod signals;
mod vcpu;
mod worker;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_devices::console::Console;
use cofferdam_devices::legacy::ExitStatus;
use cofferdam_devices::virtio::block::Block;
use cofferdam_devices::virtio::pmem::Pmem;
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

pub use builder::{BuildError, build};
pub use kvm::KvmError;
pub use lifecycle::{EXIT_HOST, EXIT_MONITOR, EXIT_USAGE, StopReason, Stopper};
pub use memory::MemoryError;

use signals::Received;
use vcpu::{Buses, Vcpu, VcpuThread};
use worker::{Worker, WorkerThread};

/// What the main loop dispatches to.
type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// Time that a kernel has to say why it panicked before the VM stops.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A VM, built and ready: it has not run an instruction yet.
pub struct Vm {
    /// Held for its irqfds: closing it disconnects them, though the vCPUs would run on.
    _fd: Arc<VmFd>,
    vcpus: Vec<Vcpu>,
    workers: Vec<Worker>,
    buses: Arc<Buses>,
    events: EventManager<Subscriber>,
    stopper: Stopper,
    signals: Received,
    /// The ACPI power button: an edge on the event device's interrupt line.
    power_button: EventFd,
    grace: Duration,
    exit_status: ExitStatus,
    disks: Vec<Arc<Mutex<Block>>>,
    pmems: Vec<Arc<Mutex<Pmem>>>,
    console: Option<Arc<Mutex<Console>>>,
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("vcpus", &self.vcpus.len())
            .finish_non_exhaustive()
    }
}

/// Why a VM could not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The main loop failed.
    #[error("the main loop cannot wait for events: {0}")]
    Events(event_manager::Error),
}

/// How a VM came to its end.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Why.
    pub reason: StopReason,
    /// The status that the guest left, if any.
    pub status: Option<u8>,
}

impl End {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        self.reason.exit_code(self.status.unwrap_or(0))
    }
}

/// Gives back to the host what the command line and the builder have left free in the heap. While the
/// guest boots, this delays nobody.
fn trim_heap() {
    // SAFETY: Rust's allocator here is the C library's, whose own lock this takes; it unmaps nothing
    // but what is free.
    unsafe { libc::malloc_trim(0) };
}

impl Vm {
    /// Runs the VM to its end, whichever comes first: the guest's, the user's or the host's.
    pub fn run(mut self) -> Result<End, RunError> {
        let workers = self.start_workers()?;
        let mut threads = Vec::with_capacity(self.vcpus.len());
        let started = self.start_vcpus(&mut threads);
        trim_heap();
        let result = started.and_then(|()| self.main_loop());
        if result.is_err() {
            self.stopper.stop(StopReason::Monitor);
        }
        for thread in &threads {
            thread.kick();
        }
        threads.into_iter().for_each(VcpuThread::join);
        drop(workers);
        self.settle();
        let reason = self.stopper.reason().unwrap_or(StopReason::Monitor);
        result.map(|()| End {
            reason,
            status: self.exit_status.get(),
        })
    }

    fn start_workers(&mut self) -> Result<Vec<WorkerThread>, RunError> {
        let started = self.workers.drain(..).map(Worker::start);
        started.collect::<io::Result<_>>().map_err(RunError::Thread)
    }

    fn start_vcpus(&mut self, threads: &mut Vec<VcpuThread>) -> Result<(), RunError> {
        for vcpu in self.vcpus.drain(..) {
            let thread = vcpu.start(self.buses.clone(), self.stopper.clone());
            threads.push(thread.map_err(RunError::Thread)?);
        }
        Ok(())
    }

    /// Serves events until somebody stops the VM.
    fn main_loop(&mut self) -> Result<(), RunError> {
        let mut deadline: Option<(Instant, StopReason)> = None;
        while self.stopper.reason().is_none() {
            match deadline {
                Some((time, reason)) if time <= Instant::now() => self.stopper.stop(reason),
                _ => {
                    let time = deadline.map(|(time, _)| time);
                    self.events
                        .run_with_timeout(timeout(time))
                        .map_err(RunError::Events)?;
                }
            }
            while let Some(signal) = self.signals.take() {
                match Received::is_resize(signal) {
                    true => self.resize_disks(),
                    false => deadline = self.on_signal(signal, deadline),
                }
            }
            if self.stopper.has_panicked() && !matches!(deadline, Some((_, StopReason::Panic))) {
                deadline = Some((Instant::now() + LAST_WORDS, StopReason::Panic));
            }
        }
        Ok(())
    }

    /// The first signal presses the power button, and the guest has some time to act on it; the
    /// second stops the VM at once.
    fn on_signal(
        &self,
        signal: u8,
        deadline: Option<(Instant, StopReason)>,
    ) -> Option<(Instant, StopReason)> {
        if deadline.is_some() || self.grace.is_zero() {
            self.stopper.stop(StopReason::Signal(signal));
            return deadline;
        }
        log::info!(
            "signal {signal}: the guest has {:?} to power off",
            self.grace
        );
        if let Err(error) = self.power_button.write(1) {
            log::error!("the power button cannot be pressed: {error}");
        }
        Some((Instant::now() + self.grace, StopReason::Grace))
    }

    /// Tells the guest of disks that have grown.
    fn resize_disks(&self) {
        for disk in &self.disks {
            let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
            disk.resize();
        }
    }

    /// Nothing runs any more: what was written reaches the disks, what was said the console.
    fn settle(&mut self) {
        for disk in &self.disks {
            let disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = disk.flush() {
                let path = disk.disk().path().display();
                log::error!("what the guest wrote may not be on the disk {path}: {error}");
            }
        }
        for pmem in &self.pmems {
            let pmem = pmem.lock().unwrap_or_else(PoisonError::into_inner);
            let path = pmem.file().path().display();
            if let Err(error) = pmem.flush() {
                log::error!("what the guest wrote may not be in the pmem file {path}: {error}");
            }
            if let Some(size) = pmem.file().shrunk_to() {
                let before = pmem.file().size();
                log::error!(
                    "the pmem file {path} was cut from {before} to {size} bytes while the guest ran"
                );
            }
        }
        if let Some(console) = &self.console {
            console
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .finish();
        }
    }
}

/// Milliseconds until `deadline` for the main loop, rounded up; -1, for ever, if there is none.
fn timeout(deadline: Option<Instant>) -> i32 {
    let Some(deadline) = deadline else { return -1 };
    let left = deadline.saturating_duration_since(Instant::now());
    i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
}

/// Wakes the main loop when somebody stops the VM.
#[derive(Debug)]
struct StopWatch(Stopper);

impl MutEventSubscriber for StopWatch {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.news().read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(self.0.news(), EventSet::IN)) {
            log::error!("the main loop will not see the VM's end: {error}");
        }
    }
}
