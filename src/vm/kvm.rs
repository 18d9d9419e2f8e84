//! The kernel's side of a VM: `/dev/kvm` opened and asked for what we need, the VM with its
//! interrupt controllers and memory, the vCPUs at their first instruction.

use std::io;
use std::os::fd::FromRawFd;

use cofferdam_boot::EntryState;
use cofferdam_devices::GuestMemory;
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::template::{CpuTemplate, TemplateError};
use crate::arch::{cpuid, layout, msr, regs};
use crate::config::CpuConfig;

/// The device that KVM answers on.
const DEVICE: &std::ffi::CStr = c"/dev/kvm";

/// What we cannot do without.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::UserMemory, "memory of user space"),
    (Cap::ExtCpuid, "extended CPUID"),
    (Cap::ImmediateExit, "immediate exit"),
];

/// Why KVM gives us no VM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no KVM.
    #[error(
        "/dev/kvm is not there: load KVM with 'modprobe kvm_intel' or 'modprobe kvm_amd' and switch \
         on virtualization in the firmware; 'cofferdam doctor' says more"
    )]
    Missing(#[source] io::Error),
    /// We may not use KVM.
    #[error(
        "no permission on /dev/kvm: join its group with 'sudo usermod -aG kvm $USER' and log in anew"
    )]
    Permission(#[source] io::Error),
    /// KVM cannot be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// A KVM of another age.
    #[error("KVM speaks version {0} of its API; we need {KVM_API_VERSION}")]
    Version(i32),
    /// Something is missing in this KVM.
    #[error("this KVM has no {0}; 'cofferdam doctor' says more")]
    Capability(&'static str),
    /// More vCPUs than this KVM allows.
    #[error("this KVM allows {max} vCPUs, not {asked}")]
    Cpus {
        /// How many were asked for.
        asked: u8,
        /// How many there can be.
        max: usize,
    },
    /// KVM refused.
    #[error("KVM cannot {what}")]
    Call {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// An MSR that a vCPU does not take.
    #[error("KVM refuses the MSR {0:#x}")]
    Msr(u32),
    /// The CPU template does not fit.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Makes an error of KVM say what was asked of it.
fn call(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { what, source }
}

/// Opens KVM and checks that it has what we need.
pub fn open() -> Result<Kvm, KvmError> {
    let fd = Kvm::open_with_cloexec_at(DEVICE, true).map_err(|error| {
        let source = io::Error::from_raw_os_error(error.errno());
        match error.errno() {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::Missing(source),
            libc::EACCES | libc::EPERM => KvmError::Permission(source),
            _ => KvmError::Open(source),
        }
    })?;
    // SAFETY: the descriptor was just opened for us, on /dev/kvm.
    let kvm = unsafe { Kvm::from_raw_fd(fd) };
    match kvm.get_api_version() {
        version if version.cast_unsigned() == KVM_API_VERSION => {}
        version => return Err(KvmError::Version(version)),
    }
    match NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(KvmError::Capability(name)),
        None => Ok(kvm),
    }
}

/// Makes the VM: its interrupt controllers, and `mem` as its memory.
pub fn create_vm(kvm: &Kvm, mem: &GuestMemory, cpus: &CpuConfig) -> Result<VmFd, KvmError> {
    let max = kvm.get_max_vcpus();
    if usize::from(cpus.count) > max {
        return Err(KvmError::Cpus {
            asked: cpus.count,
            max,
        });
    }
    let vm = kvm.create_vm().map_err(call("create a VM"))?;
    for (slot, region) in (0..).zip(mem.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr().addr() as u64,
            flags: 0,
        };
        // SAFETY: the range is that of a mapping that lives as long as the process, and slots do
        // not overlap, since the regions of guest memory do not.
        unsafe { vm.set_user_memory_region(slot) }.map_err(call("take guest memory"))?;
    }
    vm.set_tss_address(layout::TSS)
        .map_err(call("place its task-state segment"))?;
    vm.create_irq_chip()
        .map_err(call("create the interrupt controllers"))?;
    if cpus.pit {
        let config = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(config)
            .map_err(call("create the interval timer"))?;
    }
    Ok(vm)
}

/// Makes the vCPUs. The first stands at `entry`; the others wait for it to start them.
pub fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    cpus: &CpuConfig,
    template: &CpuTemplate,
    entry: &EntryState,
) -> Result<Vec<VcpuFd>, KvmError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(call("say what CPUs it has"))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    (0..cpus.count)
        .map(|id| {
            let vcpu = vm.create_vcpu(id.into()).map_err(call("create a vCPU"))?;
            let mut cpuid = cpuid::for_vcpu(&supported, id, cpus.count, tsc_deadline);
            template.apply_cpuid(&mut cpuid)?;
            set_up(&vcpu, &cpuid, template)?;
            if id == 0 {
                enter_at(&vcpu, entry)?;
            }
            Ok(vcpu)
        })
        .collect()
}

/// What every vCPU has, whether it starts first or is started by another.
fn set_up(vcpu: &VcpuFd, cpuid: &CpuId, template: &CpuTemplate) -> Result<(), KvmError> {
    vcpu.set_cpuid2(cpuid).map_err(call("set a vCPU's CPUID"))?;
    set_msrs(vcpu, &mut msr::boot())?;
    let mut changed: Vec<_> = template
        .msrs()
        .map(|index| kvm_bindings::kvm_msr_entry {
            index,
            ..Default::default()
        })
        .collect();
    if !changed.is_empty() {
        get_msrs(vcpu, &mut changed)?;
        template.apply_msrs(&mut changed);
        set_msrs(vcpu, &mut changed)?;
    }
    let mut lapic = vcpu.get_lapic().map_err(call("read a local APIC"))?;
    regs::local_interrupts(&mut lapic);
    vcpu.set_lapic(&lapic).map_err(call("set a local APIC"))
}

/// Puts a vCPU at the kernel's first instruction.
fn enter_at(vcpu: &VcpuFd, entry: &EntryState) -> Result<(), KvmError> {
    let sregs = vcpu.get_sregs().map_err(call("read a vCPU's registers"))?;
    vcpu.set_sregs(&regs::system(entry, sregs))
        .map_err(call("set a vCPU's system registers"))?;
    vcpu.set_regs(&regs::general(entry))
        .map_err(call("set a vCPU's registers"))?;
    vcpu.set_fpu(&regs::fpu()).map_err(call("set a vCPU's FPU"))
}

type Entries = [kvm_bindings::kvm_msr_entry];

fn set_msrs(vcpu: &VcpuFd, entries: &mut Entries) -> Result<(), KvmError> {
    each_msr(entries, |msrs| vcpu.set_msrs(&*msrs))
}

fn get_msrs(vcpu: &VcpuFd, entries: &mut Entries) -> Result<(), KvmError> {
    each_msr(entries, |msrs| vcpu.get_msrs(msrs))
}

/// KVM takes a list of MSRs and says how many of them it did; the next one is the one it refused.
fn each_msr(
    entries: &mut Entries,
    ioctl: impl FnOnce(&mut Msrs) -> Result<usize, kvm_ioctls::Error>,
) -> Result<(), KvmError> {
    // Fails only for thousands of entries.
    let mut msrs = Msrs::from_entries(entries).map_err(|_| KvmError::Msr(0))?;
    let done = ioctl(&mut msrs).map_err(call("access a vCPU's MSRs"))?;
    entries.copy_from_slice(msrs.as_slice());
    match entries.get(done) {
        Some(refused) => Err(KvmError::Msr(refused.index)),
        None => Ok(()),
    }
}
