//! Runs the test guest, on a thread that is cut off when it hangs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use libc::{c_int, c_void, siginfo_t};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::guest::{self, Stage};

/// Where the task state of Intel's real mode lies: three pages below the usual place of firmware.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// How long a vCPU that was told to stop may take before it is left to the end of the process.
const KICK_FOR: Duration = Duration::from_millis(300);
const KICK_EVERY: Duration = Duration::from_millis(5);

/// Why the test guest did not reach its end.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// KVM refused a step of making the VM.
    #[error("cannot {step}")]
    Kvm {
        /// What was tried.
        step: &'static str,
        /// What KVM answered.
        #[source]
        source: errno::Error,
    },
    /// The host refused memory, an eventfd or a thread.
    #[error("cannot {step}")]
    Host {
        /// What was tried.
        step: &'static str,
        /// What the host answered.
        #[source]
        source: io::Error,
    },
    /// Guest memory cannot be had, or does not take the guest.
    #[error("cannot lay out guest memory")]
    Memory(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// SYSCALL arrived at its handler in ring 3. Linux's first system call fails so too.
    #[error("KVM here answers, but does not switch rings at SYSCALL: Linux guests cannot run")]
    NoRingSwitch,
    /// The guest said what is wrong, or raised an exception that it should not.
    #[error("the test guest came as far as {after}, then {what}")]
    Wrong {
        /// The last stage reached.
        after: Stage,
        /// What was seen.
        what: &'static str,
    },
    /// Some of the writes to the doorbells did not arrive as events.
    #[error("of 2 writes of the test guest to an ioeventfd, {arrived} arrived")]
    LostKick {
        /// How many did.
        arrived: u64,
    },
    /// KVM left the guest for a reason that the guest gives no cause for.
    #[error("the test guest came as far as {after}, then KVM left it with {exit}")]
    Exit {
        /// The last stage reached.
        after: Stage,
        /// The exit.
        exit: String,
    },
    /// The guest reported nothing more.
    #[error("the test guest came as far as {after}, then hung for {} ms", limit.as_millis())]
    Hung {
        /// The last stage reached.
        after: Stage,
        /// The time it was given in all.
        limit: Duration,
    },
}

fn kvm_error(step: &'static str) -> impl Fn(errno::Error) -> TrialError {
    move |source| TrialError::Kvm { step, source }
}

fn host_error(step: &'static str) -> impl Fn(io::Error) -> TrialError {
    move |source| TrialError::Host { step, source }
}

/// Runs the test guest to its end, and at most `limit` (and then a little, to stop it).
///
/// Takes the first real-time signal of the process for the time after.
///
/// # Errors
/// The last stage reached, and what went wrong there.
pub fn run(kvm: &Kvm, limit: Duration) -> Result<(), TrialError> {
    let vm = TrialVm::new(kvm)?;
    let progress = Arc::clone(&vm.progress);
    register_signal_handler(SIGRTMIN(), on_kick).map_err(kvm_error("take a signal"))?;

    let (sender, receiver) = mpsc::channel();
    let vcpu = thread::Builder::new()
        .name("doctor-vcpu".into())
        .spawn(move || {
            // Nobody listens any more only where the time was up.
            let _ = sender.send(vm.run());
        })
        .map_err(host_error("start a thread for the vCPU"))?;
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
            let after = progress.reached();
            stop(&vcpu, &receiver, &progress);
            Err(TrialError::Hung { after, limit })
        }
    }
}

/// Kicks the vCPU out of `KVM_RUN` until it has seen that it is to stop: again and again, since a
/// signal that comes just before `KVM_RUN` is lost. A KVM that does not heed signals keeps its
/// thread, which owns all it uses, until the process ends.
fn stop(vcpu: &JoinHandle<()>, receiver: &Receiver<Result<(), TrialError>>, progress: &Progress) {
    progress.stop.store(true, Ordering::Release);
    let start = Instant::now();
    while start.elapsed() < KICK_FOR {
        // A thread that is gone needs no kick.
        let _ = vcpu.kill(SIGRTMIN());
        if !matches!(
            receiver.recv_timeout(KICK_EVERY),
            Err(RecvTimeoutError::Timeout)
        ) {
            return;
        }
    }
}

