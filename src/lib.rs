//! The monitor: configuration in, a running VM out.

pub mod arch;
pub mod cli;
pub mod companion;
pub mod config;
pub mod descriptors;
pub mod doctor;
pub mod guest;
pub mod telemetry;
pub mod text;
pub mod vm;
