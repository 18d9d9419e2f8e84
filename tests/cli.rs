//! The command line on the host at hand: what is refused, and how; what is printed; how a monitor
//! with a guest of a few instructions lives and ends.
//!
//! Needs no KVM that runs Linux. What needs a KVM at all, root, or a tool that is not there says so
//! and passes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli {
    mod harness;
    mod life;
    mod refusals;
    mod slips;
    mod text;
}
