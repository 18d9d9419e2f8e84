//! The entropy device.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::switch::switch;
use super::{ConfigError, RateLimitConfig, is_default};

/// Whether the guest has a virtio-rng device, and of which kind. In JSON `true`, `false`, or an
/// object with the options. By default there is one, without limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RngConfig {
    /// There is none.
    Off,
    /// There is one.
    On(RngOptions),
}

/// The options of the entropy device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RngOptions {
    /// How fast the guest may take entropy.
    #[serde(skip_serializing_if = "is_default")]
    pub rate_limit: RateLimitConfig,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self::On(RngOptions::default())
    }
}

impl RngConfig {
    /// The options, if there is a device.
    pub fn options(&self) -> Option<&RngOptions> {
        match self {
            Self::Off => None,
            Self::On(options) => Some(options),
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match self.options() {
            Some(options) => options.rate_limit.limits("rng").map(|_| ()),
            None => Ok(()),
        }
    }
}

impl Serialize for RngConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::On(options) if is_default(options) => serializer.serialize_bool(true),
            Self::On(options) => options.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for RngConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        switch(deserializer).map(|options| options.map_or(Self::Off, Self::On))
    }
}
