//! What a runtime of the host's is given: what an agent would be, and what only the host and the mounted
//! root file system know.

use std::fs;
use std::path::PathBuf;

use oci_spec::runtime::Spec;

use super::process::{ProcessError, io};
use crate::options::Runtime;
use crate::root::RootDir;
use crate::{spec, state};

/// What is bound to its /etc/hosts, in the directory of its mounts and sockets.
pub const HOSTS: &str = "hosts";
/// And to its /etc/resolv.conf.
pub const RESOLV_CONF: &str = "resolv.conf";
/// Its configuration.
const CONFIG: &str = "config.json";

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
}

impl Bundle {
    /// Writes all of it, where the runtime looks for it.
    pub(super) fn prepare(&self, root: &RootDir) -> Result<(), ProcessError> {
        let etc = [(HOSTS, &self.hosts), (RESOLV_CONF, &self.resolv_conf)];
        for (name, text) in etc {
            fs::write(self.run.join(name), text).map_err(io("write the container's names"))?;
        }
        let mut spec: Spec = state::load(&self.dir.join(CONFIG))?;
        if let Some(process) = spec.process_mut() {
            spec::resolve_user(process, root)?;
        }
        Ok(state::save(&self.run.join(CONFIG), &spec)?)
    }
}
