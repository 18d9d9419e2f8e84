//! systemd, asked for a container's scope: on hosts where it divides the cgroups, one that it does not know
//! of is limited by nobody's leave, and gone when it tidies up.
//!
//! The interface is org.freedesktop.systemd1's: <https://www.freedesktop.org/wiki/Software/systemd/dbus/>.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};
use zbus::connection::Builder as Bus;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, Variant};

use super::cgroup::Limit;

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// There if, and only if, systemd is the host's first process (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Errors of its.
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// How long systemd may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often, and after what time, a name is asked for again that a scope has which is about to go.
const TRIES: (u32, Duration) = (50, Duration::from_millis(20));
/// CPUs and nodes beyond that are a mistake.
const MAX_CPU: usize = 8192;

/// Why systemd gives no scope.
#[derive(Debug, thiserror::Error)]
pub(super) enum SystemdError {
    /// Another init.
    #[error("systemd is not this host's first process")]
    Absent,
    /// No way to it.
    #[error("there is no D-Bus to systemd")]
    NoBus(#[source] zbus::Error),
    /// It says no.
    #[error("systemd does not {action} {unit}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Of which unit.
        unit: String,
        /// Why not.
        #[source]
        source: zbus::Error,
    },
    /// It did not come to pass.
    #[error("systemd was to {action} {unit}: {result}")]
    Job {
        /// What was asked.
        action: &'static str,
        /// Of which unit.
        unit: String,
        /// systemd's word for it.
        result: String,
    },
    /// Ours.
    #[error("cannot wait for systemd")]
    Wait(#[source] io::Error),
    /// A set of CPUs that is none.
    #[error("linux.resources: {0:?} is no list of CPUs or nodes")]
    Set(String),
}

impl SystemdError {
    /// Whether there is nobody to ask.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent | Self::NoBus(_))
    }

    /// Whether it answered with the error of that name.
    fn is(&self, name: &str) -> bool {
        let Self::Refused { source, .. } = self else {
            return false;
        };
        matches!(source, zbus::Error::MethodError(theirs, ..) if theirs.as_str() == name)
    }
}

/// A scope: processes that systemd did not start, with a cgroup of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scope {
    slice: String,
    unit: String,
    /// The user's own systemd has it, not the host's.
    user: bool,
}

impl Scope {
    /// As engines name it: `SLICE:PREFIX:NAME`.
    pub(super) fn parse(text: &str, user: bool) -> Option<Self> {
        let (slice, rest) = text.split_once(':')?;
        let (prefix, name) = rest.split_once(':')?;
        let slice = match (slice, user) {
            ("", false) => "system.slice",
            ("", true) => "user.slice",
            (slice, _) => slice,
        };
        let is_bad = |text: &str| text.contains('/') || text.contains(':');
        if !slice.ends_with(".slice")
            || name.is_empty()
            || [slice, prefix, name].map(is_bad) != [false; 3]
        {
            return None;
        }
        let unit = match prefix {
            "" => format!("{name}.scope"),
            prefix => format!("{prefix}-{name}.scope"),
        };
        let slice = slice.to_owned();
        Some(Self { slice, unit, user })
    }

    /// Its cgroup, as systemd lays them out: `a-b.slice` lies in `a.slice`.
    pub(super) fn path(&self) -> PathBuf {
        let words = self.slice.trim_end_matches(".slice");
        let mut path = PathBuf::new();
        let mut so_far = String::new();
        for word in words.split('-').filter(|word| !word.is_empty()) {
            so_far = match so_far.as_str() {
                "" => word.to_owned(),
                before => format!("{before}-{word}"),
            };
            path.push(format!("{so_far}.slice"));
        }
        path.join(&self.unit)
    }

    /// Has it made, with a process in it.
    pub(super) fn start(&self, pid: u32, limits: &[Limit]) -> Result<(), SystemdError> {
        let properties = self.properties(pid, limits)?;
        // None of the others that the call may make at the same time.
        let others: [(&str, Vec<(&str, Variant)>); 0] = [];
        let call = (self.unit.as_str(), "fail", properties, others.as_slice());
        runtime()?.block_on(async {
            let systemd = Systemd::connect(self.user).await?;
            let (tries, pause) = TRIES;
            let mut tried = 1;
            loop {
                match systemd
                    .job("start", &self.unit, "StartTransientUnit", &call)
                    .await
                {
                    // One of that name has ended, and systemd is about to hear of it.
                    Err(error) if error.is(UNIT_EXISTS) && tried < tries => {
                        let _ = systemd
                            .call("ResetFailedUnit", &(self.unit.as_str(),))
                            .await;
                        sleep(pause).await;
                        tried += 1;
                    }
                    done => return done,
                }
            }
        })
    }

