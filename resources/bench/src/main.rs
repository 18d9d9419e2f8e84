//! `cofferdam-bench`: runs the same guest under Cofferdam and under QEMU's `microvm` machine in
//! one start of the lab, in deterministic mode, and says how they compare. See `docs/bench.md`.

mod boot;
mod budget;
mod containers;
mod host;
mod io;
mod lab;
mod measure;
mod memory;
mod report;
mod rows;
mod svg;
mod table;
mod trace;
mod what;

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use report::{Report, SCHEMA};
use what::What;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Measures boots, input and output beside QEMU microvm, checks the budgets and draws the chart.
///
/// Exits with 0 if all budgets are kept, 1 if one is broken (all figures are printed in any case),
/// and 2 if there are no figures.
#[derive(Debug, Parser)]
#[command(
    name = "cofferdam-bench",
    version,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The part that runs in the lab.
    #[command(hide = true)]
    Measure {
        what: What,
        #[arg(long)]
        runs: u32,
        #[arg(long)]
        output: PathBuf,
        #[arg(long)]
        traces: Option<PathBuf>,
        /// Microseconds to wait at first.
        #[arg(long)]
        delay: u64,
    },
}

#[derive(Args, Debug)]
struct Options {
    /// What is measured, comma-separated [default: everything].
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    only: Vec<What>,
    /// Runs of each kind, after one that does not count.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Where the figures go as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench/bench.json")]
    json: PathBuf,
    /// Where the chart goes.
    #[arg(long, value_name = "FILE", default_value = "target/bench/bench.svg")]
    svg: PathBuf,
    /// Keep KVM's raw traces beside the JSON.
    #[arg(long)]
    traces: bool,
    /// Measure nothing: print, draw and check the figures of an earlier JSON file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "runs", "traces"])]
    from: Option<PathBuf>,
    /// The monitor.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/x86_64-unknown-linux-gnu/release/cofferdam"
    )]
    monitor: PathBuf,
    /// The guests' kernel, an ELF vmlinux [resources/bench/run: the default guest's].
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    kernel: Option<PathBuf>,
    /// The guests' initramfs, whose init says "init" and idles, or powers off if told so
    /// [resources/bench/run: resources/rootfs's].
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    initrd: Option<PathBuf>,
    /// An EROFS image with the same as `/sbin/init` [resources/bench/run: resources/rootfs's].
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    root: Option<PathBuf>,
    /// The initramfs for input and output, whose init does the jobs that it is told
    /// [resources/bench/run: resources/rootfs's].
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    io_initrd: Option<PathBuf>,
    /// The initramfs of containers' VMs [resources/bench/run: resources/rootfs's].
    #[arg(long, value_name = "FILE", required_unless_present = "from")]
    agent: Option<PathBuf>,
    /// What starts the lab.
    #[arg(long, value_name = "FILE", default_value = "tests/lab/run")]
    lab: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Command::Measure {
            what,
            runs,
            output,
            traces,
            delay,
        }) => {
            thread::sleep(Duration::from_micros(delay));
            measure_inside(what, runs, &output, traces.as_deref()).map(|()| true)
        }
        None => bench(&cli.options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            complain(&*error);
            ExitCode::from(2)
        }
    }
}

/// Says what went wrong and why.
fn complain(error: &dyn Error) {
    eprint!("bench: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
}

fn measure_inside(what: What, runs: u32, output: &Path, traces: Option<&Path>) -> Result<()> {
    let places = lab::places_inside();
    let figures = match what {
        What::Containers => serde_json::to_string(&containers::measure::measure(&places, runs)?)?,
        What::Boot => serde_json::to_string(&measure::measure(&places, runs, traces)?)?,
        What::Io(set) => serde_json::to_string(&io::measure::measure(set, &places, runs, traces)?)?,
    };
    Ok(fs::write(output, figures)?)
}

/// All of it; true if all budgets are kept.
fn bench(options: &Options) -> Result<bool> {
    let mut report = match &options.from {
        Some(path) => serde_json::from_str(&fs::read_to_string(path)?)?,
        None => measure(options)?,
    };
    report.budgets = budget::check(&report);
    write(
        &options.json,
        &(serde_json::to_string_pretty(&report)? + "\n"),
    )?;
    write(&options.svg, &svg::render(&report))?;
    std::io::stdout().write_all(table::render(&report).as_bytes())?;
    let broken: Vec<_> = report
        .budgets
        .iter()
        .filter(|budget| !budget.held)
        .collect();
    for budget in &broken {
        eprintln!(
            "bench: budget broken: {}: {}",
            budget.name,
            table::value(budget)
        );
    }
    Ok(broken.is_empty())
}

fn measure(options: &Options) -> Result<Report> {
    let mut report = Report {
        schema: SCHEMA,
        lab: None,
        containers: None,
        io: Vec::new(),
        host: None,
        budgets: Vec::new(),
    };
    // Where they are required is said above.
    let setup = lab::Setup {
        lab: options.lab.clone(),
        monitor: options.monitor.clone(),
        kernel: options.kernel.clone().unwrap_or_default(),
        initrd: options.initrd.clone().unwrap_or_default(),
        root: options.root.clone().unwrap_or_default(),
        io_initrd: options.io_initrd.clone().unwrap_or_default(),
        agent: options.agent.clone().unwrap_or_default(),
        output: options.json.parent().unwrap_or(Path::new(".")).join("lab"),
        runs: options.runs,
        traces: options.traces,
    };
    let wanted = |what: &What| options.only.is_empty() || options.only.contains(what);
    for what in What::ALL.into_iter().filter(wanted) {
        if what == What::Boot {
            // Before the lab, which leaves the machine warm.
            let host = host::measure(&setup.monitor, &setup.kernel, &setup.initrd);
            report.host = host.inspect_err(|error| complain(error)).ok();
        }
        eprintln!("bench: {} in the lab, on counted time", what.id());
        match what {
            What::Boot => report.lab = Some(setup.boots()?),
            What::Containers => report.containers = Some(setup.containers()?),
            What::Io(set) => report.io.push(setup.io(set)?),
        }
    }
    Ok(report)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(path, text)
        .map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}
