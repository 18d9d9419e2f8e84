//! Containers that each have a kernel of their own: images, the runtime, and the command line.

pub mod cli;
pub mod image;
pub mod network;
pub mod options;
pub mod paths;
pub mod spec;
pub mod state;
pub mod vm;
