//! The entropy device.

use serde::{Deserialize, Serialize};

use super::{ConfigError, RateLimitConfig, is_default};

/// The options of the entropy device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RngConfig {
    /// How fast the guest may take entropy.
    #[serde(skip_serializing_if = "is_default")]
    pub rate_limit: RateLimitConfig,
}

impl RngConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.rate_limit.limits("rng").map(|_| ())
    }
}
