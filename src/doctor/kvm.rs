//! KVM: the device, its version, its extensions, and a guest that runs.

use std::error::Error;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kvm_ioctls::{Cap, Kvm};

use super::device::obstacle;
use super::{Check, Finding, trial};

/// The only KVM API version there is (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;
/// How long the test guest may take: a few milliseconds on hardware, 200 where the hardware is
/// itself emulated. With the time to stop it the doctor stays under 2 s.
const GUEST_LIMIT: Duration = Duration::from_millis(1500);

/// What no VM does without.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::UserMemory, "user memory"),
    (Cap::Irqchip, "irqchip"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::SetTssAddr, "TSS address"),
    (Cap::ExtCpuid, "CPUID"),
    (Cap::ImmediateExit, "immediate exit"),
];

/// What makes a VM faster, or lets it be saved and restored.
const OPTIONAL: [(Cap, &str); 13] = [
    (Cap::TscDeadlineTimer, "TSC deadline timer"),
    (Cap::X2ApicApi, "x2APIC"),
    (Cap::IrqRouting, "interrupt routes"),
    (Cap::SignalMsi, "MSI"),
    (Cap::Clocksource, "kvmclock"),
    (Cap::AdjustClock, "clock adjustment"),
    (Cap::GetTscKhz, "TSC frequency"),
    (Cap::MpState, "vCPU states"),
    (Cap::VcpuEvents, "vCPU events"),
    (Cap::Debugregs, "debug registers"),
    (Cap::Xsave, "XSAVE"),
    (Cap::Xcrs, "XCRs"),
    (Cap::ReadonlyMem, "read-only memory"),
];

/// The three required checks: the device, its extensions, the test guest.
pub fn checks(path: &Path) -> [Check; 3] {
    let (device, extensions, guest) = match open(path) {
        Err(finding) => {
            let untried = || Finding::missing("not tried: no KVM");
            (finding, untried(), untried())
        }
        Ok(kvm) => {
            let device = Finding::ok(format!("{}, API version {API_VERSION}", path.display()));
            let extensions = judge_extensions(|cap| kvm.check_extension(cap), kvm.get_max_vcpus());
            (device, extensions, run_guest(&kvm))
        }
    };
    [
        Check::required("kvm", "KVM", device),
        Check::required("kvm-extensions", "KVM extensions", extensions),
        Check::required("test-guest", "test guest", guest),
    ]
}

fn open(path: &Path) -> Result<Kvm, Finding> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Finding::missing("the path has a zero byte"))?;
    let kvm = Kvm::new_with_path(name).map_err(|errno| {
        let error = io::Error::from_raw_os_error(errno.errno());
        match module(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()) {
            // There is no device, and loading a module brings none.
            None if error.kind() == io::ErrorKind::NotFound => Finding::missing(format!(
                "{} is not there, and the CPU offers no virtualization: turn on SVM or VT-x in \
                 the firmware, or nested virtualization where this is a VM",
                path.display()
            )),
            module => obstacle(path, module.unwrap_or("kvm"), &error),
        }
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        -1 => Err(Finding::missing(format!(
            "{} is not a KVM device",
            path.display()
        ))),
        other => Err(Finding::missing(format!(
            "{} has API version {other}, not {API_VERSION}",
            path.display()
        ))),
    }
}

/// The kernel module for the CPU that `/proc/cpuinfo` describes.
fn module(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    flags.split_whitespace().find_map(|flag| match flag {
        "svm" => Some("kvm_amd"),
        "vmx" => Some("kvm_intel"),
        _ => None,
    })
}

fn judge_extensions(has: impl Fn(Cap) -> bool, max_vcpus: usize) -> Finding {
    let lacking = |list: &[(Cap, &'static str)]| {
        let names: Vec<_> = list
            .iter()
            .filter(|(cap, _)| !has(*cap))
            .map(|(_, name)| *name)
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(names) = lacking(&NEEDED) {
        return Finding::missing(format!("this KVM lacks {names}: a newer kernel has them"));
    }
    let needed = format!("all {} needed, up to {max_vcpus} vCPUs", NEEDED.len());
    match lacking(&OPTIONAL) {
        Some(names) => Finding::limited(format!("{needed}; without {names}")),
        None => Finding::ok(needed),
    }
}

fn run_guest(kvm: &Kvm) -> Finding {
    let start = Instant::now();
    match trial::run(kvm, GUEST_LIMIT) {
        Ok(()) => Finding::ok(format!(
            "64-bit mode, ring 3, system call, irqfd, ioeventfd and TSC work ({:.1} ms)",
            start.elapsed().as_secs_f64() * 1e3
        )),
        Err(error) => Finding::missing(with_causes(&error)),
    }
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    /// If this fails, a KVM too old for us is called good, or one that only lacks extras is not.
    #[test]
    fn needed_and_optional_extensions_are_told_apart() {
        assert_eq!(judge_extensions(|_| true, 64).state, State::Ok);
        let old = judge_extensions(|cap| cap != Cap::Irqfd, 64);
        assert_eq!(old.state, State::Missing);
        assert!(old.detail.contains("irqfd"), "{old:?}");
        let plain = judge_extensions(|cap| cap != Cap::TscDeadlineTimer, 64);
        assert_eq!(plain.state, State::Limited);
        assert!(
            plain.detail.ends_with("without TSC deadline timer"),
            "{plain:?}"
        );
    }

    /// If this fails, the module offered is the other vendor's.
    #[test]
    fn the_module_follows_the_cpu() {
        assert_eq!(
            module("model name: x\nflags\t\t: fpu svm lm\n"),
            Some("kvm_amd")
        );
        assert_eq!(module("flags : vmx\n"), Some("kvm_intel"));
        assert_eq!(module("flags : fpu\n"), None);
        assert_eq!(module(""), None);
    }

    /// If this fails, a file that is no KVM is a panic or passes for one.
    #[test]
    fn a_device_that_is_not_kvm_is_named() {
        let finding = open(Path::new("/dev/null")).unwrap_err();
        assert_eq!(finding.detail, "/dev/null is not a KVM device");
        let absent = open(Path::new("/nonexistent/kvm")).unwrap_err();
        assert!(
            absent.detail.starts_with("/nonexistent/kvm is not there"),
            "{absent:?}"
        );
        assert!(open(Path::new("a\0b")).is_err());
    }

    /// If this fails, a user sees that something failed but not why.
    #[test]
    fn causes_are_in_the_text() {
        let error = trial::TrialError::Host {
            step: "make an eventfd",
            source: io::Error::from_raw_os_error(libc::EMFILE),
        };
        let text = with_causes(&error);
        assert!(
            text.starts_with("cannot make an eventfd: Too many open files"),
            "{text}"
        );
    }
}
