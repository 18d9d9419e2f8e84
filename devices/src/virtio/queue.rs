//! A virtqueue as its device owns it: the ring loop, notification and what a hostile ring can be.

/// A virtqueue (being written).
#[derive(Debug)]
pub struct VirtQueue;
