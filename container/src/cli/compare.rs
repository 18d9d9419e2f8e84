//! `cofferdam compare`.

use std::env;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::fail;
use crate::compare::report::{Report, SCHEMA};
use crate::compare::{self, CompareError};
use crate::hostpath::{HostPath, HostPathError};

const EXAMPLES: &str = "\
Examples:
  cofferdam compare busybox
  cofferdam compare --runs 3 --html report.html alpine
  cofferdam compare --json busybox | jq '.rows[] | select(.id == \"first_output\").cells'
  cofferdam compare --from report.json --html report.html

It runs the image some fifty times, takes a few minutes, and as root also runs it as a process on this
machine's kernel, by runc and crun. It does harm in containers, within limits; none to the host.";

/// Measure an image as a process and in a VM, side by side
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Times that everything timed is done, after one that does not count
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Write a report with charts, too: one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure nothing: show what --json printed earlier
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "image"])]
    from: Option<PathBuf>,
    /// Image; it is pulled if it is not there
    #[arg(
        value_name = "IMAGE",
        required_unless_present = "from",
        default_value = ""
    )]
    image: String,
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Path(#[from] HostPathError),
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} is no report of cofferdam compare --json")]
    Report(PathBuf, #[source] serde_json::Error),
    #[error("{0} has schema {1}; this version reads {SCHEMA}")]
    Schema(PathBuf, u32),
    #[error("cannot print")]
    Print(#[source] io::Error),
}

pub(super) fn run(args: &Args) -> ExitCode {
    match show(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, super::EXIT_FAILED),
    }
}

fn show(args: &Args) -> Result<(), Error> {
    let report = match &args.from {
        Some(path) => read(path)?,
        None => measure(args)?,
    };
    if let Some(path) = &args.html {
        HostPath::find(path)?.write(|file| {
            let written = file.write_all(compare::html(&report).as_bytes());
            written.map_err(|source| Error::File {
                action: "write",
                path: path.clone(),
                source,
            })
        })?;
    }
    let mut out = io::stdout();
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)
            .map(|text| text + "\n")
            .map_err(|error| Error::Print(error.into()))?,
        false => {
            let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            compare::text(&report, out.is_terminal() && !plain)
        }
    };
    match out.write_all(text.as_bytes()) {
        // A reader that closed the pipe has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Print(error)),
        _ => Ok(()),
    }
}

fn read(path: &PathBuf) -> Result<Report, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::File {
        action: "read",
        path: path.clone(),
        source,
    })?;
    let report: Report = crate::json::from_slice(text.as_bytes())
        .map_err(|source| Error::Report(path.clone(), source))?;
    match report.schema {
        SCHEMA => Ok(report),
        other => Err(Error::Schema(path.clone(), other)),
    }
}

fn measure(args: &Args) -> Result<Report, Error> {
    // Nothing on what is no terminal.
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    let mut progress = |doing: &str| spinner.set_message(doing.to_owned());
    let report = compare::compare(&args.image, args.runs, &mut progress);
    spinner.finish_and_clear();
    Ok(report?)
}
