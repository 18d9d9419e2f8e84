//! Rate limits.

use std::num::NonZeroU64;

use cofferdam_devices::virtio::rate_limit::{Rate, RateLimits};
use serde::{Deserialize, Serialize};

use super::{ByteSize, ConfigError};

/// How fast a device, or one direction of it, may work. A burst is what may go at once after a time
/// of rest: what the rate gives in a tenth of a second, where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimitConfig {
    /// Bytes of data in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<ByteSize>,
    /// Bytes at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_burst: Option<ByteSize>,
    /// Requests (or frames) in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_per_second: Option<u64>,
    /// Requests at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_burst: Option<u64>,
}

impl RateLimitConfig {
    /// What the device keeps to. `device` is for messages: what the limit is of.
    pub fn limits(&self, device: &'static str) -> Result<RateLimits, ConfigError> {
        let bytes = |size: Option<ByteSize>| size.map(ByteSize::bytes);
        let (per_second, burst) = (bytes(self.bytes_per_second), bytes(self.bytes_burst));
        Ok(RateLimits {
            bytes: rate(device, "bytes", per_second, burst)?,
            ops: rate(device, "ops", self.ops_per_second, self.ops_burst)?,
        })
    }
}

fn rate(
    device: &'static str,
    unit: &'static str,
    per_second: Option<u64>,
    burst: Option<u64>,
) -> Result<Option<Rate>, ConfigError> {
    let nonzero = |value| NonZeroU64::new(value).ok_or(ConfigError::NoRate { device, unit });
    match (per_second, burst) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(ConfigError::OnlyBurst { device, unit }),
        (Some(per_second), burst) => Ok(Some(Rate {
            per_second: nonzero(per_second)?,
            burst: nonzero(burst.unwrap_or((per_second / 10).max(1)))?,
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(text: &str) -> Result<RateLimits, String> {
        let config: RateLimitConfig = serde_json::from_str(text).unwrap();
        config.limits("disk").map_err(|error| error.to_string())
    }

    /// If it fails, a limit is not the one that was written.
    #[test]
    fn limits_are_as_written() {
        let all = limits(r#"{"bytes_per_second": "10M", "ops_per_second": 5, "ops_burst": 7}"#);
        let rate = |per_second: u64, burst: u64| {
            Some(Rate {
                per_second: per_second.try_into().unwrap(),
                burst: burst.try_into().unwrap(),
            })
        };
        let wanted = RateLimits {
            bytes: rate(10 << 20, 1 << 20),
            ops: rate(5, 7),
        };
        assert_eq!(all, Ok(wanted));
        assert!(!limits("{}").unwrap().is_limited());
        assert_eq!(limits(r#"{"ops_per_second": 3}"#).unwrap().ops, rate(3, 1));
    }

    /// If it fails, a limit that stops a device for good, or none at all, is taken silently.
    #[test]
    fn limits_that_make_no_sense_are_refused() {
        for (text, part) in [
            (r#"{"bytes_per_second": 0}"#, "bytes_per_second"),
            (r#"{"ops_per_second": 1, "ops_burst": 0}"#, "ops_burst"),
            (r#"{"bytes_burst": "1M"}"#, "without bytes_per_second"),
        ] {
            let error = limits(text).unwrap_err();
            assert!(error.contains(part) && error.contains("disk"), "{error}");
        }
    }
}
