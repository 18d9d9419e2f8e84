//! The part that runs in the lab: boots every row a number of times.
//!
//! Time and counts come from runs of their own, since tracing takes time. Four kinds of run:
//! quiet (timed, and KVM's counters read), chatty (timed to the kernel's first byte), powered off
//! (timed to the process's end), and traced. One more, with a probe, is for memory.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::boot::{Boot, BootError, now};
use crate::memory::{self, MemoryError};
use crate::report::{self, Figure, Lab, Memory, Row, Stages};
use crate::rows::{self, GUEST_MEMORY_MIB, Guest, Places, RowSpec};
use crate::trace::{Counts, Trace, TraceError, parse_memory_slots};

/// What init says.
const INIT_LINE: &str = "init\r\n";
/// How the kernel's first line begins, whatever stands before it.
const FIRST_LINE: &str = "Linux version";
/// How long the guest idles before its memory is looked at.
const IDLE: Duration = Duration::from_millis(500);
/// Bytes of each image of the rows that have some.
const DISK_SIZE: u64 = 16 << 20;
/// KVM's counters of all VMs, of which there is one.
const KVM_COUNTERS: &str = "/sys/kernel/debug/kvm";

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A file that is needed.
    #[error("{0}")]
    File(String, #[source] io::Error),
    /// A boot failed.
    #[error("{row}")]
    Boot {
        /// Which monitor's.
        row: &'static str,
        /// Why.
        #[source]
        source: BootError,
    },
    /// Tracing failed.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The memory is not known.
    #[error("{row}")]
    Memory {
        /// Which monitor's.
        row: &'static str,
        /// Why.
        #[source]
        source: MemoryError,
    },
    /// Nothing entered a guest.
    #[error("{0}: KVM's tracepoints saw no entry into the guest")]
    NoEntry(&'static str),
    /// What guests are to talk to is not there.
    #[error("cannot serve the guests")]
    Server(#[source] io::Error),
    /// The guest's marks are not in the trace.
    #[error("{0}: KVM's tracepoints did not see each job begin and end")]
    NoMarks(&'static str),
    /// The guest did not say what it was to say.
    #[error("{0}: the guest says nothing of {1}")]
    NoLine(&'static str, String),
}

/// Boots every row. Raw traces go to `traces` if it is given.
pub fn measure(places: &Places, runs: u32, traces: Option<&Path>) -> Result<Lab, MeasureError> {
    run_at_once();
    for path in [&places.disk, &places.pmem] {
        File::create(path)
            .and_then(|file| file.set_len(DISK_SIZE))
            .map_err(|error| MeasureError::File(path.display().to_string(), error))?;
    }
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let rows = rows::all(places)
        .iter()
        .map(|spec| RowRuns { spec, runs, traces }.measure())
        .collect::<Result<_, _>>()?;
    Ok(Lab {
        kernel,
        peer: version(&places.qemu)?,
        runs,
        guest_memory_mib: GUEST_MEMORY_MIB,
        rows,
    })
}

/// The first line of a program's `--version`.
pub fn version(program: &Path) -> Result<String, MeasureError> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .map_err(|error| MeasureError::File(program.display().to_string(), error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Makes this process run as soon as it can, so that a byte's time is that of its coming and not
/// of the scheduler's next choice: there is one CPU, and the guest has it. Monitors inherit none
/// of it.
pub fn run_at_once() {
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure is alive for the call, which only reads it.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } != 0 {
        eprintln!("bench: no real-time priority: times hold the scheduler's delays");
    }
}

/// A file of the kernel's, without the end of its line.
pub fn read(path: &str) -> Result<String, MeasureError> {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| MeasureError::File(path.to_owned(), error))
}

fn counter(name: &str) -> Result<u64, MeasureError> {
    let path = format!("{KVM_COUNTERS}/{name}");
    let text = read(&path)?;
    text.parse()
        .map_err(|_| MeasureError::File(path, io::ErrorKind::InvalidData.into()))
}

/// The runs of one row.
struct RowRuns<'a> {
    spec: &'a RowSpec,
    runs: u32,
    traces: Option<&'a Path>,
}

impl RowRuns<'_> {
    fn measure(&self) -> Result<Row, MeasureError> {
        // The first one finds cold caches; it counts for nothing.
        let mut quiet = self.quiet()?;
        let init_ms = self.repeat(|| {
            quiet = self.quiet()?;
            Ok(quiet.init)
        })?;
        let first_line_ms =
            self.repeat(|| self.wait(&mut self.start(Guest::Chatty)?, FIRST_LINE))?;
        let exit_ms = match self.spec.powers_off {
            true => Some(self.repeat(|| self.end(self.start(Guest::PowerOff)?))?),
            false => None,
        };
        let mut counts = Counts::default();
        let first_entry_ms = self.repeat(|| {
            let entry;
            (entry, counts) = self.traced()?;
            Ok(entry)
        })?;
        Ok(Row {
            id: self.spec.id.into(),
            label: self.spec.label.into(),
            command: self.spec.shown(),
            stages: Stages {
                first_entry_ms,
                first_line_ms,
                init_ms,
                exit_ms,
            },
            exits: quiet.exits,
            nested_page_faults: quiet.faults,
            trace: report::Trace {
                exits: counts.exits,
                user_exits: counts.user_exits,
                user_exits_at: counts.places,
                nested_page_faults_at: counts.faults,
            },
            memory: self.memory()?,
        })
    }

    /// A figure over as many runs as were asked for.
    fn repeat(
        &self,
        mut run: impl FnMut() -> Result<u64, MeasureError>,
    ) -> Result<Figure, MeasureError> {
        let nanos = (0..self.runs)
            .map(|_| run())
            .collect::<Result<Vec<_>, _>>()?;
        Figure::from_nanos(&nanos).ok_or(MeasureError::NoEntry(self.spec.id))
    }

    fn start(&self, guest: Guest) -> Result<Boot, MeasureError> {
        Boot::start(&mut self.spec.command(guest)).map_err(|source| self.failed(source))
    }

    fn wait(&self, boot: &mut Boot, text: &str) -> Result<u64, MeasureError> {
        boot.wait_for(text).map_err(|source| self.failed(source))
    }

    fn end(&self, boot: Boot) -> Result<u64, MeasureError> {
        boot.wait_for_end().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: BootError) -> MeasureError {
        MeasureError::Boot {
            row: self.spec.id,
            source,
        }
    }

    /// Boots to init. Once its line is here the guest does not run: there is one CPU, and it is
    /// ours. So the counters are the boot's alone.
    fn quiet(&self) -> Result<Quiet, MeasureError> {
        let mut boot = self.start(Guest::Quiet)?;
        let init = self.wait(&mut boot, INIT_LINE)?;
        Ok(Quiet {
            init,
            exits: counter("exits")?,
            faults: counter("pf_taken")?,
        })
    }

    /// Boots to init, traced. Returns the time from start to first entry, before which no
    /// tracepoint that is on is met, so that it is not prolonged.
    fn traced(&self) -> Result<(u64, Counts), MeasureError> {
        let trace = Trace::counts()?;
        let mut boot = self.start(Guest::Quiet)?;
        self.wait(&mut boot, INIT_LINE)?;
        let (started, end) = (boot.started(), now());
        drop(boot);
        let text = trace.stop()?;
        if let Some(directory) = self.traces {
            let path = directory.join(format!("{}.trace", self.spec.id));
            fs::write(&path, &text)
                .map_err(|error| MeasureError::File(path.display().to_string(), error))?;
        }
        let counts = Counts::parse(&text, end);
        let entry = counts
            .first_entry
            .ok_or(MeasureError::NoEntry(self.spec.id))?;
        Ok((entry.saturating_sub(started), counts))
    }

    /// Boots to init, lets the guest idle and looks at the monitor.
    fn memory(&self) -> Result<Memory, MeasureError> {
        let trace = Trace::memory_slots()?;
        let mut boot = self.start(Guest::Quiet)?;
        self.wait(&mut boot, INIT_LINE)?;
        let slots = parse_memory_slots(&trace.stop()?);
        thread::sleep(IDLE);
        memory::examine(boot.pid(), &slots).map_err(|source| MeasureError::Memory {
            row: self.spec.id,
            source,
        })
    }
}

/// What a quiet run gives.
struct Quiet {
    /// ns from the start to init's first output.
    init: u64,
    /// Exits from the guest so far.
    exits: u64,
    /// Nested page faults so far.
    faults: u64,
}
