//! Containers that each have a kernel of their own: images, the runtime, and the command line.

pub mod cli;
pub mod compare;
pub mod copy;
pub mod create;
pub mod disk;
pub mod files;
pub mod hostpath;
pub mod image;
pub mod json;
pub mod limits;
pub mod log_file;
pub mod mirror;
mod mountinfo;
pub mod network;
pub mod networks;
pub mod options;
pub mod paths;
pub mod runc;
pub mod settings;
pub mod shim;
pub mod spec;
pub mod state;
mod usage;
mod user;
pub mod vm;
pub mod volume;

pub use cofferdam::cli::report::describe;
use cofferdam_root as root;