    /// Has it stopped, and waits until it is. One that is gone is gone.
    pub(super) fn stop(&self) -> Result<(), SystemdError> {
        let call = (self.unit.as_str(), "replace");
        runtime()?.block_on(async {
            let systemd = Systemd::connect(self.user).await?;
            let done = systemd.job("stop", &self.unit, "StopUnit", &call).await;
            // Nothing is left to be looked at.
            let _ = systemd
                .call("ResetFailedUnit", &(self.unit.as_str(),))
                .await;
            match done {
                Err(error) if error.is(NO_SUCH_UNIT) => Ok(()),
                done => done,
            }
        })
    }

    fn properties(
        &self,
        pid: u32,
        limits: &[Limit],
    ) -> Result<Vec<(&'static str, Variant<'static>)>, SystemdError> {
        let mut all = vec![
            (
                "Description",
                Variant::from(format!("Cofferdam: {}", self.unit)),
            ),
            ("Slice", Variant::from(self.slice.clone())),
            ("PIDs", Variant::from(vec![pid])),
            // We divide it further, and systemd keeps its hands off.
            ("Delegate", Variant::from(true)),
            // The engine ends containers before the host goes down.
            ("DefaultDependencies", Variant::from(false)),
            ("CollectMode", Variant::from("inactive-or-failed")),
        ];
        for what in [
            "CPUAccounting",
            "IOAccounting",
            "MemoryAccounting",
            "TasksAccounting",
        ] {
            all.push((what, Variant::from(true)));
        }
        for limit in limits {
            all.extend(property(limit)?);
        }
        Ok(all)
    }
}

/// What systemd calls a limit.
fn property(limit: &Limit) -> Result<Vec<(&'static str, Variant<'static>)>, SystemdError> {
    let one = |name, value| Ok(vec![(name, value)]);
    match limit {
        Limit::Memory(bytes) => one("MemoryMax", Variant::from(*bytes)),
        Limit::Tasks(count) => one("TasksMax", Variant::from(*count)),
        Limit::Weight(weight) => one("CPUWeight", Variant::from(*weight)),
        Limit::Cpus(set) => one("AllowedCPUs", Variant::from(mask(set)?)),
        Limit::Nodes(set) => one("AllowedMemoryNodes", Variant::from(mask(set)?)),
        Limit::Quota { quota, period } => {
            // systemd's is for a second, in steps of ten milliseconds.
            let second = quota.saturating_mul(1_000_000) / (*period).max(1);
            let second = second.div_ceil(10_000).saturating_mul(10_000);
            Ok(vec![
                ("CPUQuotaPeriodUSec", Variant::from(*period)),
                ("CPUQuotaPerSecUSec", Variant::from(second)),
            ])
        }
    }
}

/// A list like `0-2,7` as bits, the lowest first.
fn mask(set: &str) -> Result<Vec<u8>, SystemdError> {
    let range = |text: &str| -> Option<(usize, usize)> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
    };
    let mut bits = Vec::new();
    for part in set.split(',').filter(|part| !part.trim().is_empty()) {
        let found = range(part).filter(|(first, last)| first <= last && *last < MAX_CPU);
        let (first, last) = found.ok_or_else(|| SystemdError::Set(set.to_owned()))?;
        bits.resize(bits.len().max(last / 8 + 1), 0);
        for cpu in first..=last {
            if let Some(byte) = bits.get_mut(cpu / 8) {
                *byte |= 1 << (cpu % 8);
            }
        }
    }
    Ok(bits)
}

fn runtime() -> Result<Runtime, SystemdError> {
    let made = Builder::new_current_thread().enable_all().build();
    made.map_err(SystemdError::Wait)
}

/// A connection to one.
struct Systemd(Connection);

impl Systemd {
    async fn connect(user: bool) -> Result<Self, SystemdError> {
        if !Path::new(BOOTED).exists() {
            return Err(SystemdError::Absent);
        }
        let bus = match user {
            // In a user namespace the bus knows us by our number outside.
            true => Bus::session().user_id(crate::user::outer_user()),
            false => Bus::system(),
        };
        let connected = timeout(PATIENCE, bus.build()).await;
        let connected = connected.map_err(|_| SystemdError::NoBus(late()))?;
        Ok(Self(connected.map_err(SystemdError::NoBus)?))
    }

