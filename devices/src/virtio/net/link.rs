//! The way to the host as the two queues of a pair share it: is it up, and what was lost.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use event_manager::EventOps;
use log::{error, info, warn};
use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

use super::MacAddress;
use super::backend::Backend;
use crate::virtio::Interrupt;
use crate::virtio::rate_limit::{RateLimiter, RateLimits};

/// How fast frames may go, as the guest sees it. A frame counts its bytes without virtio's header,
/// and as one operation, however many packets are to be made of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetLimits {
    /// To the guest.
    pub rx: RateLimits,
    /// From the guest.
    pub tx: RateLimits,
}

/// The limiters of a queue pair; all pairs of a device share their buckets.
#[derive(Debug)]
pub(super) struct Limiters {
    pub(super) rx: Option<RateLimiter>,
    pub(super) tx: Option<RateLimiter>,
}

impl Limiters {
    pub(super) fn new(limits: &NetLimits) -> io::Result<Self> {
        let limiter = |limits: RateLimits| match limits.is_limited() {
            true => RateLimiter::new(limits).map(Some),
            false => Ok(None),
        };
        Ok(Self {
            rx: limiter(limits.rx)?,
            tx: limiter(limits.tx)?,
        })
    }

    /// Others on the same buckets.
    pub(super) fn share(&self) -> io::Result<Self> {
        let share =
            |limiter: &Option<RateLimiter>| limiter.as_ref().map(RateLimiter::share).transpose();
        Ok(Self {
            rx: share(&self.rx)?,
            tx: share(&self.tx)?,
        })
    }

    pub(super) fn watch(&self, ops: &mut EventOps) {
        for limiter in self.rx.iter().chain(&self.tx) {
            if let Err(e) = limiter.watch(ops, 0) {
                error!("a rate limit's timer cannot be watched: {e}");
            }
        }
    }

    /// What waits will not go.
    pub(super) fn cancel(&mut self) {
        for limiter in self.rx.iter_mut().chain(&mut self.tx) {
            limiter.cancel();
        }
    }
}

/// What a network device lost, in frames, since it was made.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// From the host, because they did not fit into the buffers that the guest gave.
    pub rx_dropped: AtomicU64,
    /// From the guest: no frame, or one that the host did not take.
    pub tx_dropped: AtomicU64,
}

/// What the driver sees of the device, and what all queue pairs have in common.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) mac: MacAddress,
    pub(super) mtu: Option<u16>,
    /// Queue pairs.
    pub(super) pairs: u16,
    /// Cleared once the host's side is gone; it does not come back.
    pub(super) is_up: AtomicBool,
    pub(super) counters: Arc<NetCounters>,
}

impl Port {
    /// The configuration space up to the MTU (section 5.1.4).
    pub(super) fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        let status = match self.is_up.load(Ordering::Acquire) {
            true => VIRTIO_NET_S_LINK_UP,
            false => 0,
        };
        config[..6].copy_from_slice(&self.mac.bytes());
        config[6] = status.to_le_bytes()[0];
        config[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        config
    }
}

/// A back end, and whether it takes and gives frames.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) backend: Backend,
    pub(super) limiters: Limiters,
    port: Arc<Port>,
    /// To tell the driver when the link goes down.
    pub(super) interrupt: Option<Interrupt>,
    /// It takes no frames now, and may later.
    is_down: bool,
}

impl Link {
    pub(super) fn new(backend: Backend, limiters: Limiters, port: Arc<Port>) -> Self {
        Self {
            backend,
            limiters,
            port,
            interrupt: None,
            is_down: false,
        }
    }

    pub(super) fn drop_received(&self) {
        let counters = &self.port.counters;
        counters.rx_dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn drop_sent(&self) {
        let counters = &self.port.counters;
        counters.tx_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// False once the host's side is gone.
    pub(super) fn is_up(&self) -> bool {
        self.port.is_up.load(Ordering::Acquire)
    }

    /// A read or write failed. The first error that says that the host's side is down or gone is
    /// told; one that only says that a frame is bad is the guest's affair.
    pub(super) fn failed(&mut self, error: &io::Error) {
        if is_gone(error) {
            self.gone(Some(error));
        } else if is_down(error) && !std::mem::replace(&mut self.is_down, true) {
            let name = &self.backend;
            warn!("{name} is down, frames are lost until it is up again: {error}");
        }
    }

    /// A read or write went through.
    pub(super) fn worked(&mut self) {
        if std::mem::take(&mut self.is_down) {
            info!("{} is up again", self.backend);
        }
    }

    /// The host's side is gone for good: the guest's link goes down.
    pub(super) fn gone(&mut self, error: Option<&io::Error>) {
        if !self.port.is_up.swap(false, Ordering::AcqRel) {
            return;
        }
        let name = &self.backend;
        match error {
            Some(e) if e.kind() == ErrorKind::InvalidData => {
                warn!("{name} sends what is no frame: the guest's link is down");
            }
            // Whoever looks after the process at the other end knows more, and says it.
            _ if matches!(name, Backend::Stream(_)) => {}
            _ => warn!("{name} is gone: the guest's link is down"),
        }
        if let Some(interrupt) = &self.interrupt {
            interrupt.config_change(&self.port.config());
        }
    }
}

/// Whether an error says that nothing more will come or go.
fn is_gone(error: &io::Error) -> bool {
    let kinds = [ErrorKind::UnexpectedEof, ErrorKind::InvalidData];
    kinds.contains(&error.kind())
        || matches!(
            error.raw_os_error(),
            Some(libc::EBADFD | libc::ENODEV | libc::EPIPE | libc::ECONNRESET)
        )
}

/// Whether an error says that a tap is down, rather than that it does not like a frame.
fn is_down(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::ENETDOWN))
}
