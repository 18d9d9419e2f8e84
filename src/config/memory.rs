//! Guest memory.

use serde::{Deserialize, Serialize};

use super::{ConfigError, MIN_MEMORY, MemorySize, is_default};

/// Guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// How much.
    pub size: MemorySize,
    /// All of it is taken from the host at the start, rather than when the guest touches it.
    #[serde(skip_serializing_if = "is_default")]
    pub prefault: bool,
    /// Explicit huge pages of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<HugePages>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: MemorySize::from_mib(256),
            prefault: false,
            hugepages: None,
        }
    }
}

/// Sizes of explicit huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum HugePages {
    /// Pages of 2 MiB.
    #[serde(rename = "2M")]
    #[value(name = "2M")]
    Mib2,
}

impl MemoryConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.size < MIN_MEMORY {
            return Err(ConfigError::Memory(self.size));
        }
        if self.hugepages.is_some() && !self.size.bytes().is_multiple_of(2 << 20) {
            return Err(ConfigError::HugePages(self.size));
        }
        Ok(())
    }
}
