//! `cofferdam doctor`: whether this host can run VMs, found out by trying.
//!
//! [`examine`] opens what a monitor opens and runs a tiny guest that does what Linux does first:
//! 64-bit mode, ring 3, a system call, interrupts. It changes nothing on the host.

mod device;
mod guest;
mod isolation;
mod kvm;
mod limits;
mod memory;
mod procfs;
mod render;
mod trial;

use std::path::Path;
use std::time::Instant;

use serde::Serialize;

/// Version of the JSON that a [`Report`] becomes: higher where a reader of the older one would
/// misread it. New checks and new fields do not raise it.
pub const SCHEMA: u32 = 1;

/// How well the host does in one respect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All there.
    Ok,
    /// There, but not all of it, or not for this user.
    Limited,
    /// Not there, or it was tried and failed.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A name that stays the same across releases.
    pub id: &'static str,
    /// What was looked at, for people.
    pub what: &'static str,
    /// Whether no Linux guest runs where this is missing.
    pub required: bool,
    /// What was found.
    pub state: State,
    /// What was found, in words.
    pub detail: String,
    /// The command that mends it, or in words what does, where anything can.
    pub mend: Option<String>,
}

impl Check {
    /// A check of something that a host may lack.
    fn optional(id: &'static str, what: &'static str, finding: Finding) -> Self {
        let Finding {
            state,
            detail,
            mend,
        } = finding;
        Self {
            id,
            what,
            required: false,
            state,
            detail,
            mend,
        }
    }

    /// A check of something without which no guest runs.
    fn required(id: &'static str, what: &'static str, finding: Finding) -> Self {
        Self {
            required: true,
            ..Self::optional(id, what, finding)
        }
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    state: State,
    detail: String,
    mend: Option<String>,
}

impl Finding {
    fn ok(detail: impl Into<String>) -> Self {
        Self {
            state: State::Ok,
            detail: detail.into(),
            mend: None,
        }
    }

    fn limited(detail: impl Into<String>) -> Self {
        Self {
            state: State::Limited,
            ..Self::ok(detail)
        }
    }

    fn missing(detail: impl Into<String>) -> Self {
        Self {
            state: State::Missing,
            ..Self::ok(detail)
        }
    }

    fn mended_by(self, command: impl Into<String>) -> Self {
        Self {
            mend: Some(command.into()),
            ..self
        }
    }
}

/// All that was found on this host.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Whether every required check passed: a Linux guest can run here.
    pub can_run_linux: bool,
    /// How long it took, in microseconds.
    pub elapsed_us: u64,
    /// Every check, required ones first, always the same ones in the same order.
    pub checks: Vec<Check>,
}

/// Looks at the host. Takes under 2 s in every case, and a few milliseconds where all is well.
///
/// `kvm` is the KVM device, `/dev/kvm` as a rule.
pub fn examine(kvm: &Path) -> Report {
    let start = Instant::now();
    let mut checks = Vec::from(kvm::checks(kvm));
    checks.extend([
        Check::optional(
            "tun",
            "tap networking",
            device::tun(Path::new("/dev/net/tun")),
        ),
        Check::optional(
            "vhost-net",
            "vhost-net",
            device::vhost("/dev/vhost-net", "vhost_net"),
        ),
        Check::optional(
            "vhost-vsock",
            "vhost-vsock",
            device::vhost("/dev/vhost-vsock", "vhost_vsock"),
        ),
        Check::optional(
            "thp",
            "transparent huge pages",
            memory::transparent_huge_pages(),
        ),
        Check::optional("hugepages-2m", "2 MiB huge pages", memory::huge_pages()),
        Check::optional("cgroup", "cgroup v2", isolation::cgroup()),
        Check::optional(
            "user-namespaces",
            "user namespaces",
            isolation::user_namespaces(),
        ),
        Check::optional("seccomp", "seccomp", isolation::seccomp()),
        Check::optional("landlock", "Landlock", isolation::landlock()),
        Check::optional("memlock", "memory lock limit", limits::locked_memory()),
        Check::optional("open-files", "open file limit", limits::open_files()),
    ]);
    Report {
        schema: SCHEMA,
        can_run_linux: checks
            .iter()
            .all(|c| !c.required || c.state != State::Missing),
        elapsed_us: u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
        checks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a host without KVM is called good, or scripts miss a check they look for.
    #[test]
    fn without_kvm_the_host_cannot_run_linux_and_every_check_is_listed() {
        let report = examine(Path::new("/nonexistent/kvm"));
        assert!(!report.can_run_linux);
        let ids: Vec<_> = report.checks.iter().map(|c| c.id).collect();
        assert_eq!(
            ids,
            [
                "kvm",
                "kvm-extensions",
                "test-guest",
                "tun",
                "vhost-net",
                "vhost-vsock",
                "thp",
                "hugepages-2m",
                "cgroup",
                "user-namespaces",
                "seccomp",
                "landlock",
                "memlock",
                "open-files"
            ]
        );
        for check in &report.checks[..3] {
            assert!(check.required);
            assert_eq!(check.state, State::Missing, "{check:?}");
        }
        assert!(report.checks[3..].iter().all(|c| !c.required));
    }

    /// If this fails, the JSON that scripts read has changed under the same schema number.
    #[test]
    fn json_is_as_documented() {
        let report = Report {
            schema: SCHEMA,
            can_run_linux: true,
            elapsed_us: 7,
            checks: vec![Check::optional(
                "tun",
                "tap networking",
                Finding::limited("no").mended_by("do"),
            )],
        };
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({
                "schema": 1,
                "can_run_linux": true,
                "elapsed_us": 7,
                "checks": [{
                    "id": "tun",
                    "what": "tap networking",
                    "required": false,
                    "state": "limited",
                    "detail": "no",
                    "mend": "do",
                }],
            })
        );
    }
}
