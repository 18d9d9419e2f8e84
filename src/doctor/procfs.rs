//! What /proc says about this process.

use std::fs;

/// CAP_NET_ADMIN (`linux/capability.h`).
pub const CAP_NET_ADMIN: u32 = 12;
/// CAP_IPC_LOCK.
pub const CAP_IPC_LOCK: u32 = 14;

/// Whether this process has the capability now.
pub fn has_capability(capability: u32) -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| in_effect(&status, capability))
}

fn in_effect(status: &str, capability: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> capability & 1 == 1)
}

/// A limit of this process in the unit of `/proc/self/limits`; `u64::MAX` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What holds now.
    pub soft: u64,
    /// As far as the process itself may raise it.
    pub hard: u64,
}

/// The limit that `/proc/self/limits` calls by this name.
pub fn limit(name: &str) -> Option<Limit> {
    find_limit(&fs::read_to_string("/proc/self/limits").ok()?, name)
}

fn find_limit(limits: &str, name: &str) -> Option<Limit> {
    let value = |text: &str| match text {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    let mut values = limits
        .lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace();
    Some(Limit {
        soft: value(values.next()?)?,
        hard: value(values.next()?)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, root is told to become root, or a user not.
    #[test]
    fn capabilities_are_bits_of_the_effective_set() {
        let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000000001000\n";
        assert!(in_effect(status, CAP_NET_ADMIN));
        assert!(!in_effect(status, CAP_IPC_LOCK));
        assert!(!in_effect("CapEff:\tzz\n", CAP_NET_ADMIN));
        assert!(!in_effect("", CAP_NET_ADMIN));
    }

    /// If this fails, limits are reported wrongly or a missing line is a panic.
    #[test]
    fn limits_are_soft_and_hard() {
        let limits = "Limit   Soft Limit  Hard Limit  Units\n\
                      Max locked memory         8388608     unlimited     bytes\n\
                      Max open files            1024\n";
        assert_eq!(
            find_limit(limits, "Max locked memory"),
            Some(Limit {
                soft: 8_388_608,
                hard: u64::MAX
            })
        );
        assert_eq!(find_limit(limits, "Max open files"), None);
        assert_eq!(find_limit(limits, "Max stack size"), None);
    }
}
