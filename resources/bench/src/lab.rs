//! Starts the lab in deterministic mode with this program in it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use serde::de::DeserializeOwned;

use crate::io::Set;
use crate::report::{Containers, IoSet, Lab};
use crate::rows::Places;
use crate::what::What;

/// Where the included files are in the lab.
const INSIDE: &str = "/bench";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// What `-M microvm` loads: its firmware.
const FIRMWARE: &str = "/usr/share/qemu/qboot.rom";
/// Our file-system process, which lies beside the monitor.
const FSD: &str = "cofferdam-fsd";
/// Container mode, which lies beside the monitor.
const CONTAINER: &str = "cofferdam-container";
/// What runs containers as processes, what container mode makes disks with, and what the OCI runtime
/// looks at networks with.
const TOOLS: [&str; 5] = ["runc", "crun", "mkfs.ext4", "ip", "tc"];
/// The peer's: where QEMU's package has it, and the package of that name.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];
/// Seconds of wall time for one start: three times what it takes on two busy CPUs.
const TIMEOUT: &str = "400";
/// The lab's own code for a timeout.
const TIMED_OUT: i32 = 124;
/// With counted time an emulator that `tests/lab/build` does not know how to mend can stand still,
/// seldom. As nothing is left to chance there, it would stand still again: each try begins at another
/// time.
const TRIES: u32 = 2;
const DELAY_MICROS: u32 = 1370;

/// Why the lab gave no figures.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file that is needed is not to be had.
    #[error("{0}")]
    File(PathBuf, #[source] std::io::Error),
    /// The peer cannot share directories.
    #[error("virtiofsd is missing; `resources/setup lab` installs it")]
    NoVirtiofsd,
    /// The lab did not end well.
    #[error("the lab ended with {0}; what went wrong is said above")]
    Failed(ExitStatus),
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
    /// The initramfs of the guests that only boot.
    pub initrd: PathBuf,
    /// The same as an image, for guests that have their root on a device.
    pub root: PathBuf,
    /// The initramfs of the guests that do input and output.
    pub io_initrd: PathBuf,
    /// The root of containers' VMs, with the agent.
    pub agent: PathBuf,
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
        runtime: inside("cofferdam-runc"),
        qemu: QEMU.into(),
        kernel: inside("vmlinux"),
        initrd: inside("initrd.cpio"),
        root: inside("root.erofs"),
        guest: inside("guest"),
        virtiofsd: inside("virtiofsd"),
        disk: "/tmp/disk.img".into(),
        pmem: "/tmp/pmem.img".into(),
    }
}

impl Setup {
    /// Measures boots.
    pub fn boots(&self) -> Result<Lab, LabError> {
        self.measure(What::Boot, &self.initrd)
    }

    /// Measures containers.
    pub fn containers(&self) -> Result<Containers, LabError> {
        self.measure(What::Containers, &self.initrd)
    }

    /// Measures input and output.
    pub fn io(&self, set: Set) -> Result<IoSet, LabError> {
        self.measure(What::Io(set), &self.io_initrd)
    }

    /// Runs `measure` of this program in the lab, until it ends in time.
    fn measure<T: DeserializeOwned>(&self, what: What, initrd: &Path) -> Result<T, LabError> {
        // A directory for each, so that one's failure does not show the other's figures.
        let output = self.output.join(what.id());
        fs::create_dir_all(&output).map_err(|error| LabError::File(output.clone(), error))?;
        let path = absolute(&output)?.join("figures.json");
        let mut status = self.start(what, initrd, &path, 0)?;
        for number in 1..TRIES {
            if status.code() != Some(TIMED_OUT) {
                break;
            }
            eprintln!("bench: the lab's counted time stands still, which can happen; trying again");
            status = self.start(what, initrd, &path, number)?;
        }
        if !status.success() {
            return Err(LabError::Failed(status));
        }
        let text =
            fs::read_to_string(&path).map_err(|error| LabError::File(path.clone(), error))?;
        serde_json::from_str(&text).map_err(|error| LabError::Result(path, error))
    }

    fn start(
        &self,
        what: What,
        initrd: &Path,
        result: &Path,
        number: u32,
    ) -> Result<ExitStatus, LabError> {
        let this =
            env::current_exe().map_err(|error| LabError::File("this program".into(), error))?;
        let inside = places_inside();
        let program = Path::new(INSIDE).join("cofferdam-bench");
        let output = result.parent().unwrap_or(Path::new("/"));
        let mut command = Command::new(&self.lab);
        command
            .args(["--deterministic", "--timeout", TIMEOUT, "--results"])
            .arg(output);
        let mut include = |from: &Path, to: &Path| {
            command
                .arg("--include")
                .arg(format!("{}={}", from.display(), to.display()));
        };
        include(&this, &program);
        include(&absolute(&self.monitor)?, &inside.cofferdam);
        include(&absolute(&self.kernel)?, &inside.kernel);
        include(&absolute(initrd)?, &inside.initrd);
        if what != What::Containers {
            include(Path::new(QEMU), &inside.qemu);
            include(Path::new(FIRMWARE), Path::new(FIRMWARE));
            // The name that other builds of QEMU give it.
            include(
                Path::new(FIRMWARE),
                &Path::new(FIRMWARE).with_file_name("bios-microvm.bin"),
            );
        }
        match what {
            What::Containers => {
                for name in [CONTAINER, FSD] {
                    let ours = self.monitor.with_file_name(name);
                    include(&absolute(&ours)?, &Path::new(INSIDE).join(name));
                }
                include(&absolute(&self.monitor)?, &inside.runtime);
                include(&absolute(&self.kernel)?, &inside.guest.join("vmlinux"));
                include(&absolute(&self.agent)?, &inside.guest.join("agent.erofs"));
                for name in TOOLS {
                    let path = find_tool(name)?;
                    include(&path, &Path::new("/usr/bin").join(name));
                }
            }
            What::Boot => include(&absolute(&self.root)?, &inside.root),
            What::Io(Set::Fs) => {
                let ours = self.monitor.with_file_name(FSD);
                include(&absolute(&ours)?, &Path::new(INSIDE).join(FSD));
                include(virtiofsd()?, &inside.virtiofsd);
            }
            What::Io(_) => {}
        }
        command
            .arg("--")
            .arg(program)
            .args(["measure", what.id()])
            .args(["--runs", &self.runs.to_string()])
            .arg("--output")
            .arg(result)
            .args(["--delay", &(DELAY_MICROS * number).to_string()]);
        if self.traces {
            command.arg("--traces").arg(output);
        }
        command
            .status()
            .map_err(|error| LabError::File(self.lab.clone(), error))
    }
}

/// A program in one of the usual directories.
fn find_tool(name: &str) -> Result<PathBuf, LabError> {
    let places = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
    let mut paths = places.iter().map(|place| Path::new(place).join(name));
    paths.find(|path| path.exists()).ok_or_else(|| {
        LabError::File(
            format!("{name} is missing; `resources/setup` installs it").into(),
            std::io::ErrorKind::NotFound.into(),
        )
    })
}

fn virtiofsd() -> Result<&'static Path, LabError> {
    let mut places = VIRTIOFSD.iter().map(Path::new);
    places
        .find(|path| path.exists())
        .ok_or(LabError::NoVirtiofsd)
}

fn absolute(path: &Path) -> Result<PathBuf, LabError> {
    path.canonicalize()
        .map_err(|error| LabError::File(path.to_owned(), error))
}
