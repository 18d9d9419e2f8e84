//! The monitor: configuration in, a running VM out.
