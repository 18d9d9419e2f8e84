//! Tests that boot real guests: one binary, so that all of them run in one start of the lab.
//!
//! They need root, a KVM that runs Linux, and the images that `make guest` builds. `make test` runs
//! them in the lab.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod boot;
mod harness;
mod life;
