//! vCPUs.

use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, MAX_CPUS, is_default};

/// vCPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuConfig {
    /// How many: 1 to 32.
    #[serde(deserialize_with = "cpu_count")]
    pub count: u8,
    /// A CPU template (JSON) that masks CPUID and MSR bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<PathBuf>,
    /// Gives the guest the old programmable interval timer, for kernels that cannot do without.
    #[serde(skip_serializing_if = "is_default")]
    pub pit: bool,
}

/// A number of vCPUs; what does not fit a byte is refused like all that is out of range.
fn cpu_count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let count = u64::deserialize(deserializer)?;
    u8::try_from(count).map_err(|_| D::Error::custom(ConfigError::Cpus(count)))
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self {
            count: 1,
            template: None,
            pit: false,
        }
    }
}

impl CpuConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_CPUS).contains(&self.count) {
            return Err(ConfigError::Cpus(self.count.into()));
        }
        Ok(())
    }
}
