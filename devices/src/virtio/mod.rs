//! Virtio 1.2: the transport over MMIO, and the devices.

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod chain;
pub mod device;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod pmem;
pub mod queue;
mod queue_config;
pub mod rate_limit;
pub mod registers;
pub mod ring;
pub mod rng;
pub mod subscriber;
pub mod vhost_user;
pub mod vsock;

#[cfg(test)]
pub(crate) mod mock;

pub use buffers::Buffers;
pub use chain::Chain;
pub use device::{ActivateError, Activation, Lane, Lanes, VirtioDevice};
pub use interrupt::Interrupt;
pub use queue::{QueueError, VirtQueue};
pub use registers::Registers;
