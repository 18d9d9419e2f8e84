//! `cofferdam doctor`.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::doctor::{self, Report};
use crate::vm::EXIT_HOST;

/// Say whether this host can run VMs
///
/// Tries what a VM needs: opens KVM and runs a tiny guest of its own. Also looks at what makes VMs
/// faster or safer. Changes nothing. Exits with 0 where Linux guests can run, else with 3.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cofferdam doctor\n  cofferdam doctor --json | jq .can_run_linux\n  \
                  cofferdam doctor --quiet && cofferdam boot"
)]
pub struct Args {
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Print nothing where Linux guests can run, else one line that says why not
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
    /// The KVM device to try
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm")]
    kvm: PathBuf,
}

/// Examines the host and prints what it found to standard output: the exit code is 0 where Linux
/// guests can run, else 3.
pub fn run(args: &Args) -> ExitCode {
    let report = doctor::examine(&args.kvm);
    // A reader that closed the pipe has seen enough; the exit code says the rest.
    let _ = print(&report, args);
    if report.can_run_linux {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_HOST)
    }
}

fn print(report: &Report, args: &Args) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if args.quiet {
        report.write_obstacle(&mut out)
    } else if args.json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)
    } else {
        let colour = out.is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        report.write_text(&mut out, colour)
    }
}
