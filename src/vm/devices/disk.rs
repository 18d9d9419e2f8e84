//! Disks.

use std::sync::{Arc, Mutex};

use cofferdam_devices::virtio::block::{self, Block, BlockOptions, Disk, DiskOptions, EngineKind};

use super::{DeviceError, Devices};
use crate::config::{Cache, DiskConfig, Engine};

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
        let options = BlockOptions {
            serial: config.id.clone().unwrap_or_default(),
            engine: match config.engine {
                Engine::Auto => EngineKind::Auto,
                Engine::Sync => EngineKind::Sync,
                Engine::IoUring => EngineKind::IoUring,
            },
            queues: config.queues.unwrap_or(1).into(),
            has_workers: config.iothread,
            limits: config.rate_limit.limits()?,
        };
        let block = Block::new(disk, &options)?;
        let block = Arc::new(Mutex::new(block));
        self.disks.push(block.clone());
        self.add_virtio("block", block)
    }
}