/// Does nothing: that a signal comes is what ends `KVM_RUN`.
extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}

/// What the vCPU's thread and the one that watches it share.
#[derive(Debug, Default)]
struct Progress {
    reached: AtomicU8,
    stop: AtomicBool,
}

impl Progress {
    fn reached(&self) -> Stage {
        Stage::from_u8(self.reached.load(Ordering::Acquire)).unwrap_or(Stage::Nothing)
    }
}

/// The VM of the test guest, with one vCPU ready to run.
#[derive(Debug)]
struct TrialVm {
    // Fields drop in this order: KVM lets go of guest memory before it is unmapped.
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
    doorbell: EventFd,
    irq: EventFd,
    progress: Arc<Progress>,
}

impl TrialVm {
    fn new(kvm: &Kvm) -> Result<Self, TrialError> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), guest::MEMORY_LEN)])
            .map_err(|e| TrialError::Memory(Box::new(e)))?;
        guest::load(&memory).map_err(|e| TrialError::Memory(Box::new(e)))?;

        let vm = kvm
            .create_vm()
            .map_err(kvm_error("create a VM (KVM_CREATE_VM)"))?;
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(kvm_error("place the TSS (KVM_SET_TSS_ADDR)"))?;
        vm.create_irq_chip().map_err(kvm_error(
            "create interrupt controllers (KVM_CREATE_IRQCHIP)",
        ))?;
        map(&vm, &memory)?;
        let event = || {
            EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host_error("make an eventfd"))
        };
        let (doorbell, irq) = (event()?, event()?);
        let ports = [
            IoEventAddress::Pio(u64::from(guest::DOORBELL_PORT)),
            IoEventAddress::Mmio(guest::DOORBELL_GPA),
        ];
        for address in &ports {
            vm.register_ioevent(&doorbell, address, NoDatamatch)
                .map_err(kvm_error("register an ioeventfd (KVM_IOEVENTFD)"))?;
        }
        vm.register_irqfd(&irq, guest::IRQ_GSI)
            .map_err(kvm_error("register an irqfd (KVM_IRQFD)"))?;

        let vcpu = new_vcpu(kvm, &vm)?;
        let progress = Arc::default();
        Ok(Self {
            vcpu,
            _vm: vm,
            _memory: memory,
            doorbell,
            irq,
            progress,
        })
    }

    /// Enters the guest until its last stage, an error, or the order to stop.
    fn run(mut self) -> Result<(), TrialError> {
        let mut reached = Stage::Nothing;
        while !self.progress.stop.load(Ordering::Acquire) {
            let report = match self.vcpu.run() {
                Ok(VcpuExit::IoOut(guest::REPORT_PORT, &[report])) => report,
                Ok(VcpuExit::Intr) => continue,
                Ok(exit) => {
                    return Err(TrialError::Exit {
                        after: reached,
                        exit: format!("{exit:?}"),
                    });
                }
                Err(e) if [libc::EINTR, libc::EAGAIN].contains(&e.errno()) => continue,
                Err(e) => return Err(kvm_error("run the vCPU (KVM_RUN)")(e)),
            };
            reached = judge(reached, report)?;
            self.progress
                .reached
                .store(reached as u8, Ordering::Release);
            match reached {
                Stage::Kicked => self.count_kicks()?,
                Stage::AwaitIrq | Stage::AwaitUserIrq => {
                    self.irq.write(1).map_err(host_error("signal an irqfd"))?;
                }
                Stage::Done => return Ok(()),
                _ => {}
            }
        }
        // The watcher, who gave the order, knows why.
        Ok(())
    }

    fn count_kicks(&self) -> Result<(), TrialError> {
        // Nothing to read is an error of the eventfd: no kick arrived.
        let arrived = self.doorbell.read().unwrap_or(0);
        if arrived == 2 {
            Ok(())
        } else {
            Err(TrialError::LostKick { arrived })
        }
    }
}

