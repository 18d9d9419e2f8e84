//! The end of the guest.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};

use crate::containers::Containers;

/// How long what was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends all processes, with a chance to end by themselves within `grace`, and the machine.
pub fn off(containers: &Containers, grace: Duration) -> ! {
    let everybody = Pid::from_raw(-1);
    containers.thaw_all();
    if !grace.is_zero() {
        // If there is nobody, that is as good.
        let _ = kill(everybody, Signal::SIGTERM);
        wait(containers, grace);
    }
    let _ = kill(everybody, Signal::SIGKILL);
    wait(containers, PATIENCE);
    containers.forget_all();
    sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("cofferdam-agent: cannot power off: {error}");
    loop {
        thread::park();
    }
}

fn wait(containers: &Containers, patience: Duration) {
    let until = Instant::now() + patience;
    while containers.any_alive() && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
    }
}
