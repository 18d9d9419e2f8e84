//! Where a container's VM is among the host's cgroups: where the engine's configuration says, by systemd's
//! hand or ours.

use std::path::{Path, PathBuf};

use super::cgroup::{self, CgroupError, Limit};
use super::create::CreateError;
use super::report::Report;
use super::store::Container;
use super::systemd::Scope;

/// A place that a configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// That of who starts it.
    Nowhere,
    /// A cgroup's directory, for us to make.
    Directory(PathBuf),
    /// A scope, for systemd to make.
    Scope(Scope),
}

impl Place {
    /// `systemd`: the path is `SLICE:PREFIX:NAME`.
    pub(super) fn find(path: Option<&Path>, systemd: bool) -> Result<Self, CgroupError> {
        let Some(path) = path.filter(|_| cgroup::are_there()) else {
            return Ok(Self::Nowhere);
        };
        if !systemd {
            let dir = cgroup::directory(path)?;
            return Ok(dir.map_or(Self::Nowhere, Self::Directory));
        }
        let scope = Scope::parse(&path.to_string_lossy(), !crate::user::is_root());
        let bad = || CgroupError::Path {
            path: path.to_owned(),
            why: "SLICE:PREFIX:NAME is expected with --systemd-cgroup",
        };
        scope.map(Self::Scope).ok_or_else(bad)
    }

    /// Puts the process that stands for a container there, and so all that it will start.
    pub(super) fn enter(
        self,
        container: &mut Container,
        limits: &[Limit],
        report: &Report,
    ) -> Result<(), CreateError> {
        match self {
            Self::Nowhere => Ok(()),
            Self::Directory(dir) => enter_directory(dir, container, limits, report),
            Self::Scope(scope) => {
                let pid = container.record.pid;
                match scope.start(pid, limits) {
                    // Not before it is ours: one of that name may be another's, which `delete` would stop.
                    // If nobody comes to write it down, it ends with the process that was put into it.
                    Ok(()) => {
                        container.record.scope = Some(scope);
                        container.record.cgroup = cgroup::of(pid);
                        Ok(container.save()?)
                    }
                    Err(error) if error.is_absent() => {
                        let why = crate::describe(&error);
                        report.warning(&format!(
                            "--systemd-cgroup: the cgroup is made without systemd: {why}"
                        ));
                        let dir = cgroup::directory(&scope.path())?;
                        let place = dir.map_or(Self::Nowhere, Self::Directory);
                        place.enter(container, limits, report)
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

fn enter_directory(
    dir: PathBuf,
    container: &mut Container,
    limits: &[Limit],
    report: &Report,
) -> Result<(), CreateError> {
    cgroup::check(&dir)?;
    container.record.cgroup = Some(dir.clone());
    container.save()?;
    let made = cgroup::make(&dir, limits).and_then(|()| cgroup::join(&dir, container.record.pid));
    match made {
        // The host's cgroups are not a user's, unless some were given to him.
        Err(error) if !crate::user::is_root() => {
            report.warning(&format!(
                "the host does not limit the VM: {}",
                crate::describe(&error)
            ));
            container.record.cgroup = None;
            Ok(container.save()?)
        }
        done => Ok(done?),
    }
}
