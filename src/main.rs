//! Parses the command line and dispatches, nothing else.

fn main() -> std::process::ExitCode {
    cofferdam::telemetry::mark_start();
    cofferdam::cli::main()
}
