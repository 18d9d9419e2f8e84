//! Container mode. `cofferdam` becomes this program for everything that is about containers and
//! their images, so that the monitor of a VM carries none of it.

fn main() -> std::process::ExitCode {
    cofferdam_container::cli::main()
}
