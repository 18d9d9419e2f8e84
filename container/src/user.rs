//! Who we are on the host.

use std::fs;

/// Whether we are root of the host's, and not of a user namespace, in which engines run that have no rights.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root() && outside(0) == Some(0)
}

/// Our user's number outside of the user namespace that we are in.
pub(crate) fn outer_user() -> u32 {
    let own = rustix::process::geteuid().as_raw();
    outside(own).unwrap_or(own)
}

fn outside(own: u32) -> Option<u32> {
    outer(&fs::read_to_string("/proc/self/uid_map").ok()?, own)
}

/// A number outside, by the text of `/proc/self/uid_map`.
fn outer(map: &str, own: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut words = line.split_whitespace().map(|word| word.parse::<u32>());
        let [inside, outside, count] = [
            words.next()?.ok()?,
            words.next()?.ok()?,
            words.next()?.ok()?,
        ];
        let at = own.checked_sub(inside).filter(|at| *at < count)?;
        outside.checked_add(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a user's own systemd takes us for somebody else, or root of a user namespace takes
    /// himself for the host's.
    #[test]
    fn users_have_a_number_outside() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(outer(map, 0), Some(1000));
        assert_eq!(outer(map, 5), Some(100_004));
        assert_eq!(outer(map, 70_000), None);
        assert_eq!(outer("0 0 4294967295\n", 0), Some(0));
    }
}
