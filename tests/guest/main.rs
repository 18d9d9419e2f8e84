//! Tests that boot real guests: one binary, so that all of them run in one start of the lab.
//!
//! They need root, a KVM that runs Linux, and the images that `make guest` and `tests/run` build;
//! `tests/run` runs them, in the lab where it must. docs/testing.md says how to run a single one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod agent;
mod attach;
mod block;
mod block_trouble;
mod boot;
mod clock;
mod compare;
mod compose;
mod console;
mod container;
mod copy;
mod deaths;
mod debian;
mod descriptors;
mod engines;
mod familiar;
mod fs;
mod harness;
mod health;
mod hostile;
mod images;
mod init;
mod kernels;
mod life;
mod memory;
mod mounts;
mod net;
mod network;
mod passt;
mod pmem;
mod privileged;
mod process;
mod rng;
mod rootless;
mod runc;
mod runc_suites;
mod starts;
mod storm;
mod systemd;
mod terminal;
mod volumes;
mod vsock;
