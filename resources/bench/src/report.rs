//! What the benchmark found: the JSON that it writes. The schema is told in `docs/bench.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the schema: a change that breaks readers raises it.
pub const SCHEMA: u32 = 1;

/// All of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The boots that were measured in the lab; none if only other things were asked for.
    pub lab: Option<Lab>,
    /// Containers, if they were asked for.
    #[serde(default)]
    pub containers: Option<Containers>,
    /// Input and output, a device each; those that were asked for.
    #[serde(default)]
    pub io: Vec<IoSet>,
    /// What was measured on the host's own `/dev/kvm`.
    pub host: Option<Host>,
    /// The budgets, held or not.
    pub budgets: Vec<Budget>,
}

/// One lab start, and all that was booted in it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Lab {
    /// Version of the lab's kernel.
    pub kernel: String,
    /// Version of the peer.
    pub peer: String,
    /// Timed runs of each kind, after one that does not count.
    pub runs: u32,
    /// MiB of memory that each guest has; each has one vCPU.
    pub guest_memory_mib: u32,
    /// The monitors.
    pub rows: Vec<Row>,
}

impl Lab {
    /// The row with this id.
    pub fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }
}

/// A monitor in one configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// Stable name.
    pub id: String,
    /// What people call it.
    pub label: String,
    /// Its command line in the quiet run.
    pub command: String,
    /// When what happened, from the process's start.
    pub stages: Stages,
    /// Exits from the guest until init's first line is out, by KVM's own counter.
    pub exits: u64,
    /// Nested page faults until then, by KVM's own counter (`pf_taken`).
    pub nested_page_faults: u64,
    /// What a traced run said of them.
    pub trace: Trace,
    /// Memory and threads while the guest idles.
    pub memory: Memory,
}

/// Virtual milliseconds from the process's start.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Stages {
    /// To the first `KVM_RUN` that enters the guest.
    pub first_entry_ms: Figure,
    /// To the kernel's first byte on an early console.
    pub first_line_ms: Figure,
    /// To init's first output on a quiet console.
    pub init_ms: Figure,
    /// To the process's end, if init powers off at once; none where the machine cannot.
    pub exit_ms: Option<Figure>,
}

/// Counts of one traced run until init's first line is out.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Trace {
    /// Exits from the guest by SVM's reason.
    pub exits: BTreeMap<String, u64>,
    /// Exits to user space by KVM's reason.
    pub user_exits: BTreeMap<String, u64>,
    /// The same by port and direction, or page of the address.
    pub user_exits_at: BTreeMap<String, u64>,
    /// Nested page faults by the 2 MiB of guest memory that they were in.
    pub nested_page_faults_at: BTreeMap<String, u64>,
}

impl Trace {
    /// All exits to user space.
    pub fn user_exits_total(&self) -> u64 {
        self.user_exits.values().sum()
    }
}

/// Memory and threads of a monitor.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// KiB resident in all mappings but those that KVM was given as guest memory.
    pub monitor_rss_kib: u64,
    /// KiB of those that no other process maps.
    pub monitor_private_kib: u64,
    /// KiB resident in the guest's.
    pub guest_rss_kib: u64,
    /// KiB of those that are not pages of a file, so that no other VM could share them.
    pub guest_anonymous_kib: u64,
    /// Threads of the process.
    pub threads: u64,
}

/// One lab start, and the containers that were run in it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Containers {
    /// Version of the lab's kernel.
    pub kernel: String,
    /// Versions of the runtimes.
    pub runtimes: Vec<String>,
    /// Timed runs of each kind, after one that does not count.
    pub runs: u32,
    /// The ways to run something.
    pub rows: Vec<ContainerRow>,
    /// The image on the disk.
    pub image: ImageSize,
    /// Containers of the image that idle.
    pub idle: Idle,
}

/// A way to run something, in virtual milliseconds from the process's start.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ContainerRow {
    /// Stable name.
    pub id: String,
    /// What people call it.
    pub label: String,
    /// Its command line.
    pub command: String,
    /// To the first output.
    pub first_output_ms: Figure,
    /// To the process's end, of a command that does nothing; none of a bare boot, which has no end.
    pub whole_ms: Option<Figure>,
}

