//! What a runtime of the host's is given: what an agent would be, and what only the host and the mounted
//! root file system know.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cofferdam_changes::{Kept, fill};
use oci_spec::runtime::Spec;

use super::process::{self, ProcessError};
use super::rootfs::ROOTFS;
use crate::copy::{Owner, extract_directory};
use crate::options::{Device, Runtime};
use crate::root::RootDir;
use crate::{spec, state};

/// What is bound to its /etc/hosts, in the directory of its mounts and sockets.
pub const HOSTS: &str = "hosts";
/// And to its /etc/hostname.
pub const HOSTNAME: &str = "hostname";
/// And to its /etc/resolv.conf.
pub const RESOLV_CONF: &str = "resolv.conf";
/// Its configuration.
const CONFIG: &str = "config.json";
/// Programs that reap what is left to them and pass signals on, as engines have them; all take the
/// command behind `--`. One that needs no library of the host's comes before one that may.
const INITS: [&str; 4] = ["docker-init", "catatonit", "tini-static", "tini"];
/// Where engines keep theirs, if not in $PATH.
const INIT_DIRS: [&str; 2] = ["/usr/libexec/docker", "/usr/libexec/podman"];

/// What a runtime needs to know.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Who makes it.
    pub runtime: Runtime,
    /// The container's ID.
    pub id: String,
    /// The directory with config.json, as the image and the user have it.
    pub dir: PathBuf,
    /// EROFS images, the lowest first.
    pub layers: Vec<PathBuf>,
    /// Where the container's writes go.
    pub upper: PathBuf,
    /// Where mounts and sockets are, and config.json as the runtime has it.
    pub run: PathBuf,
    /// The text of its /etc/hosts.
    pub hosts: String,
    /// The text of its /etc/resolv.conf.
    pub resolv_conf: String,
    /// It gets input.
    pub interactive: bool,
    /// It has a terminal.
    pub tty: bool,
    /// Volumes, which get what the image has at their places if they are new.
    pub volumes: Vec<(PathBuf, String)>,
    /// Devices of the host's that it has.
    pub devices: Vec<Device>,
    /// A program of the host's that its program runs below.
    pub init: Option<PathBuf>,
    /// Directories that are made where its image has none.
    pub directories: Vec<String>,
}

/// The host's program for `--init`.
pub fn find_init() -> Result<PathBuf, ProcessError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(INIT_DIRS.map(PathBuf::from));
    let all = INITS
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    // What it is bound to is no link's to say.
    let found = all
        .filter_map(|path| path.canonicalize().ok())
        .find(|path| path.is_file());
    found.ok_or(ProcessError::NoInit)
}

/// Writes an archive to a volume; another container that has it, too, may plant links there meanwhile.
fn unpack(archive: impl Read, volume: &Path, kept: Kept) -> io::Result<()> {
    let owner = match kept {
        Kept::Everything | Kept::Owners => Owner::Archive,
        Kept::Files => Owner::Us,
    };
    extract_directory(archive, &File::open(volume)?.into(), owner).map(drop)
}

impl Bundle {
    /// Writes all of it, where the runtime looks for it.
    pub(super) fn prepare(&self, root: &RootDir) -> Result<(), ProcessError> {
        let mut spec: Spec = state::load(&self.dir.join(CONFIG))?;
        let hostname = format!("{}\n", spec.hostname().as_deref().unwrap_or_default());
        let etc = [
            (HOSTS, &self.hosts),
            (HOSTNAME, &hostname),
            (RESOLV_CONF, &self.resolv_conf),
        ];
        for (name, text) in etc {
            fs::write(self.run.join(name), text)
                .map_err(process::io("write the container's names"))?;
        }
        for (volume, place) in &self.volumes {
            let filled = fill(volume, &self.run.join(ROOTFS), place, unpack);
            filled.map_err(|source| ProcessError::Volume {
                place: place.clone(),
                source,
            })?;
        }
        // A link to nothing is none for a runtime.
        let cwd = spec
            .process()
            .as_ref()
            .map(|process| process.cwd().as_path());
        let directories = self.directories.iter().map(Path::new);
        for path in directories.chain(cwd) {
            root.make_directory(path).map_err(process::io(
                "make the working directory, or the image's volumes",
            ))?;
        }
        if let Some(process) = spec.process_mut() {
            spec::resolve_user(process, root)?;
        }
        spec::add_devices(&mut spec, &self.devices)?;
        if let Some(init) = &self.init {
            spec::put_below(&mut spec, init);
        }
        Ok(state::save(&self.run.join(CONFIG), &spec)?)
    }
}
