//! Starts the lab in deterministic mode with this program in it.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::report::Lab;
use crate::rows::Places;

/// Where the included files are in the lab.
const INSIDE: &str = "/bench";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// What `-M microvm` loads: its firmware.
const FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
/// What the program writes there.
const RESULT: &str = "lab.json";
/// Seconds of wall time for all boots: three times what they take on two busy CPUs.
const TIMEOUT: &str = "400";
/// The lab's own code for a timeout.
const TIMED_OUT: i32 = 124;
/// With counted time the emulator can stand still, seldom, when timers of the lab and of the guest
/// in it meet in a certain way. As nothing is left to chance there, it would stand still again:
/// each try begins at another time.
const TRIES: u32 = 4;
const DELAY_MICROS: u32 = 1370;

/// Why the lab gave no figures.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file that is needed is not to be had.
    #[error("{0}")]
    File(PathBuf, #[source] io::Error),
    /// The lab did not end well.
    #[error("the lab ended with {0}; what went wrong is said above")]
    Failed(std::process::ExitStatus),
    /// What it left is not ours.
    #[error("{0} is no result")]
    Result(PathBuf, #[source] serde_json::Error),
}

/// What is taken into the lab, and what for.
#[derive(Debug)]
pub struct Setup {
    /// `tests/lab/run`.
    pub lab: PathBuf,
    /// Our program.
    pub monitor: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// For the lab's results, and raw traces if asked for.
    pub output: PathBuf,
    /// Runs of each kind.
    pub runs: u32,
    /// Whether raw traces are kept.
    pub traces: bool,
}

/// Where things are when this program runs in the lab.
pub fn places_inside() -> Places {
    let inside = |name: &str| Path::new(INSIDE).join(name);
    Places {
        cofferdam: inside("cofferdam"),
        qemu: QEMU.into(),
        kernel: inside("vmlinux"),
        initrd: inside("initrd.cpio"),
        disk: "/tmp/disk.img".into(),
    }
}

/// Runs `measure` of this program in the lab.
pub fn measure(setup: &Setup) -> Result<Lab, LabError> {
    fs::create_dir_all(&setup.output)
        .map_err(|error| LabError::File(setup.output.clone(), error))?;
    let output = absolute(&setup.output)?;
    let mut status = start(setup, &output, 0)?;
    for number in 1..TRIES {
        if status.code() != Some(TIMED_OUT) {
            break;
        }
        eprintln!("bench: the lab's counted time stands still, which can happen; trying again");
        status = start(setup, &output, number)?;
    }
    if !status.success() {
        return Err(LabError::Failed(status));
    }
    let path = output.join(RESULT);
    let text = fs::read_to_string(&path).map_err(|error| LabError::File(path.clone(), error))?;
    serde_json::from_str(&text).map_err(|error| LabError::Result(path, error))
}

fn start(setup: &Setup, output: &Path, number: u32) -> Result<std::process::ExitStatus, LabError> {
    let this = env::current_exe().map_err(|error| LabError::File("this program".into(), error))?;
    let inside = places_inside();
    let program = Path::new(INSIDE).join("cofferdam-bench");
    let mut command = Command::new(&setup.lab);
    command
        .args(["--deterministic", "--timeout", TIMEOUT, "--results"])
        .arg(output);
    let mut include = |from: &Path, to: &Path| {
        command
            .arg("--include")
            .arg(format!("{}={}", from.display(), to.display()));
    };
    include(&this, &program);
    include(&absolute(&setup.monitor)?, &inside.cofferdam);
    include(&absolute(&setup.kernel)?, &inside.kernel);
    include(&absolute(&setup.initrd)?, &inside.initrd);
    include(Path::new(QEMU), &inside.qemu);
    include(Path::new(FIRMWARE), Path::new(FIRMWARE));
    // The name that other builds of QEMU give it.
    include(
        Path::new(FIRMWARE),
        &Path::new(FIRMWARE).with_file_name("bios-microvm.bin"),
    );
    command
        .arg("--")
        .arg(program)
        .args(["measure", "--runs", &setup.runs.to_string()]);
    command.arg("--output").arg(output.join(RESULT));
    command.args(["--delay", &(DELAY_MICROS * number).to_string()]);
    if setup.traces {
        command.arg("--traces").arg(output);
    }
    command
        .status()
        .map_err(|error| LabError::File(setup.lab.clone(), error))
}

fn absolute(path: &Path) -> Result<PathBuf, LabError> {
    path.canonicalize()
        .map_err(|error| LabError::File(path.to_owned(), error))
}
