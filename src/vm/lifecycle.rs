//! How a VM ends: one path for the guest, the host and the user, and an exit code that says which
//! it was.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Exit code of a usage or configuration error: nothing was started.
pub const EXIT_USAGE: u8 = 2;
/// Exit code of a host that cannot: no KVM, no permission, a disk in use, no memory.
pub const EXIT_HOST: u8 = 3;
/// Exit code of an error of the monitor while the VM ran.
pub const EXIT_MONITOR: u8 = 1;

/// Why a VM stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest powered off; with the exit status that it left, if it did.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// A fault in the handler of a fault in the handler of a fault.
    TripleFault,
    /// KVM could not go on with a vCPU.
    VcpuError,
    /// The host has no page for memory that it promised to the guest.
    HostMemory,
    /// The guest did not power off in the time that it had.
    Grace,
    /// A signal that left no time.
    Signal(u8),
    /// The user left with `Ctrl-a x`.
    Quit,
    /// The monitor itself failed.
    Monitor,
}

impl StopReason {
    /// The process's exit code. `status` is what the guest left as its exit status.
    pub fn exit_code(self, status: u8) -> u8 {
        match self {
            Self::PowerOff => status,
            Self::Monitor => EXIT_MONITOR,
            Self::HostMemory => EXIT_HOST,
            Self::Reset => 80,
            Self::Panic => 81,
            Self::TripleFault => 82,
            Self::VcpuError => 83,
            Self::Grace => 84,
            Self::Quit => 85,
            Self::Signal(number) => 128 + number,
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Panic => f.write_str("the guest's kernel panicked"),
            Self::TripleFault => f.write_str("the guest's CPU met a triple fault"),
            Self::VcpuError => f.write_str("KVM could not go on with a vCPU"),
            Self::HostMemory => {
                f.write_str("the host could not give the guest a page of its memory")
            }
            Self::Grace => f.write_str("the guest did not power off in time"),
            Self::Signal(number) => write!(f, "stopped at once by signal {number}"),
            Self::Quit => f.write_str("left by Ctrl-a x"),
            Self::Monitor => f.write_str("the monitor failed"),
        }
    }
}

/// Anyone who may end the VM holds one: the first reason given counts. Clones share it.
#[derive(Clone, Debug)]
pub struct Stopper {
    reason: Arc<OnceLock<StopReason>>,
    panicked: Arc<AtomicBool>,
    wake: Arc<EventFd>,
}

impl Stopper {
    /// A stopper that nobody has used.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            reason: Arc::default(),
            panicked: Arc::default(),
            wake: Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?),
        })
    }

    /// Ends the VM, unless it ends already. Never blocks; any thread may call it.
    pub fn stop(&self, reason: StopReason) {
        let reason = match reason {
            // How a kernel that panicked comes to its end.
            StopReason::Reset | StopReason::TripleFault if self.has_panicked() => StopReason::Panic,
            reason => reason,
        };
        let _ = self.reason.set(reason);
        self.wake();
    }

    /// The guest's kernel panicked. It may have more to say, so the VM goes on for a moment.
    pub fn panicked(&self) {
        self.panicked.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the guest's kernel panicked.
    pub fn has_panicked(&self) -> bool {
        self.panicked.load(Ordering::Acquire)
    }

    fn wake(&self) {
        // Fails only if the counter is full, and then the main loop is awake anyway.
        let _ = self.wake.write(1);
    }

    /// Why the VM ends, if it does.
    pub fn reason(&self) -> Option<StopReason> {
        self.reason.get().copied()
    }

    /// Readable when there is news: the VM ends, or its kernel panicked.
    pub fn news(&self) -> &EventFd {
        &self.wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a reset that follows a panic hides the panic.
    #[test]
    fn the_first_reason_counts() {
        let stopper = Stopper::new().unwrap();
        assert_eq!(stopper.reason(), None);
        stopper.clone().panicked();
        assert_eq!(stopper.reason(), None);
        stopper.stop(StopReason::Reset);
        stopper.stop(StopReason::PowerOff);
        assert_eq!(stopper.reason(), Some(StopReason::Panic));
        assert_eq!(stopper.news().read().unwrap(), 3);
    }

    /// If it fails, scripts that read our exit codes take one end for another.
    #[test]
    fn exit_codes_are_as_documented() {
        let codes = [
            (StopReason::PowerOff, 7),
            (StopReason::Monitor, 1),
            (StopReason::HostMemory, 3),
            (StopReason::Reset, 80),
            (StopReason::Panic, 81),
            (StopReason::TripleFault, 82),
            (StopReason::VcpuError, 83),
            (StopReason::Grace, 84),
            (StopReason::Quit, 85),
            (StopReason::Signal(15), 143),
        ];
        for (reason, code) in codes {
            assert_eq!(reason.exit_code(7), code, "{reason}");
        }
    }
}