/// KiB that an image takes on the disk.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct ImageSize {
    /// Of its layers' tars.
    pub files_kib: u64,
    /// Of the EROFS images made of them.
    pub erofs_kib: u64,
    /// Of what is kept beside those.
    pub beside_kib: u64,
    /// Of the layers as they came and the documents, which a push gives again.
    pub blobs_kib: u64,
}

/// What is seen of containers that idle. Memory is of each, where nothing else is said.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Idle {
    /// How many there are.
    pub containers: u32,
    /// What the host has less available.
    pub host_kib: u64,
    /// Proportional set size of guest memory.
    pub guest_kib: u64,
    /// Of the monitor otherwise, but for the image.
    pub monitor_kib: u64,
    /// Of the shim.
    pub shim_kib: u64,
    /// Of the image's pages, of all containers together.
    pub image_pss_kib: u64,
    /// The same, each page counted for each that maps it.
    pub image_rss_kib: u64,
    /// Of the image as it is mapped.
    pub image_kib: u64,
    /// Milliseconds from the start of the agent by the guest's kernel until it takes calls, by the
    /// guest's clock: the longest of all.
    #[serde(default)]
    pub agent_ready_ms: f64,
}

/// One lab start, and what guests did on one kind of device in it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct IoSet {
    /// Stable name.
    pub id: String,
    /// What people call it.
    pub title: String,
    /// Version of the lab's kernel.
    pub kernel: String,
    /// Version of the peer.
    pub peer: String,
    /// Timed runs, after one that was traced.
    pub runs: u32,
    /// The monitors, all with the same jobs.
    pub rows: Vec<IoRow>,
}

impl IoSet {
    /// The peer as it comes, which ratios refer to: the first row that is not ours.
    pub fn peer_row(&self) -> Option<&IoRow> {
        self.rows.iter().find(|row| !row.is_ours())
    }

    /// How many times as fast as the peer as it comes a monitor is at a job.
    pub fn speed(&self, row: &str, job: &str) -> Option<f64> {
        let peer = self.job(&self.peer_row()?.id, job)?;
        Some(self.job(row, job)?.operations_per_ms() / peer.operations_per_ms())
    }

    /// What the monitor with this id made of a job.
    pub fn job(&self, row: &str, job: &str) -> Option<&IoJob> {
        let row = self.rows.iter().find(|other| other.id == row)?;
        row.jobs.iter().find(|other| other.id == job)
    }
}

/// A monitor in one configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct IoRow {
    /// Stable name; ours begin with `cofferdam`.
    pub id: String,
    /// What people call it.
    pub label: String,
    /// Its command line.
    pub command: String,
    /// What its guest did.
    pub jobs: Vec<IoJob>,
}

impl IoRow {
    /// Whether this is one of ours.
    pub fn is_ours(&self) -> bool {
        self.id.starts_with("cofferdam")
    }
}

/// One job.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct IoJob {
    /// Stable name.
    pub id: String,
    /// What people call it.
    pub label: String,
    /// What the value is in.
    pub unit: String,
    /// How fast it was, by the median time.
    pub value: f64,
    /// Operations of a timed run.
    pub operations: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Virtual milliseconds that they took, by the guest's clock.
    pub time_ms: Figure,
    /// Exits from the guest for each operation of a traced run.
    pub exits_per_operation: f64,
    /// Exits to user space for each.
    pub user_exits_per_operation: f64,
    /// Exits to user space by port and direction, page of the address, or reason.
    pub user_exits_at: BTreeMap<String, u64>,
}

impl IoJob {
    fn operations_per_ms(&self) -> f64 {
        crate::io::jobs::float(self.operations) / self.time_ms.median
    }
}

/// Process start to the first `KVM_RUN` on the host's own `/dev/kvm`, in wall time.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Host {
    /// How often.
    pub runs: u32,
    /// Milliseconds.
    pub first_entry_ms: Figure,
}

/// A figure over several runs.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figure {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Figure {
    /// From nanoseconds to milliseconds; none if there are no runs.
    pub fn from_nanos(nanos: &[u64]) -> Option<Self> {
        let mut runs = nanos.to_vec();
        runs.sort_unstable();
        let (first, last) = (*runs.first()?, *runs.last()?);
        let (low, high) = (runs.get((runs.len() - 1) / 2)?, runs.get(runs.len() / 2)?);
        Some(Self {
            median: f64::midpoint(ms(*low), ms(*high)),
            min: ms(first),
            max: ms(last),
        })
    }
}

