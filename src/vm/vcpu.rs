//! A vCPU: a thread that enters KVM, answers what comes out, and enters again.

use std::fmt::Write as _;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cofferdam_devices::GuestMemory;
use cofferdam_devices::bus::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::last_exits::{Kind, LastExits};
use super::lifecycle::{StopReason, Stopper};
use crate::telemetry;

/// Where a vCPU begins after a reset.
const RESET_RIP: u64 = 0xfff0;
const RESET_CS_BASE: u64 = 0xffff_0000;

/// What a vCPU reaches beyond its memory. Shared by all of a VM's, read-only while they run.
#[derive(Debug)]
pub struct Buses {
    /// I/O ports.
    pub pio: Bus,
    /// Memory-mapped registers.
    pub mmio: Bus,
}

/// A vCPU that does not run yet.
#[derive(Debug)]
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    mem: GuestMemory,
    last_exits: LastExits,
}

/// What comes after one exit from KVM.
enum Step {
    Continue,
    Stop(StopReason),
}

/// A vCPU's thread.
#[derive(Debug)]
pub struct VcpuThread {
    thread: JoinHandle<()>,
    /// The byte of the vCPU's `kvm_run` that makes KVM return at once.
    immediate_exit: &'static AtomicU8,
}

/// The signal that makes a vCPU thread leave KVM.
fn kick_signal() -> i32 {
    SIGRTMIN()
}

