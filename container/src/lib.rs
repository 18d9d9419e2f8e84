//! Containers that each have a kernel of their own: images, the runtime, and the command line.

pub mod cli;
pub mod compare;
pub mod copy;
pub mod create;
pub mod disk;
pub mod image;
pub mod limits;
pub mod mirror;
pub mod network;
pub mod networks;
pub mod options;
pub mod paths;
pub mod runc;
pub mod shim;
pub mod spec;
pub mod state;
mod user;
pub mod vm;
pub mod volume;

use std::error::Error;

/// What went wrong and why, in one line.
pub fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // An error that only passes on its source's words would say them twice.
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
