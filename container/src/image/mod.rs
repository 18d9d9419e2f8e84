//! Images: what containers start from.

pub mod archive;
pub mod busybox;
pub mod change;
pub mod digest;
pub mod erofs;
pub mod layer;
pub mod reference;
pub mod store;
#[cfg(test)]
mod testing;

pub use store::{Image, Store};
