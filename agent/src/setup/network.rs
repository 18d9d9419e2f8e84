//! The network of a container, which is the guest's: root of the container's user namespace, if it has
//! one, has no power over it. So what belongs to it there is set before.

use super::set_sysctl;
use crate::error::Result;
use crate::spec::{IdMapping, Spec};

/// Groups that may ping; numbers that mean something in a user namespace.
const PING: &str = "net.ipv4.ping_group_range";
/// Root there could not serve at lower ones.
const PORTS: &str = "net.ipv4.ip_unprivileged_port_start";

/// Whether a sysctl, named with dots or with slashes, is of the network.
pub fn is_sysctl(name: &str) -> bool {
    name.starts_with("net.") || name.starts_with("net/")
}

/// Sets those of the network, in the guest's own user namespace.
pub fn set_sysctls(spec: &Spec) -> Result<()> {
    let is_mapped = spec.has_user_namespace();
    if is_mapped {
        set_sysctl(PORTS, "0")?;
    }
    let all = spec.linux.sysctl.iter().flatten();
    for (name, value) in all.filter(|(name, _)| is_sysctl(name)) {
        let groups = spec.linux.gid_mappings.as_deref().unwrap_or_default();
        if is_mapped && name.replace('/', ".") == PING {
            set_sysctl(name, &mapped(value, groups))?;
        } else {
            set_sysctl(name, value)?;
        }
    }
    Ok(())
}

/// Numbers of a user namespace as they are outside; those that it does not have stay.
fn mapped(value: &str, mappings: &[IdMapping]) -> String {
    let outside = |word: &str| -> Option<String> {
        let inside: u32 = word.parse().ok()?;
        mappings.iter().find_map(|one| {
            let at = inside.checked_sub(one.container_id)?;
            let at = Some(at).filter(|at| *at < one.size)?;
            Some(one.host_id.checked_add(at)?.to_string())
        })
    };
    let words = value.split_whitespace();
    let words: Vec<_> = words
        .map(|word| outside(word).unwrap_or_else(|| word.to_owned()))
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, groups outside of the container may ping, and none in it.
    #[test]
    fn groups_are_those_outside() {
        let one = |container_id, host_id, size| IdMapping {
            container_id,
            host_id,
            size,
        };
        let all = [one(0, 1000, 1), one(1, 100_000, 10)];
        assert_eq!(mapped("0 10", &all), "1000 100009");
        assert_eq!(mapped("0 11", &all), "1000 11");
        assert!(is_sysctl(PING) && is_sysctl("net/ipv4/x") && !is_sysctl("kernel.net"));
    }
}
