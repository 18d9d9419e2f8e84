//! What is promised of containers.

use super::{BOOT_ROW, PROCESS_ROW, RUN_ROW};
use crate::budget::budget;
use crate::io::jobs::float;
use crate::report::{Bound, Budget, Containers};

/// Whether it is so.
pub fn check(containers: &Containers) -> Vec<Budget> {
    let row = |id: &str| containers.rows.iter().find(|row| row.id == id);
    let boot = row(BOOT_ROW).map(|row| row.first_output_ms.median);
    let process = row(PROCESS_ROW)
        .and_then(|row| row.whole_ms)
        .map(|f| f.median);
    let run = row(RUN_ROW).and_then(|row| row.whole_ms).map(|f| f.median);
    let times = run
        .zip(boot.zip(process))
        .map(|(run, (boot, process))| run / (boot + process));
    let (idle, image) = (&containers.idle, &containers.image);
    let overhead = float(image.erofs_kib + image.beside_kib) / float(image.files_kib) - 1.0;
    let most = |name: &str, unit, limit, goal, value| {
        budget(name, unit, Bound::AtMost, limit, goal, value)
    };
    vec![
        most(
            "cofferdam run of true",
            "times a bare boot and crun run",
            1.25,
            None,
            times,
        ),
        most(
            "the agent's start to its first call, in a container",
            "virtual ms",
            10.0,
            None,
            Some(idle.agent_ready_ms),
        ),
        most(
            "memory for each of 20 idle containers of an image, all in",
            "MiB",
            24.0,
            Some(12.0),
            Some(float(idle.host_kib) / 1024.0),
        ),
        most(
            "layers as VMs use them, beyond the layers' tars",
            "%",
            5.0,
            None,
            // To a hundredth, so that a limit may be reached.
            Some((overhead * 1e4).round() / 100.0),
        ),
        most(
            "the image's pages in memory, for all of them",
            "times the image",
            1.0,
            None,
            Some(float(idle.image_pss_kib) / float(idle.image_kib)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{ContainerRow, Figure, Idle, ImageSize};

    fn row(id: &str, ms: f64) -> ContainerRow {
        let figure = Figure {
            median: ms,
            min: ms,
            max: ms,
        };
        ContainerRow {
            id: id.into(),
            label: id.into(),
            command: id.into(),
            first_output_ms: figure,
            whole_ms: Some(figure),
        }
    }

    fn containers(run: f64) -> Containers {
        Containers {
            kernel: "6.12".into(),
            runtimes: Vec::new(),
            runs: 1,
            rows: vec![
                row(BOOT_ROW, 70.0),
                row(RUN_ROW, run),
                row(PROCESS_ROW, 10.0),
            ],
            image: ImageSize {
                files_kib: 1000,
                erofs_kib: 1040,
                beside_kib: 10,
                blobs_kib: 1000,
            },
            idle: Idle {
                host_kib: 24 << 10,
                image_pss_kib: 10,
                image_kib: 10,
                agent_ready_ms: 10.0,
                ..Idle::default()
            },
        }
    }

    /// If it fails, a container that is too slow or too fat passes, or one at the limit does not.
    #[test]
    fn containers_have_limits() {
        let held = |containers: &Containers| -> Vec<bool> {
            check(containers).iter().map(|budget| budget.held).collect()
        };
        assert_eq!(held(&containers(100.0)), [true; 5]);
        let mut bad = containers(100.1);
        bad.image.erofs_kib = 1041;
        bad.idle.host_kib += 1;
        bad.idle.image_pss_kib = 11;
        bad.idle.agent_ready_ms = 10.1;
        assert_eq!(held(&bad), [false; 5]);
        bad.rows.pop();
        assert_eq!(check(&bad)[0].value, None);
    }
}
