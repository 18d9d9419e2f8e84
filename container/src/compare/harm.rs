//! Harm inside a container, and who feels it. Nothing here may harm the host: what would is not tried.

use std::fs;
use std::thread;
use std::time::Duration;

use super::report::{Cell, digits};
use super::side::{Neighbour, Program, Run, Side, remove};
use super::{Cells, CompareError, Measure};
use crate::state::Containers;

/// What [`harm`] gives.
pub const ROWS: &[&str] = &[
    "calm",
    "fork",
    "fork_neighbour",
    "oom",
    "oom_neighbour",
    "panic",
    "panic_neighbour",
];
/// Processes that a fork bomb may have on the host's kernel.
const PIDS: &str = "256";
/// And where nothing stops it but a kernel of its own. It ends for want of time before.
const MANY: &str = "1000000";
const FORK_MILLIS: &str = "2000";
/// MiB that somebody takes who may have [`MEMORY`].
const EATS: &str = "512";
const MEMORY: &str = "64m";
/// A while without harm.
const CALM: Duration = Duration::from_secs(1);

/// Does harm, next to a neighbour.
pub fn harm(measure: &Measure<'_>) -> Result<Cells, CompareError> {
    let mut neighbour = measure.subject.neighbour()?;
    // Its first words are about its start.
    thread::sleep(CALM / 2);
    neighbour.ask()?;
    thread::sleep(CALM);
    let calm = Cell::number(neighbour.ask()?);

    let fork = fork(measure)?;
    let fork_neighbour = felt(&mut neighbour);
    let oom = oom(measure)?;
    let oom_neighbour = felt(&mut neighbour);
    let (panic, panic_neighbour) = match measure.subject.side {
        Side::Vm => (panic(measure)?, felt(&mut neighbour)),
        Side::Process(_) => {
            let why = "it would be the host's kernel";
            (Cell::missing(why), Cell::missing(why))
        }
    };
    Ok(vec![
        ("calm", calm),
        ("fork", fork),
        ("fork_neighbour", fork_neighbour),
        ("oom", oom),
        ("oom_neighbour", oom_neighbour),
        ("panic", panic),
        ("panic_neighbour", panic_neighbour),
    ])
}

fn felt(neighbour: &mut Neighbour) -> Cell {
    match neighbour.ask() {
        Ok(millis) => Cell::number(millis),
        Err(_) => Cell::text("it died"),
    }
}

fn fork(measure: &Measure<'_>) -> Result<Cell, CompareError> {
    let (options, most) = match measure.subject.side {
        Side::Process(_) => (&["--pids-limit", PIDS][..], PIDS),
        Side::Vm => (&[][..], MANY),
    };
    let run = measure
        .subject
        .run(options, Program::Probe(&["fork", most, FORK_MILLIS]))?;
    let (Some(count), Some(refused)) = (run.number("processes"), run.number("refused")) else {
        return Ok(Cell::text(format!("ends with it: {}", run.excuse())));
    };
    let count = digits(count);
    Ok(Cell::text(match (refused > 0.0, measure.subject.side) {
        (true, Side::Process(_)) => format!("{count} processes: its limit"),
        (true, Side::Vm) => format!("{count} processes: its kernel's limit"),
        (false, _) => format!("{count} processes, then time was over"),
    }))
}

fn oom(measure: &Measure<'_>) -> Result<Cell, CompareError> {
    let name = format!("compare-{}-oom", std::process::id());
    let options = ["--memory", MEMORY];
    let run = measure
        .subject
        .run_as(&name, &options, Program::Probe(&["eat", EATS]));
    remove(&name);
    let run = run?;
    let had = run
        .number("mib")
        .map_or_else(String::new, |mib| format!(" past {} MiB", digits(mib)));
    Ok(match (run.said.get("not_stopped"), run.code) {
        (Some(_), _) => Cell::missing("its memory limit does not hold here"),
        (None, Some(137)) => Cell::text(format!("killed{had}, exit code 137")),
        (None, _) => Cell::text(format!("ends{had}: {}", run.excuse())),
    })
}

fn panic(measure: &Measure<'_>) -> Result<Cell, CompareError> {
    let name = format!("compare-{}-panic", std::process::id());
    let probe = Program::Probe(&["panic", measure.boot]);
    let run = measure.subject.run_as(&name, &["--privileged"], probe);
    let container = Containers::open()?.find(&name);
    let error = container
        .and_then(|container| container.state())
        .map(|state| state.error);
    remove(&name);
    Ok(judge_panic(&run?, &error?, measure.boot))
}

fn judge_panic(run: &Run, error: &str, boot: &str) -> Cell {
    let now = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // The monitor's word, not the guest's.
    let panicked = error.contains("exit status: 81");
    match run.code {
        Some(code) if panicked && now.trim() == boot => {
            Cell::text(format!("its VM ends, exit code {code}; the host runs on"))
        }
        _ if error.is_empty() => Cell::missing(run.excuse()),
        _ => Cell::missing(error),
    }
}
