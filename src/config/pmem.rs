//! Persistent memory: files whose pages the guest maps.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, is_default, not_empty};

/// A virtio-pmem device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemConfig {
    /// An image or a block device.
    pub file: PathBuf,
    /// What the guest writes is dropped. Several VMs may share such a file, and its pages.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ro: bool,
}

impl PmemConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        not_empty("pmem", Some(&self.file))
    }
}
