//! Input and output: what a guest does on a device, beside the same guest on QEMU's device.
//!
//! The guest's part is `resources/rootfs/bench-io`: an init that does the jobs on its command line
//! and says how long each took.

pub mod chart;
pub mod jobs;
pub mod measure;
pub mod monitors;
pub mod serve;
pub mod table;

/// What is measured in one start of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// virtio-blk.
    Block,
    /// virtio-net.
    Net,
    /// virtio-vsock.
    Vsock,
    /// virtio-fs.
    Fs,
}

impl Set {
    /// Stable name, as in the JSON and on the command line.
    pub fn id(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Net => "net",
            Self::Vsock => "vsock",
            Self::Fs => "fs",
        }
    }

    /// What people call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Block => "virtio-blk",
            Self::Net => "virtio-net",
            Self::Vsock => "virtio-vsock",
            Self::Fs => "virtio-fs",
        }
    }
}
