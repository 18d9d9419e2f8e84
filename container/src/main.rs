//! Container mode. `cofferdam` becomes this program for everything that is about containers and
//! their images, so that the monitor of a VM carries none of it.

fn main() -> std::process::ExitCode {
    if cofferdam_container::runc::stand_in::is_one() {
        return cofferdam_container::runc::stand_in::main();
    }
    cofferdam_container::cli::main()
}
