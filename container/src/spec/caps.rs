//! Capabilities by Docker's rules.

use std::collections::HashSet;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use super::SpecError;

/// What a container has if nothing is said: Docker's set.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

const ALL: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// All that there are.
pub(super) fn all() -> Capabilities {
    ALL.into_iter().collect()
}

/// The default with `add` and without `drop`: names with or without `CAP_`, or `ALL`.
pub(super) fn of(add: &[String], drop: &[String]) -> Result<Capabilities, SpecError> {
    let is_all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("all"));
    let mut set: HashSet<Capability> = match (is_all(add), is_all(drop)) {
        (true, _) => all(),
        (false, true) => HashSet::new(),
        (false, false) => DEFAULT.into_iter().collect(),
    };
    for name in drop.iter().filter(|name| !name.eq_ignore_ascii_case("all")) {
        set.remove(&parse(name)?);
    }
    for name in add.iter().filter(|name| !name.eq_ignore_ascii_case("all")) {
        set.insert(parse(name)?);
    }
    Ok(set)
}

/// The same set for a process of root's. Others have it as the most that they can get.
pub(super) fn process(set: Capabilities, is_root: bool) -> LinuxCapabilities {
    let own = if is_root { set.clone() } else { HashSet::new() };
    let mut capabilities = LinuxCapabilities::default();
    capabilities.set_bounding(Some(set));
    capabilities.set_effective(Some(own.clone()));
    capabilities.set_permitted(Some(own));
    capabilities.set_inheritable(None);
    capabilities.set_ambient(None);
    capabilities
}

/// The names of those that a process may have at most: `CAP_…`.
pub(super) fn names(process: &oci_spec::runtime::Process) -> Vec<String> {
    let capabilities = process.capabilities().as_ref();
    let set = capabilities.and_then(|all| all.bounding().as_ref());
    let name = |one: &Capability| Some(serde_json::to_value(one).ok()?.as_str()?.to_owned());
    set.into_iter().flatten().filter_map(name).collect()
}

fn parse(name: &str) -> Result<Capability, SpecError> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    crate::json::from_value(serde_json::Value::String(full))
        .map_err(|_| SpecError::Capability(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// If it fails, a container has more rights than its user thinks, or fewer.
    #[test]
    fn sets_are_dockers() {
        let set = |add: &[&str], drop: &[&str]| of(&names(add), &names(drop)).unwrap();
        assert_eq!(set(&[], &[]).len(), 14);
        assert!(set(&["net_admin"], &[]).contains(&Capability::NetAdmin));
        assert!(!set(&[], &["CAP_CHOWN"]).contains(&Capability::Chown));
        assert_eq!(
            set(&["CHOWN"], &["ALL"]),
            HashSet::from([Capability::Chown])
        );
        let most = set(&["all"], &["SYS_ADMIN"]);
        assert!(most.len() == 40 && !most.contains(&Capability::SysAdmin));
        assert!(of(&names(&["sys_magic"]), &[]).is_err());
        let mut own = oci_spec::runtime::Process::default();
        own.set_capabilities(Some(process(set(&["CHOWN"], &["ALL"]), true)));
        assert_eq!(super::names(&own), ["CAP_CHOWN"]);
    }
}
