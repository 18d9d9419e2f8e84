//! The tap as the two queues share it: is it up, and what was lost.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use log::{info, warn};

use super::tap::{Tap, is_down};

/// What a network device lost, in frames, since it was made.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// From the host, because they did not fit into the buffers that the guest gave.
    pub rx_dropped: AtomicU64,
    /// From the guest: no frame, or one that the tap did not take.
    pub tx_dropped: AtomicU64,
}

/// A tap, and whether it takes and gives frames.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) tap: Tap,
    is_down: bool,
    counters: Arc<NetCounters>,
}

impl Link {
    pub(super) fn new(tap: Tap) -> Self {
        Self {
            tap,
            is_down: false,
            counters: Arc::default(),
        }
    }

    pub(super) fn counters(&self) -> &Arc<NetCounters> {
        &self.counters
    }

    pub(super) fn drop_received(&self) {
        self.counters.rx_dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn drop_sent(&self) {
        self.counters.tx_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// A read or write failed. The first one that says that the tap is down is told; one that only
    /// says that a frame is bad is the guest's affair.
    pub(super) fn failed(&mut self, error: &io::Error) {
        if is_down(error) && !std::mem::replace(&mut self.is_down, true) {
            let name = self.tap.name();
            warn!("tap {name} is down or gone, frames are lost until it is up again: {error}");
        }
    }

    /// A read or write went through.
    pub(super) fn worked(&mut self) {
        if std::mem::take(&mut self.is_down) {
            info!("tap {} is up again", self.tap.name());
        }
    }
}
