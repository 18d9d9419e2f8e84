//! The balloon.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::{ConfigError, MemoryConfig, MemorySize, is_default};

/// The options of the balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BalloonConfig {
    /// Memory that the guest is asked to give up from the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<MemorySize>,
    /// The guest may take memory back before it kills a process for want of it.
    #[serde(skip_serializing_if = "is_default")]
    pub deflate_on_oom: bool,
    /// The guest reports what is free, and that goes back to the host. It does unless memory was
    /// set aside for it: prefaulted, or of explicit huge pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reporting: Option<bool>,
    /// Seconds between two lines of statistics in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<NonZeroU32>,
}

impl BalloonConfig {
    /// Whether the guest is to report what is free.
    pub fn is_reporting(&self, memory: &MemoryConfig) -> bool {
        let is_set_aside = memory.prefault || memory.hugepages.is_some();
        self.reporting.unwrap_or(!is_set_aside)
    }

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