/// Milliseconds to the microsecond, which is all that the clock is good for.
fn ms(nanos: u64) -> f64 {
    let micros = u32::try_from(nanos / 1000).unwrap_or(u32::MAX);
    f64::from(micros) / 1000.0
}

/// A promise, and whether it was kept.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Budget {
    /// What is promised.
    pub name: String,
    /// Of what.
    pub unit: String,
    /// Whether the value must not be above the limit, or not below it.
    pub bound: Bound,
    /// What is promised at least.
    pub limit: f64,
    /// What it should be.
    pub goal: Option<f64>,
    /// What it is; none if it could not be measured.
    pub value: Option<f64>,
    /// Whether the promise was kept.
    pub held: bool,
}

/// Which way a limit limits.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// The value must not be greater.
    AtMost,
    /// The value must not be less.
    AtLeast,
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn figure(ms: f64) -> Figure {
        Figure {
            median: ms,
            min: ms,
            max: ms,
        }
    }

    /// A row with round figures.
    pub fn row(id: &str, init: f64) -> Row {
        Row {
            id: id.into(),
            label: format!("<{id}>"),
            command: id.into(),
            stages: Stages {
                first_entry_ms: figure(init / 4.0),
                first_line_ms: figure(init / 2.0),
                init_ms: figure(init),
                exit_ms: None,
            },
            exits: 1000,
            nested_page_faults: 60,
            trace: Trace {
                user_exits: [("io".into(), 80), ("mmio".into(), 10)].into(),
                ..Trace::default()
            },
            memory: Memory {
                monitor_rss_kib: 2560,
                threads: 2,
                ..Memory::default()
            },
        }
    }

    /// One start of the lab.
    pub fn lab(rows: Vec<Row>) -> Lab {
        Lab {
            kernel: "6.12".into(),
            peer: "QEMU".into(),
            runs: 3,
            guest_memory_mib: 128,
            rows,
        }
    }

    /// Ours and the peer, which do each kind of block job at these speeds, MiB/s.
    pub fn io_set(ours: f64, peer: f64) -> IoSet {
        let row = |id: &str, speed: f64| IoRow {
            id: id.into(),
            label: format!("<{id}>"),
            command: id.into(),
            jobs: crate::io::jobs::jobs(crate::io::Set::Block)
                .iter()
                .map(|job| IoJob {
                    id: job.id.clone(),
                    label: job.label.clone(),
                    unit: job.unit.name().into(),
                    value: speed,
                    operations: 256,
                    bytes: 1 << 20,
                    time_ms: figure(1000.0 / speed),
                    exits_per_operation: 3.0,
                    user_exits_per_operation: 0.0,
                    user_exits_at: BTreeMap::new(),
                })
                .collect(),
        };
        IoSet {
            id: "block".into(),
            title: "virtio-blk".into(),
            kernel: "6.12".into(),
            peer: "QEMU".into(),
            runs: 1,
            rows: vec![row("cofferdam", ours), row("qemu-microvm", peer)],
        }
    }

    /// A report of these rows.
    pub fn report(rows: Vec<Row>) -> Report {
        let host = Some(Host {
            runs: 21,
            first_entry_ms: figure(8.0),
        });
        Report {
            schema: SCHEMA,
            lab: Some(lab(rows)),
            containers: None,
            io: Vec::new(),
            host,
            budgets: Vec::new(),
        }
    }

    /// If it fails, one odd run moves the result.
    #[test]
    fn the_median_is_in_the_middle() {
        let figure = Figure::from_nanos(&[9_000_000, 1_000_000, 2_000_500]).unwrap();
        assert_eq!(
            figure,
            Figure {
                median: 2.0,
                min: 1.0,
                max: 9.0
            }
        );
        assert_eq!(
            Figure::from_nanos(&[1_000_000, 2_000_000]).unwrap().median,
            1.5
        );
        assert_eq!(Figure::from_nanos(&[]), None);
    }

    /// If it fails, what reads an older JSON file no longer can.
    #[test]
    fn json_goes_round() {
        let text = serde_json::to_string(&report(vec![row("a", 1.0)])).unwrap();
        let back: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }
}
