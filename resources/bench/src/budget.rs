//! The promises that a release keeps, and whether this build does.

use crate::report::{Bound, Budget, Report, Row};
use crate::rows::{DEFAULT_ROW, DEVICES_ROW, PEER_ROWS};

/// Compares the report with what is promised. What was not measured is not kept.
pub fn check(report: &Report) -> Vec<Budget> {
    let ours = report.lab.row(DEFAULT_ROW);
    let devices = report.lab.row(DEVICES_ROW);
    let init = |row: &Row| row.stages.init_ms.median;
    // The peer at its best.
    let peer = PEER_ROWS
        .iter()
        .filter_map(|id| report.lab.row(id))
        .map(init)
        .reduce(f64::min);
    let margin = peer.zip(ours.map(init)).map(|(peer, ours)| peer - ours);
    let host = report.host.as_ref().map(|host| host.first_entry_ms.median);
    let number = |value: u64| u32::try_from(value).map_or(f64::INFINITY, f64::from);
    let at_most =
        |name, unit, limit, goal, value| budget(name, unit, Bound::AtMost, limit, goal, value);
    vec![
        budget(
            "init's first output sooner than under QEMU microvm",
            "virtual ms",
            Bound::AtLeast,
            62.0,
            Some(72.0),
            margin,
        ),
        at_most(
            "exits to user space in a quiet boot",
            "exits",
            90.0,
            None,
            ours.map(|row| number(row.trace.user_exits_total())),
        ),
        at_most(
            "nested page faults in a quiet boot",
            "faults",
            60.0,
            None,
            ours.map(|row| number(row.nested_page_faults)),
        ),
        at_most(
            "monitor-only RSS with serial, block and net",
            "KiB",
            2560.0,
            Some(1536.0),
            devices.map(|row| number(row.memory.monitor_rss_kib)),
        ),
        at_most(
            "process start to first KVM_RUN on the host's own KVM",
            "ms",
            8.0,
            None,
            host,
        ),
    ]
}

fn budget(
    name: &str,
    unit: &str,
    bound: Bound,
    limit: f64,
    goal: Option<f64>,
    value: Option<f64>,
) -> Budget {
    let held = value.is_some_and(|value| match bound {
        Bound::AtMost => value <= limit,
        Bound::AtLeast => value >= limit,
    });
    Budget {
        name: name.into(),
        unit: unit.into(),
        bound,
        limit,
        goal,
        value,
        held,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{report, row};

    fn held(report: &Report) -> Vec<bool> {
        check(report).iter().map(|budget| budget.held).collect()
    }

    /// If it fails, a figure at its limit is called a failure, or the limits are not the promised.
    #[test]
    fn a_limit_may_be_reached() {
        let rows = vec![
            row(DEFAULT_ROW, 50.0),
            row(DEVICES_ROW, 60.0),
            row(PEER_ROWS[0], 112.0),
        ];
        assert_eq!(held(&report(rows)), [true; 5]);
    }

    /// If it fails, a build that is too slow or too fat passes.
    #[test]
    fn a_limit_may_not_be_passed() {
        let mut ours = row(DEFAULT_ROW, 50.1);
        ours.trace.user_exits.insert("hypercall".into(), 1);
        ours.nested_page_faults = 61;
        let mut devices = row(DEVICES_ROW, 60.0);
        devices.memory.monitor_rss_kib = 2561;
        let mut report = report(vec![ours, devices, row(PEER_ROWS[0], 112.0)]);
        report.host.as_mut().unwrap().first_entry_ms.median = 8.1;
        assert_eq!(held(&report), [false; 5]);
    }

    /// If it fails, we win by comparing with the peer's slower configuration.
    #[test]
    fn the_peers_better_row_counts() {
        let peers = vec![
            row(DEFAULT_ROW, 50.0),
            row(PEER_ROWS[0], 120.0),
            row(PEER_ROWS[1], 90.0),
        ];
        assert_eq!(check(&report(peers))[0].value, Some(40.0));
    }

    /// If it fails, a figure that could not be measured passes for a good one.
    #[test]
    fn what_was_not_measured_is_not_held() {
        let mut report = report(Vec::new());
        report.host = None;
        assert_eq!(held(&report), [false; 5]);
    }
}
