//! One image in every way that it can be run, side by side: measured, not asserted.

mod chart;
mod harm;
mod html;
mod reach;
pub mod report;
mod rows;
mod side;
mod size;
mod stack;
mod text;
mod verdict;
mod work;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use cofferdam::companion::{self, CompanionError};

pub use html::render as html;
pub use text::render as text;

use crate::image::store::Error as ImageError;
use crate::image::{Store, registry};
use crate::networks::NetworksError;
use crate::state::{Now, StateError};
use crate::usage;
use report::{Cell, Column, Host, ImageSize, Report, Row, SCHEMA};
use rows::ROWS;
use side::{Program, Side, Subject};

/// Our probe, beside our program.
const PROBE: &str = "cofferdam-probe";

/// Why something is not measured.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image, from its registry.
    #[error(transparent)]
    Pull(#[from] registry::Error),
    /// Our probe.
    #[error(transparent)]
    Probe(#[from] CompanionError),
    /// The network.
    #[error(transparent)]
    Networks(#[from] NetworksError),
    /// A container's files.
    #[error(transparent)]
    State(#[from] StateError),
    /// A step of our own.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A container does not do what it should.
    #[error("{0}")]
    Container(String),
}

/// What is measured of an image.
#[derive(Debug)]
struct Measure<'a> {
    subject: Subject<'a>,
    /// Times that everything timed is done.
    runs: u32,
    /// What tells the host's kernel from others.
    boot: &'a str,
}

/// What a section gives: the cells of its rows, by their ids.
type Cells = Vec<(&'static str, Cell)>;
type Section = fn(&Measure<'_>) -> Result<Cells, CompareError>;

/// What is measured together, and what it is called meanwhile.
const SECTIONS: &[(&str, Section, &[&str])] = &[
    ("times", size::times, &["first_output", "whole"]),
    ("memory and disk", size::sizes, size::ROWS),
    ("work", work::work, work::ROWS),
    ("the network", work::bridge, &["bridge"]),
    ("the network without root", work::passt, &["passt"]),
    ("what it sees", reach::look, reach::ROWS),
    ("system calls", reach::calls, &["host_calls"]),
    ("harm", harm::harm, harm::ROWS),
];

/// Compares. `progress` hears what is being done.
pub fn compare(
    name: &str,
    runs: u32,
    progress: &mut dyn FnMut(&str),
) -> Result<Report, CompareError> {
    let probe = companion::find(PROBE)?;
    progress("the image");
    let image = image(name)?;
    let host = host(&probe)?;
    let boot = host.sees.get("boot").cloned().unwrap_or_default();
    let mut cells: BTreeMap<(&str, &str), Cell> = BTreeMap::new();
    let mut able = Vec::new();
    for side in Side::ALL {
        progress(&format!("{}: whether it runs", side.label()));
        let subject = Subject {
            image: name,
            probe: &probe,
            side,
        };
        match try_out(subject, runs, &boot) {
            Ok(measure) => able.push(measure),
            Err(error) => {
                let why = crate::describe(&error);
                let ids = ROWS.iter().map(|row| row.id);
                cells.extend(ids.map(|id| ((id, side.id()), Cell::missing(why.clone()))));
            }
        }
    }
    for (title, section, ids) in SECTIONS {
        for measure in &able {
            let side = measure.subject.side;
            progress(&format!("{}: {title}", side.label()));
            match section(measure) {
                Ok(measured) => {
                    cells.extend(
                        measured
                            .into_iter()
                            .map(|(id, cell)| ((id, side.id()), cell)),
                    );
                }
                Err(error) => {
                    let why = crate::describe(&error);
                    cells.extend(
                        ids.iter()
                            .map(|id| ((*id, side.id()), Cell::missing(why.clone()))),
                    );
                }
            }
        }
    }
    Ok(Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        time: Now::text(),
        image,
        host,
        runs,
        columns: Side::ALL.iter().map(|side| column(*side)).collect(),
        rows: ROWS.iter().map(|row| finish(row, &mut cells)).collect(),
    })
}

fn column(side: Side) -> Column {
    Column {
        id: side.id().into(),
        label: side.label().into(),
        options: side.options().join(" "),
    }
}

/// A row with its cells; what no section spoke of was not measured.
fn finish(row: &rows::Definition, cells: &mut BTreeMap<(&str, &str), Cell>) -> Row {
    let of = |side: &Side| {
        let cell = cells.remove(&(row.id, side.id()));
        let cell = cell.unwrap_or_else(|| Cell::missing("there is no such thing here"));
        (side.id().to_owned(), cell)
    };
    Row {
        id: row.id.into(),
        group: row.group,
        title: row.title.into(),
        unit: row.unit.into(),
        better: row.better,
        note: row.note.into(),
        cells: Side::ALL.iter().map(of).collect(),
    }
}

/// Runs the probe for the first time: what is not able to is not measured.
fn try_out<'a>(
    subject: Subject<'a>,
    runs: u32,
    boot: &'a str,
) -> Result<Measure<'a>, CompareError> {
    if subject.side == Side::Vm {
        let kvm = cofferdam::doctor::examine("/dev/kvm".as_ref());
        if !kvm.can_run_linux {
            let mut why = Vec::new();
            let _ = kvm.write_obstacle(&mut why);
            let why = String::from_utf8_lossy(&why);
            return Err(CompareError::Container(why.trim().to_owned()));
        }
    }
    let run = subject.run(&[], Program::Probe(&["hello"]))?;
    if run.code != Some(0) || run.number("hello") != Some(1.0) {
        return Err(CompareError::Container(run.excuse()));
    }
    Ok(Measure {
        subject,
        runs,
        boot,
    })
}

/// The image, pulled if need be, and how large it is.
fn image(name: &str) -> Result<ImageSize, CompareError> {
    let store = Store::open_default()?;
    let options = registry::Options::default();
    let image = registry::get(&store, name, &options, |name| {
        eprintln!("Unable to find image '{name}' locally");
    })?;
    let record = store.find(name)?;
    let of_file = |path: &PathBuf| fs::metadata(path).map_or(0, |data| usage::of_file(&data));
    Ok(ImageSize {
        name: name.into(),
        layers: image.layers.len(),
        blobs_bytes: record.manifest.layers.iter().map(|layer| layer.size).sum(),
        erofs_bytes: image.layers.iter().map(of_file).sum(),
    })
}

/// The machine, as our probe sees it from outside of any container.
fn host(probe: &PathBuf) -> Result<Host, CompareError> {
    let mut look = std::process::Command::new(probe);
    let said = look
        .arg("look")
        .output()
        .map_err(|source| CompareError::Io {
            action: "run the probe on the host",
            source,
        })?;
    let sees = side::parse(&String::from_utf8_lossy(&said.stdout));
    let number = |name: &str| {
        sees.get(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    Ok(Host {
        kernel: sees.get("kernel").cloned().unwrap_or_default(),
        cpu: cpu
            .map_or("", |name| name.trim_start_matches(['\t', ' ', ':']))
            .into(),
        cpus: usize::try_from(number("cpus")).unwrap_or(0),
        memory_kib: number("memory_kib"),
        lab: std::env::var_os("COFFERDAM_LAB").is_some(),
        sees,
    })
}
