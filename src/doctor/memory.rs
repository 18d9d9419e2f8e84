//! Huge pages of both kinds.

use std::fs;

use super::Finding;

/// Guest memory is anonymous and asks for huge pages with `madvise`.
const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Whether the kernel gives guest memory huge pages unasked.
pub fn transparent_huge_pages() -> Finding {
    judge_transparent(fs::read_to_string(SWITCH).ok().as_deref())
}

fn judge_transparent(modes: Option<&str>) -> Finding {
    let Some(modes) = modes else {
        return Finding::missing("the kernel has none");
    };
    match chosen(modes) {
        Some(mode @ ("always" | "madvise")) => Finding::ok(mode),
        Some(mode) => Finding::limited(mode).mended_by(format!("echo madvise | sudo tee {SWITCH}")),
        None => Finding::limited(format!("{SWITCH} is not understood")),
    }
}

/// The word in brackets in a list such as `always [madvise] never`.
fn chosen(modes: &str) -> Option<&str> {
    modes
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// Whether huge pages are set aside for `--hugepages 2M`.
pub fn huge_pages() -> Finding {
    let count = |name| {
        fs::read_to_string(format!("{POOL}/{name}"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    judge_pool(count("nr_hugepages"), count("free_hugepages"))
}

fn judge_pool(total: Option<u64>, free: Option<u64>) -> Finding {
    let (Some(total), Some(free)) = (total, free) else {
        return Finding::missing("the kernel has none of this size");
    };
    if free > 0 {
        return Finding::ok(format!("{free} of {total} free"));
    }
    Finding::limited(format!("0 of {total} free")).mended_by(format!(
        "sudo sysctl -w vm.nr_hugepages={}",
        total.saturating_add(512)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    /// If this fails, the switch is misread, and slow memory is called good.
    #[test]
    fn the_switch_in_brackets_counts() {
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(
            judge_transparent(Some("always [madvise] never")).state,
            State::Ok
        );
        assert_eq!(
            judge_transparent(Some("always madvise [never]")).state,
            State::Limited
        );
        assert_eq!(judge_transparent(Some("")).state, State::Limited);
        assert_eq!(judge_transparent(None).state, State::Missing);
    }

    /// If this fails, a pool that is used up is called good, or the command takes pages away.
    #[test]
    fn only_free_pages_count() {
        assert_eq!(judge_pool(Some(8), Some(3)), Finding::ok("3 of 8 free"));
        let used = judge_pool(Some(8), Some(0));
        assert_eq!(used.state, State::Limited);
        assert_eq!(
            used.mend.as_deref(),
            Some("sudo sysctl -w vm.nr_hugepages=520")
        );
        assert_eq!(judge_pool(None, None).state, State::Missing);
    }
}
