//! What of the host is within reach.

use super::report::{Cell, digits};
use super::side::{Program, Run, Side};
use super::{Cells, CompareError, Measure};

/// What [`look`] gives.
pub const ROWS: &[&str] = &[
    "kernel",
    "own_kernel",
    "host_proc",
    "host_sys",
    "host_writable",
    "host_devices",
    "nodes",
    "own",
    "sees",
];

/// Has the probe look round.
pub fn look(measure: &Measure<'_>) -> Result<Cells, CompareError> {
    let run = measure.subject.run(&[], Program::Probe(&["look"]))?;
    cells(&run, measure.boot).ok_or_else(|| CompareError::Container(run.excuse()))
}

/// None if it did not say everything.
fn cells(run: &Run, host: &str) -> Option<Cells> {
    let number = |name: &str| run.number(name);
    let boot = run.said.get("boot").filter(|boot| !boot.is_empty())?;
    let is_host = boot == host;
    let devices = number("block_devices")? + number("pci_devices")?;
    let (proc, sys) = (number("proc_entries")?, number("sys_entries")?);
    let writable = number("writable_parameters")?;
    // What another kernel shows is nothing of the host's.
    let of_host = |count: f64| Cell::number(if is_host { count } else { 0.0 });
    let own = match is_host {
        true => Cell::text("it has none"),
        false => Cell::text(format!(
            "/proc {}, /sys {}, devices {}",
            digits(proc),
            digits(sys),
            digits(devices)
        )),
    };
    let memory = number("memory_kib")? / 1024.0;
    Some(vec![
        ("kernel", Cell::text(run.said.get("kernel")?)),
        (
            "own_kernel",
            Cell::text(if is_host { "the host's" } else { "its own" }),
        ),
        ("host_proc", of_host(proc)),
        ("host_sys", of_host(sys)),
        ("host_writable", of_host(writable)),
        ("host_devices", of_host(devices)),
        ("nodes", Cell::number(number("device_nodes")?)),
        ("own", own),
        (
            "sees",
            Cell::text(format!(
                "{}, {} MiB",
                digits(number("cpus")?),
                digits(memory)
            )),
        ),
    ])
}

/// Has the probe try every system call.
pub fn calls(measure: &Measure<'_>) -> Result<Cells, CompareError> {
    let run = measure.subject.run(&[], Program::Probe(&["calls"]))?;
    let number = |name: &str| {
        let number = run.number(name);
        number.ok_or_else(|| CompareError::Container(run.excuse()))
    };
    let (answered, refused, filter) = (number("answered")?, number("refused")?, number("filter")?);
    let calls = match (measure.subject.side, filter > 0.0) {
        // They end in a kernel of its own.
        (Side::Vm, _) => 0.0,
        // EPERM may be the filter's word.
        (Side::Process(_), true) => answered,
        (Side::Process(_), false) => answered + refused,
    };
    Ok(vec![("host_calls", Cell::number(calls))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::side::parse;
    use std::time::Duration;

    fn run(text: &str) -> Run {
        Run {
            first_output: Duration::ZERO,
            whole: Duration::ZERO,
            code: Some(0),
            said: parse(text),
            errors: String::new(),
        }
    }

    /// If it fails, a guest's own devices count as the host's, or the host's do not.
    #[test]
    fn what_belongs_to_the_host_is_told_apart() {
        let text = "kernel 6.12\nboot b\nmemory_kib 2048\ncpus 1\nproc_entries 50\nsys_entries 60\n\
                    writable_parameters 3\ndevice_nodes 7\nblock_devices 2\npci_devices 0";
        let of = |host: &str, row: &str| {
            let cells = cells(&run(text), host).unwrap();
            cells.into_iter().find(|(id, _)| *id == row).unwrap().1
        };
        assert_eq!(of("b", "host_sys"), Cell::number(60.0));
        assert_eq!(of("a", "host_sys"), Cell::number(0.0));
        assert_eq!(of("a", "own"), Cell::text("/proc 50, /sys 60, devices 2"));
        assert_eq!(of("a", "sees"), Cell::text("1, 2 MiB"));
        assert!(cells(&run("kernel 6.12"), "b").is_none());
    }
}
