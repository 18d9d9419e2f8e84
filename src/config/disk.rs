//! Disks.

use std::path::PathBuf;

use cofferdam_devices::virtio::block::DiskLimits;
use serde::{Deserialize, Serialize};

use super::{ConfigError, RateLimitConfig, is_default, not_empty};

/// Queues of a disk at most: one for each of as many vCPUs as a VM may have.
pub const MAX_DISK_QUEUES: u16 = 32;

/// A virtio-blk disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What carries requests out on the host.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: Engine,
    /// How many queues the guest has for it, each with a thread of its own if there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// Whether a single queue has a thread of its own, too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub iothread: bool,
    /// How fast the guest may read and write.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rate_limit: DiskRateLimit,
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

/// What carries requests out on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// `io_uring` where the host has it and it helps, else one request after the other.
    #[default]
    Auto,
    /// One request after the other.
    Sync,
    /// `io_uring`; an error if the host has none.
    IoUring,
}

/// How fast the guest may read and write a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskRateLimit {
    /// Reads.
    #[serde(skip_serializing_if = "is_default")]
    pub read: RateLimitConfig,
    /// Writes, zeroes and discards.
    #[serde(skip_serializing_if = "is_default")]
    pub write: RateLimitConfig,
}

impl DiskRateLimit {
    /// What the device keeps to.
    pub fn limits(&self) -> Result<DiskLimits, ConfigError> {
        Ok(DiskLimits {
            read: self.read.limits("disk")?,
            write: self.write.limits("disk")?,
        })
    }
}

impl DiskConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        not_empty("disk", Some(&self.path))?;
        self.rate_limit.limits()?;
        if let Some(count) = self.queues.filter(|n| !(1..=MAX_DISK_QUEUES).contains(n)) {
            return Err(ConfigError::DiskQueues {
                path: self.path.clone(),
                count,
            });
        }
        match self.id.as_ref().filter(|id| id.len() > 20) {
            Some(id) => Err(ConfigError::DiskId {
                path: self.path.clone(),
                id: id.clone(),
            }),
            None => Ok(()),
        }
    }
}