/// What the guest's report means where `reached` was its last.
fn judge(reached: Stage, report: u8) -> Result<Stage, TrialError> {
    let wrong = |what| {
        Err(TrialError::Wrong {
            after: reached,
            what,
        })
    };
    match report {
        guest::REPORT_NO_RING_SWITCH => Err(TrialError::NoRingSwitch),
        guest::REPORT_TSC_STUCK => wrong("read a TSC that stands still"),
        guest::REPORT_NOT_RING_3 => wrong("found itself outside ring 3"),
        guest::REPORT_FAULT => wrong("took an exception that nothing in it raises"),
        _ => match Stage::from_u8(report) {
            Some(stage) if reached.next() == Some(stage) => Ok(stage),
            // HLT ended, or an instruction was skipped.
            _ => wrong("skipped a step"),
        },
    }
}

fn map(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), TrialError> {
    let userspace_addr = memory
        .get_host_address(GuestAddress(0))
        .map_err(|e| TrialError::Memory(Box::new(e)))? as u64;
    let region = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: guest::MEMORY_LEN as u64,
        userspace_addr,
        flags: 0,
    };
    // SAFETY: the region is the mapping of `memory`, all of it and nothing else, and `TrialVm`
    // keeps that until the VM and its vCPU are closed.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(kvm_error("map guest memory (KVM_SET_USER_MEMORY_REGION)"))
}

fn new_vcpu(kvm: &Kvm, vm: &VmFd) -> Result<VcpuFd, TrialError> {
    let vcpu = vm
        .create_vcpu(0)
        .map_err(kvm_error("create a vCPU (KVM_CREATE_VCPU)"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("ask for CPU features (KVM_GET_SUPPORTED_CPUID)"))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(kvm_error("set CPU features (KVM_SET_CPUID2)"))?;
    let reset = vcpu
        .get_sregs()
        .map_err(kvm_error("read registers (KVM_GET_SREGS)"))?;
    vcpu.set_sregs(&guest::special_registers(&reset))
        .map_err(kvm_error(
            "set segments and control registers (KVM_SET_SREGS)",
        ))?;
    vcpu.set_regs(&guest::registers())
        .map_err(kvm_error("set registers (KVM_SET_REGS)"))?;
    Ok(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a guest that skips a step passes, or the host's message is not the one
    /// documented.
    #[test]
    fn reports_are_taken_in_order_and_faults_named() {
        assert_eq!(
            judge(Stage::Nothing, Stage::Protected as u8).unwrap(),
            Stage::Protected
        );
        assert!(matches!(
            judge(Stage::AwaitIrq, Stage::User as u8),
            Err(TrialError::Wrong {
                after: Stage::AwaitIrq,
                ..
            })
        ));
        assert!(judge(Stage::Done, 0).is_err());
        let lost = judge(Stage::User, guest::REPORT_NO_RING_SWITCH).unwrap_err();
        assert_eq!(
            lost.to_string(),
            "KVM here answers, but does not switch rings at SYSCALL: Linux guests cannot run"
        );
        let fault = judge(Stage::Irq, guest::REPORT_FAULT).unwrap_err();
        assert!(
            fault.to_string().contains("an interrupt in ring 0"),
            "{fault}"
        );
    }

    /// If this fails, the test guest judges a host wrongly: on a true KVM it ends well, on one that
    /// emulates ring 0 at least all before SYSCALL works.
    #[test]
    fn the_guest_runs_or_says_why_not() {
        let Ok(kvm) = Kvm::new() else { return };
        let start = Instant::now();
        match run(&kvm, Duration::from_secs(1)) {
            Ok(()) | Err(TrialError::NoRingSwitch) => {}
            Err(other) => panic!("{other:?}"),
        }
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    /// If this fails, a guest that hangs hangs the doctor.
    #[test]
    fn a_hang_is_cut_off() {
        let Ok(kvm) = Kvm::new() else { return };
        let vm = TrialVm::new(&kvm).unwrap();
        // jmp to itself, in ring 0
        vm_memory::Bytes::write_slice(&vm._memory, &[0xeb, 0xfe], GuestAddress(0x8000)).unwrap();
        let progress = Arc::clone(&vm.progress);
        register_signal_handler(SIGRTMIN(), on_kick).unwrap();
        let (sender, receiver) = mpsc::channel();
        let vcpu = thread::spawn(move || sender.send(vm.run()).unwrap_or(()));
        let start = Instant::now();
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err());
        stop(&vcpu, &receiver, &progress);
        assert!(start.elapsed() < Duration::from_millis(100) + KICK_FOR);
        vcpu.join().unwrap();
    }
}