    async fn call<B>(&self, method: &str, body: &B) -> zbus::Result<zbus::Message>
    where
        B: Serialize + zbus::DynamicType,
    {
        let call = self
            .0
            .call_method(Some(NAME), PATH, Some(MANAGER), method, body);
        timeout(PATIENCE, call).await.map_err(|_| late())?
    }

    /// A call that gives a job, and the job's end.
    async fn job<B>(
        &self,
        action: &'static str,
        unit: &str,
        method: &str,
        body: &B,
    ) -> Result<(), SystemdError>
    where
        B: Serialize + zbus::DynamicType,
    {
        let refused = |source| SystemdError::Refused {
            action,
            unit: unit.to_owned(),
            source,
        };
        // Listened to before, or it may have ended unheard.
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(NAME)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()
            .map_err(refused)?;
        let ends = MessageStream::for_match_rule(rule, &self.0, None);
        let mut ends = ends.await.map_err(refused)?;
        let answer = self.call(method, body).await.map_err(refused)?;
        let job: OwnedObjectPath = answer.body().deserialize().map_err(refused)?;
        let wait = async {
            while let Some(end) = ends.next().await {
                let end = end.map_err(refused)?;
                let body = end.body();
                let (_, ended, _, result): (u32, OwnedObjectPath, String, String) =
                    body.deserialize().map_err(refused)?;
                if ended == job {
                    return Ok(result);
                }
            }
            Err(refused(late()))
        };
        let result = timeout(PATIENCE, wait)
            .await
            .map_err(|_| refused(late()))??;
        match result.as_str() {
            "done" => Ok(()),
            _ => Err(SystemdError::Job {
                action,
                unit: unit.to_owned(),
                result,
            }),
        }
    }
}

fn late() -> zbus::Error {
    zbus::Error::from(io::Error::from(io::ErrorKind::TimedOut))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, containers are not where engines look for them, or anywhere on the host.
    #[test]
    fn scopes_lie_where_systemd_has_them() {
        for (text, path) in [
            ("machine.slice:libpod:ab", "machine.slice/libpod-ab.scope"),
            ("a-b.slice:cri:x", "a.slice/a-b.slice/cri-x.scope"),
            (":docker:x", "system.slice/docker-x.scope"),
            ("a.slice::x", "a.slice/x.scope"),
        ] {
            let scope = Scope::parse(text, false).unwrap();
            assert_eq!(scope.path(), Path::new(path), "{text}");
        }
        let user = Scope::parse(":libpod:x", true).unwrap();
        assert_eq!(user.path(), Path::new("user.slice/libpod-x.scope"));
        for bad in [
            "",
            "/a/b",
            "a.slice:b",
            "a:b:c",
            "a.slice:b:../c",
            "a.slice:b:",
        ] {
            assert_eq!(Scope::parse(bad, false), None, "{bad}");
        }
    }

    /// If it fails, systemd does not understand what it is asked, or limits something else.
    #[test]
    fn limits_have_systemds_names_and_types() {
        let scope = Scope::parse("machine.slice:libpod:ab", false).unwrap();
        let limits = [
            Limit::Memory(1 << 30),
            Limit::Tasks(4096),
            Limit::Weight(39),
            Limit::Cpus("0-2,9".into()),
            Limit::Nodes("0".into()),
            Limit::Quota {
                quota: 50_000,
                period: 100_000,
            },
        ];
        let all = scope.properties(7, &limits).unwrap();
        let all: std::collections::HashMap<_, _> = all.into_iter().collect();
        for (name, value) in [
            ("Slice", Variant::from("machine.slice")),
            ("PIDs", Variant::from(vec![7_u32])),
            ("Delegate", Variant::from(true)),
            ("MemoryMax", Variant::from(1_u64 << 30)),
            ("TasksMax", Variant::from(4096_u64)),
            ("CPUWeight", Variant::from(39_u64)),
            ("AllowedCPUs", Variant::from(vec![7_u8, 2])),
            ("AllowedMemoryNodes", Variant::from(vec![1_u8])),
            ("CPUQuotaPerSecUSec", Variant::from(500_000_u64)),
        ] {
            assert_eq!(all[name], value, "{name}");
        }
        for bad in ["a", "3-1", "0-99999", "1-"] {
            assert!(mask(bad).is_err(), "{bad}");
        }
    }
}
