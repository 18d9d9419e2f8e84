//! The promises that a release keeps, and whether this build does.

use crate::containers;
use crate::report::{Bound, Budget, Host, IoSet, Lab, Report, Row};
use crate::rows::{ALL_ROW, DEFAULT_ROW, DEVICES_ROW, PEER_ROWS};

/// Compares the report with what is promised of what was asked for. What could not be measured is
/// not kept.
pub fn check(report: &Report) -> Vec<Budget> {
    let host = report.host.as_ref();
    let boots = report.lab.iter().flat_map(|lab| boots(lab, host));
    let containers = report.containers.iter().flat_map(containers::budget::check);
    boots
        .chain(containers)
        .chain(report.io.iter().flat_map(io))
        .collect()
}

/// What is promised of input and output.
fn io(set: &IoSet) -> Vec<Budget> {
    let times_as_fast = |name: &str, job: &str, limit, goal| {
        let speed = set.speed(DEFAULT_ROW, job);
        budget(
            name,
            "times QEMU's rate",
            Bound::AtLeast,
            limit,
            Some(goal),
            speed,
        )
    };
    let mut budgets = match &*set.id {
        "block" => vec![
            times_as_fast(
                "virtio-blk, direct reads of 1 MiB",
                "block:read:1048576:sequential:direct:1",
                1.5,
                2.0,
            ),
            times_as_fast(
                "virtio-blk, direct reads of 4 KiB",
                "block:read:4096:random:direct:1",
                3.5,
                5.0,
            ),
        ],
        "vsock" => {
            let speed = set.speed(DEFAULT_ROW, "stream:vsock:echo:32");
            vec![budget(
                "virtio-vsock, round trip of 32 bytes",
                "of QEMU's time",
                Bound::AtMost,
                0.5,
                Some(0.4),
                speed.map(f64::recip),
            )]
        }
        _ => Vec::new(),
    };
    let ours = set.rows.iter().filter(|row| row.is_ours());
    let most = ours
        .flat_map(|row| &row.jobs)
        .map(|job| job.user_exits_per_operation)
        .reduce(f64::max);
    budgets.push(budget(
        &format!(
            "{}, exits to user space for an operation, of any job",
            set.title
        ),
        "exits",
        Bound::AtMost,
        0.01,
        Some(0.0),
        most,
    ));
    budgets
}

/// What is promised of a boot.
fn boots(lab: &Lab, host: Option<&Host>) -> Vec<Budget> {
    let ours = lab.row(DEFAULT_ROW);
    let number = |value: u64| u32::try_from(value).map_or(f64::INFINITY, f64::from);
    let rss = |id| lab.row(id).map(|row| number(row.memory.monitor_rss_kib));
    let init = |row: &Row| row.stages.init_ms.median;
    // The peer at its best.
    let peer = PEER_ROWS
        .iter()
        .filter_map(|id| lab.row(id))
        .map(init)
        .reduce(f64::min);
    let margin = peer.zip(ours.map(init)).map(|(peer, ours)| peer - ours);
    let host = host.map(|host| host.first_entry_ms.median);
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
            rss(DEVICES_ROW),
        ),
        at_most(
            "monitor-only RSS with block, net, vsock, pmem, rng and balloon",
            "KiB",
            3072.0,
            None,
            rss(ALL_ROW),
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

/// A budget, and whether a value is in it: none is not.
pub fn budget(
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
    use crate::report::tests::{io_set, report, row};

    fn held(report: &Report) -> Vec<bool> {
        check(report).iter().map(|budget| budget.held).collect()
    }

    /// If it fails, a figure at its limit is called a failure, or the limits are not the promised.
    #[test]
    fn a_limit_may_be_reached() {
        let rows = vec![
            row(DEFAULT_ROW, 50.0),
            row(DEVICES_ROW, 60.0),
            row(ALL_ROW, 60.0),
            row(PEER_ROWS[0], 112.0),
        ];
        assert_eq!(held(&report(rows)), [true; 6]);
    }

    /// If it fails, a device that is too slow or asks user space for each request passes.
    #[test]
    fn input_and_output_have_limits() {
        let held = |set: IoSet| {
            io(&set)
                .iter()
                .map(|budget| budget.held)
                .collect::<Vec<_>>()
        };
        assert_eq!(held(io_set(3.5, 1.0)), [true, true, true]);
        assert_eq!(held(io_set(3.4, 1.0)), [true, false, true]);
        let mut exits = io_set(1.4, 1.0);
        exits.rows[0].jobs[9].user_exits_per_operation = 0.02;
        assert_eq!(held(exits), [false, false, false]);
        let mut missing = io_set(3.5, 1.0);
        missing.rows.truncate(1);
        assert_eq!(held(missing), [false, false, true]);
    }

    /// If it fails, a build that is too slow or too fat passes.
    #[test]
    fn a_limit_may_not_be_passed() {
        let mut ours = row(DEFAULT_ROW, 50.1);
        ours.trace.user_exits.insert("hypercall".into(), 1);
        ours.nested_page_faults = 61;
        let mut devices = row(DEVICES_ROW, 60.0);
        devices.memory.monitor_rss_kib = 2561;
        let mut all = row(ALL_ROW, 60.0);
        all.memory.monitor_rss_kib = 3073;
        let mut report = report(vec![ours, devices, all, row(PEER_ROWS[0], 112.0)]);
        report.host.as_mut().unwrap().first_entry_ms.median = 8.1;
        assert_eq!(held(&report), [false; 6]);
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
        assert_eq!(held(&report), [false; 6]);
    }
}
