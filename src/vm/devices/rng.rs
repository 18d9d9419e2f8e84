//! The entropy device.

use std::sync::{Arc, Mutex};

use cofferdam_devices::virtio::rate_limit::RateLimiter;
use cofferdam_devices::virtio::rng::Rng;

use super::{DeviceError, Devices};
use crate::config::{RateLimitConfig, RngConfig};

impl Devices<'_> {
    pub(super) fn add_rng(&mut self, config: &RngConfig) -> Result<(), DeviceError> {
        let limiter = limiter("rng", &config.rate_limit)?;
        self.add_virtio("rng", Arc::new(Mutex::new(Rng::new(limiter))))
    }
}

/// The limiter of `device`, or of one direction of it, if it is limited at all.
pub(super) fn limiter(
    device: &'static str,
    config: &RateLimitConfig,
) -> Result<Option<RateLimiter>, DeviceError> {
    let limits = config.limits(device)?;
    let limiter = limits.is_limited().then(|| RateLimiter::new(limits));
    limiter.transpose().map_err(DeviceError::Timer)
}
