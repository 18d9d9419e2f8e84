//! A terminal of a test's own, with a monitor as the job that it belongs to.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::harness::{Vm, program};

/// The end of a pseudo-terminal at which the user sits.
pub struct Terminal(OwnedFd);

impl Terminal {
    pub fn new() -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let terminal = terminal.unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        Self(terminal)
    }

    /// Whether what is typed goes to the program key by key, without echo and signals.
    pub fn is_raw(&self) -> bool {
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        !tcgetattr(&self.0).unwrap().local_modes.intersects(cooked)
    }

    /// Whether it is as a shell leaves it to a program.
    pub fn is_cooked(&self) -> bool {
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        tcgetattr(&self.0).unwrap().local_modes.contains(cooked)
    }

    /// Sets rows and columns.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.0, size).unwrap();
    }

    /// Starts `cofferdam boot` as the job in the terminal's foreground.
    pub fn start(&self, args: &[&str]) -> Vm {
        let mut command = Command::new(program());
        command.arg("boot").args(args);
        self.run(command)
    }

    /// Starts a command as that job.
    pub fn run(&self, mut command: Command) -> Vm {
        let name = ptsname(&self.0, Vec::new()).unwrap();
        let theirs = open_terminal(Path::new(name.to_str().unwrap()));
        command
            .stdin(theirs.try_clone().unwrap())
            .stdout(theirs.try_clone().unwrap());
        // SAFETY: between fork and exec only system calls are made, on no state but the descriptor.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(&theirs)?;
                Ok(())
            });
        }
        let ours = || -> io::Result<File> { Ok(self.0.as_fd().try_clone_to_owned()?.into()) };
        Vm::spawn_between(command, ours().unwrap(), ours().unwrap())
    }
}

/// Opens a terminal by its path, without making it the test's own.
pub fn open_terminal(path: &Path) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .unwrap()
}
