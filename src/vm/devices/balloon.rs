//! The balloon.

use std::sync::{Arc, Mutex};

use cofferdam_devices::virtio::balloon::{Balloon, BalloonOptions};

use super::{DeviceError, Devices};
use crate::config::BalloonConfig;

impl Devices<'_> {
    pub(super) fn add_balloon(&mut self, config: &BalloonConfig) -> Result<(), DeviceError> {
        let options = BalloonOptions {
            target: config.size.map_or(0, |size| size.bytes()),
            deflate_on_oom: config.deflate_on_oom,
            reporting: config.reporting,
            hinting: config.hinting,
            stats: config.stats,
        };
        let balloon = Balloon::new(options).map_err(DeviceError::Timer)?;
        self.add_virtio("balloon", Arc::new(Mutex::new(balloon)))
    }
}
