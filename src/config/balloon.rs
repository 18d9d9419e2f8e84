//! The balloon.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::{ConfigError, MemoryConfig, MemorySize, is_default};

/// The options of the balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalloonConfig {
    /// Memory that the guest is asked to give up from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<MemorySize>,
    /// The guest may take memory back before it kills a process for want of it.
    #[serde(skip_serializing_if = "is_default")]
    pub deflate_on_oom: bool,
    /// The guest reports what is free, and that goes back to the host.
    pub reporting: bool,
    /// Seconds between two times that the guest is asked what is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hinting: Option<NonZeroU32>,
    /// Seconds between two lines of statistics in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<NonZeroU32>,
}

impl Default for BalloonConfig {
    fn default() -> Self {
        Self {
            size: None,
            deflate_on_oom: false,
            reporting: true,
            hinting: None,
            stats: None,
        }
    }
}

impl BalloonConfig {
    pub(super) fn validate(&self, memory: &MemoryConfig) -> Result<(), ConfigError> {
        match self.size.filter(|size| *size >= memory.size) {
            Some(size) => Err(ConfigError::Balloon {
                size,
                memory: memory.size,
            }),
            None => Ok(()),
        }
    }
}
