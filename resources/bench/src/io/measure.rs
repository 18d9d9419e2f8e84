//! The part that runs in the lab: boots every row, traced once and then timed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::jobs::{self, Done, Job, float};
use super::{Set, monitors, serve};
use crate::boot::Boot;
use crate::measure::{MeasureError, read, version};
use crate::report::{Figure, IoJob, IoRow, IoSet};
use crate::rows::{Places, RowSpec};
use crate::trace::{JobCounts, Trace};

/// Bytes of the disk. The guest caches no more than it can hold.
const DISK_SIZE: usize = 32 << 20;
/// What the guest says last.
const DONE_LINE: &str = "io done\r\n";

/// Boots every row of a set. Raw traces go to `traces` if it is given.
pub fn measure(
    set: Set,
    places: &Places,
    runs: u32,
    traces: Option<&Path>,
) -> Result<IoSet, MeasureError> {
    match set {
        Set::Block => write_disk(&places.disk)
            .map_err(|error| MeasureError::File(places.disk.display().to_string(), error))?,
        Set::Net => serve::network().map_err(MeasureError::Server)?,
        Set::Vsock => serve::vsock().map_err(MeasureError::Server)?,
        Set::Fs => serve::files(&places.virtiofsd).map_err(MeasureError::Server)?,
    }
    let jobs = jobs::jobs(set);
    let rows = monitors::all(set, places)
        .iter()
        .map(|spec| measure_row(spec, &jobs, runs, traces))
        .collect::<Result<_, _>>()?;
    Ok(IoSet {
        id: set.id().into(),
        title: set.title().into(),
        kernel: read("/proc/sys/kernel/osrelease")?,
        peer: version(&places.qemu)?,
        runs,
        rows,
    })
}

/// A disk without holes, since a hole costs more the first time.
fn write_disk(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let piece = vec![0xa5; 1 << 20];
    (0..DISK_SIZE / piece.len()).try_for_each(|_| file.write_all(&piece))
}

fn measure_row(
    spec: &RowSpec,
    jobs: &[Job],
    runs: u32,
    traces: Option<&Path>,
) -> Result<IoRow, MeasureError> {
    // It comes first so that the timed ones find everything warm.
    let trace = Trace::jobs()?;
    let counted = boot(spec, jobs, true)?;
    let text = trace.stop()?;
    if let Some(directory) = traces {
        let path = directory.join(format!("{}.trace", spec.id));
        fs::write(&path, &text)
            .map_err(|error| MeasureError::File(path.display().to_string(), error))?;
    }
    let counts = JobCounts::parse(&text);
    if counts.len() != jobs.len() {
        return Err(MeasureError::NoMarks(spec.id));
    }
    let timed = (0..runs)
        .map(|_| boot(spec, jobs, false))
        .collect::<Result<Vec<_>, _>>()?;
    let rows = jobs.iter().enumerate().map(|(number, job)| {
        let (counts, counted) = (counts.get(number)?, counted.get(number)?);
        let done = timed.first()?.get(number)?;
        let nanos: Vec<_> = timed
            .iter()
            .filter_map(|run| run.get(number))
            .map(|done| done.nanos)
            .collect();
        let time_ms = Figure::from_nanos(&nanos)?;
        let operations = float(counted.operations);
        let per_operation = |count: u64| (float(count) / operations * 1000.0).round() / 1000.0;
        Some(IoJob {
            id: job.id.clone(),
            label: job.label.clone(),
            unit: job.unit.name().into(),
            value: job.unit.value(done, time_ms.median * 1e6),
            operations: done.operations,
            bytes: done.bytes,
            time_ms,
            exits_per_operation: per_operation(counts.exits),
            user_exits_per_operation: per_operation(counts.user_exits),
            user_exits_at: counts.places.clone(),
        })
    });
    Ok(IoRow {
        id: spec.id.into(),
        label: spec.label.into(),
        command: spec.shown(),
        jobs: rows
            .collect::<Option<_>>()
            .ok_or(MeasureError::NoMarks(spec.id))?,
    })
}

/// Has a guest do all jobs, and returns what it says of each.
fn boot(spec: &RowSpec, jobs: &[Job], traced: bool) -> Result<Vec<Done>, MeasureError> {
    let failed = |source| MeasureError::Boot {
        row: spec.id,
        source,
    };
    progress(&format!(
        "{}, {}",
        spec.label,
        if traced { "traced" } else { "timed" }
    ));
    let cmdline = jobs::cmdline(jobs);
    let mut boot = Boot::start(&mut spec.command_with(&cmdline)).map_err(failed)?;
    boot.wait_for(DONE_LINE).map_err(failed)?;
    let said = boot.said();
    jobs.iter()
        .map(|job| {
            let told = job.told();
            Done::find(&said, &told).ok_or(MeasureError::NoLine(spec.id, told))
        })
        .collect()
}

/// Tells the lab's console, of which the lab shows the end if it has to be killed.
fn progress(what: &str) {
    // Nothing depends on it.
    let _ = fs::write("/dev/kmsg", format!("<5>bench: {what}"));
}
