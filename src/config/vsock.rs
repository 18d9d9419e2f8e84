//! The socket device.

use std::path::PathBuf;

use cofferdam_devices::virtio::vsock;
use serde::{Deserialize, Serialize};

use super::{ConfigError, not_empty};

/// A virtio-vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's address: 3 to 4294967294.
    pub cid: u64,
    /// The Unix socket at which programs of the host connect to the guest. The guest's connections
    /// to port N of the host go to the socket at this path with `_N` behind it.
    pub uds: PathBuf,
}

impl VsockConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        not_empty("vsock", Some(&self.uds))?;
        Ok(vsock::check(self.cid, &self.uds)?)
    }
}
