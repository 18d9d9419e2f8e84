//! Images: what containers start from.

pub mod archive;
pub mod busybox;
pub mod change;
pub mod commit;
pub mod digest;
pub mod erofs;
pub mod layer;
pub mod reference;
pub mod registry;
pub mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod unpack;

pub use store::{Image, Store};
