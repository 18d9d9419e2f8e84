//! What the monitor says of itself: its log, and how long a boot took.

mod logger;

pub use logger::{LogError, init};

use std::sync::OnceLock;
use std::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Marks the process's start; the first call counts, and `main` makes it.
pub fn mark_start() {
    START.get_or_init(Instant::now);
}

/// When the process started, or when this was first asked.
pub fn start() -> Instant {
    *START.get_or_init(Instant::now)
}
