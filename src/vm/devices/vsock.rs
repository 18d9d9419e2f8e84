//! The socket device.

use std::sync::{Arc, Mutex};

use cofferdam_devices::virtio::vsock::Vsock;

use super::{DeviceError, Devices};
use crate::config::VsockConfig;

impl Devices<'_> {
    pub(super) fn add_vsock(&mut self, config: &VsockConfig) -> Result<(), DeviceError> {
        let vsock = Vsock::new(config.cid, &config.uds)?;
        self.add_virtio("vsock", Arc::new(Mutex::new(vsock)))
    }
}