/// Lets the kick signal interrupt KVM instead of killing the process. Once a process.
pub fn register_kick() -> io::Result<()> {
    extern "C" fn ignore(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(kick_signal(), ignore).map_err(Into::into)
}

impl Vcpu {
    /// A vCPU, set up to its first instruction. `mem` is for what is said of it if it fails.
    pub fn new(id: u8, fd: VcpuFd, mem: GuestMemory) -> Self {
        Self {
            id,
            fd,
            mem,
            last_exits: LastExits::default(),
        }
    }

    /// Starts the vCPU's thread. It ends when the VM does, and ends the VM when it cannot go on.
    pub fn start(mut self, buses: Arc<Buses>, stopper: Stopper) -> io::Result<VcpuThread> {
        let run: *mut _ = self.fd.get_kvm_run();
        // SAFETY: `run` points into the mapping of `kvm_run`, which is shared with the kernel and
        // only ever read by it; from here on nobody but this atomic touches the byte. The mapping
        // lives as long as the `VcpuFd`, which the thread gives back to nobody and, below, leaks.
        let immediate_exit = unsafe { AtomicU8::from_ptr(&raw mut (*run).immediate_exit) };
        let thread = thread::Builder::new()
            .name(format!("vcpu{}", self.id))
            .spawn(move || {
                if self.id == 0 {
                    let time = telemetry::start().elapsed().as_micros();
                    log::info!("first KVM_RUN {time} us after the monitor's start");
                }
                let reason = loop {
                    if let Step::Stop(reason) = self.step(&buses) {
                        break reason;
                    }
                    if stopper.reason().is_some() {
                        break StopReason::Quit;
                    }
                };
                stopper.stop(reason);
                // Whoever kicks us may do so until the process ends: `kvm_run` must stay mapped.
                std::mem::forget(self);
            })?;
        Ok(VcpuThread {
            thread,
            immediate_exit,
        })
    }

    /// Enters KVM once and answers the exit.
    fn step(&mut self, buses: &Buses) -> Step {
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                let (data, len) = (data.as_ptr(), data.len());
                self.last_exits.push(Kind::PortWrite, port.into(), len);
                // SAFETY: `data` is KVM's I/O buffer behind `kvm_run`, of `len` bytes, which stays
                // as it is until the next entry; nobody else looks at it in this thread.
                let data = unsafe { slice::from_raw_parts(data, len) };
                // A string instruction brings many accesses to one port at once.
                for access in data.chunks(self.io_size()) {
                    buses.pio.write(port.into(), access);
                }
                Step::Continue
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let (data, len) = (data.as_mut_ptr(), data.len());
                self.last_exits.push(Kind::PortRead, port.into(), len);
                // SAFETY: as above.
                let data = unsafe { slice::from_raw_parts_mut(data, len) };
                for access in data.chunks_mut(self.io_size()) {
                    buses.pio.read(port.into(), access);
                }
                Step::Continue
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.last_exits.push(Kind::MmioRead, address, data.len());
                buses.mmio.read(address, data);
                Step::Continue
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.last_exits.push(Kind::MmioWrite, address, data.len());
                buses.mmio.write(address, data);
                Step::Continue
            }
            Ok(VcpuExit::Shutdown) => {
                self.fail("a triple fault");
                Step::Stop(StopReason::TripleFault)
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => Step::Stop(match kind {
                kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => StopReason::PowerOff,
                kvm_bindings::KVM_SYSTEM_EVENT_RESET => StopReason::Reset,
                _ => StopReason::Panic,
            }),
            // A kick, or a signal to the process: whether the VM ends is the caller's question.
            Ok(VcpuExit::Intr) => Step::Continue,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Step::Continue,
            Ok(VcpuExit::MemoryFault { gpa, .. }) => self.no_page(&format!(" at {gpa:#x}")),
            Err(error) if matches!(error.errno(), libc::EFAULT | libc::EHWPOISON) => {
                self.no_page("")
            }
            Ok(exit) => {
                let exit = format!("{exit:?}");
                self.fail(&exit);
                Step::Stop(StopReason::VcpuError)
            }
            Err(error) => {
                self.fail(&error.to_string());
                Step::Stop(StopReason::VcpuError)
            }
        }
    }

    /// Bytes of one access of the I/O exit that is being answered.
    fn io_size(&mut self) -> usize {
        // SAFETY: called only after an I/O exit, for which this is the union's member.
        let size = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }

    /// The host has no page for what the guest touched: a file that is mapped into the guest was cut
    /// short or cannot be read, or the host's own memory is bad.
    fn no_page(&self, place: &str) -> Step {
        log::error!(
            "vCPU {} stopped: the host has no page for the guest's memory{place}: a file that is \
             mapped there was truncated or cannot be read, or memory of the host is broken",
            self.id
        );
        Step::Stop(StopReason::HostMemory)
    }

    /// The vCPU cannot go on: says where it stood, and what it asked for before.
    fn fail(&mut self, exit: &str) {
        let state = self.describe();
        log::error!(
            "vCPU {} stopped: {exit}{state}\n  last exits: {}",
            self.id,
            self.last_exits
        );
    }

    /// Registers, and the bytes at the instruction pointer.
    fn describe(&mut self) -> String {
        let mut text = String::new();
        let run = self.fd.get_kvm_run();
        let shutdown = run.exit_reason == kvm_bindings::KVM_EXIT_SHUTDOWN;
        if run.exit_reason == kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
            // SAFETY: the exit reason says that this is the union's member.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            let _ = write!(text, " (suberror {})", internal.suberror);
        }
        let (Ok(regs), Ok(sregs)) = (self.fd.get_regs(), self.fd.get_sregs()) else {
            return text + "; its registers cannot be read";
        };
        // AMD's CPUs leave nothing behind that could be trusted (volume 2, 15.14.3): KVM resets the
        // vCPU, and shows it at its reset vector.
        if shutdown && regs.rip == RESET_RIP && sregs.cs.base == RESET_CS_BASE {
            return text + "; this CPU loses its registers by that";
        }
        let _ = write!(
            text,
            "\n  rip {:016x} rsp {:016x} rflags {:08x} cs {:04x} cpl {}\
             \n  rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\
             \n  rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}\
             \n  r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}\
             \n  r13 {:016x} r14 {:016x} r15 {:016x} efer {:x}\
             \n  cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x}\n  code ",
            regs.rip,
            regs.rsp,
            regs.rflags,
            sregs.cs.selector,
            sregs.ss.dpl,
            regs.rax,
            regs.rbx,
            regs.rcx,
            regs.rdx,
            regs.rsi,
            regs.rdi,
            regs.rbp,
            regs.r8,
            regs.r9,
            regs.r10,
            regs.r11,
            regs.r12,
            regs.r13,
            regs.r14,
            regs.r15,
            sregs.efer,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
        );
        match self.code_at(sregs.cs.base.wrapping_add(regs.rip)) {
            Some(code) => code.iter().for_each(|byte| {
                let _ = write!(text, "{byte:02x} ");
            }),
            None => text.push_str("not mapped"),
        }
        text
    }

    /// The 15 bytes, an instruction at its longest, at a virtual address; fewer at a page's end.
    fn code_at(&self, address: u64) -> Option<Vec<u8>> {
        let translation = self
            .fd
            .translate_gva(address)
            .ok()
            .filter(|t| t.valid != 0)?;
        let to_page_end = 0x1000 - (translation.physical_address & 0xfff);
        let mut code = vec![0; usize::try_from(to_page_end.min(15)).ok()?];
        self.mem
            .read_slice(&mut code, GuestAddress(translation.physical_address))
            .ok()?;
        Some(code)
    }
}

impl VcpuThread {
    /// Makes the vCPU leave KVM and look whether the VM ends. Nothing is lost if it is between two
    /// entries: the next one returns at once.
    pub fn kick(&self) {
        self.immediate_exit.store(1, Ordering::Release);
        // SAFETY: the thread is ours and not joined yet, so its handle is valid.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), kick_signal()) };
    }

    /// Waits for the thread's end; the VM must have been stopped and the vCPU kicked.
    pub fn join(self) {
        while !self.thread.is_finished() {
            thread::sleep(Duration::from_micros(100));
            self.kick();
        }
        if self.thread.join().is_err() {
            log::error!("a vCPU thread panicked");
        }
    }
}
