//! Disks.

use std::sync::{Arc, Mutex};

use cofferdam_devices::virtio::block::{self, Block, Disk, DiskOptions};

use super::{DeviceError, Devices};
use crate::config::{Cache, DiskConfig};

impl Devices<'_> {
    pub(super) fn add_disk(&mut self, config: &DiskConfig) -> Result<(), DeviceError> {
        let disk = Disk::open(&DiskOptions {
            path: config.path.clone(),
            read_only: config.ro,
            cache: match config.cache {
                Cache::Writeback => block::Cache::Writeback,
                Cache::Unsafe => block::Cache::Unsafe,
            },
        })?;
        let block = Block::new(disk, config.id.as_deref().unwrap_or_default());
        let block = Arc::new(Mutex::new(block));
        self.disks.push(block.clone());
        self.add_virtio("block", block)
    }
}
