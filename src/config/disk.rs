//! Disks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, is_default, not_empty};

/// A virtio-blk disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// The guest may not write. Several VMs may share such a disk.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ro: bool,
    /// The serial number that the guest sees, at most 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What a flush of the guest does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: Cache,
}

/// What a flush of the guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// It reaches the disk.
    #[default]
    Writeback,
    /// Nothing: fast, and a crash of the host loses data. For disks that are thrown away.
    Unsafe,
}

impl DiskConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        not_empty("disk", Some(&self.path))?;
        match self.id.as_ref().filter(|id| id.len() > 20) {
            Some(id) => Err(ConfigError::DiskId {
                path: self.path.clone(),
                id: id.clone(),
            }),
            None => Ok(()),
        }
    }
}
