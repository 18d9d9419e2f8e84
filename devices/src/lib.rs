//! The bus, the legacy devices, the virtio transport and the virtio devices.
//!
//! A device never knows its transport, a transport never knows its bus, and nothing here knows
//! KVM: what the monitor needs from it comes in as event file descriptors.

pub mod bus;
pub mod console;
pub mod legacy;
mod listener;
mod log_limit;
pub mod virtio;

/// Guest physical memory, as every device sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
