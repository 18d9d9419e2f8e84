//! Where a serial console leads on the host: standard streams, a file, a socket, a pty.

mod output;

pub use output::ConsoleOutput;
