//! Messages that a guest can cause, at a rate that it cannot choose.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

/// Milliseconds between two messages of one call site.
const INTERVAL_MS: u64 = 10_000;

/// Lets one message through, then none for [`INTERVAL_MS`]; counts what it held back.
#[derive(Debug)]
pub(crate) struct LogLimit {
    /// When the next message may pass, in milliseconds since the first one of the process.
    next: AtomicU64,
    skipped: AtomicU32,
}

/// How many messages were held back before this one; written after the message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Skipped(u32);

impl LogLimit {
    pub(crate) const fn new() -> Self {
        Self {
            next: AtomicU64::new(0),
            skipped: AtomicU32::new(0),
        }
    }

    /// Whether a message may pass now.
    pub(crate) fn allow(&self) -> Option<Skipped> {
        static START: OnceLock<Instant> = OnceLock::new();
        let now = START.get_or_init(Instant::now).elapsed().as_millis();
        self.allow_at(u64::try_from(now).unwrap_or(u64::MAX))
    }

    fn allow_at(&self, now: u64) -> Option<Skipped> {
        let next = self.next.load(Ordering::Relaxed);
        let later = now.saturating_add(INTERVAL_MS);
        let order = Ordering::Relaxed;
        // Of two threads that come at once, one speaks.
        if now < next
            || self
                .next
                .compare_exchange(next, later, order, order)
                .is_err()
        {
            self.skipped.fetch_add(1, order);
            return None;
        }
        Some(Skipped(self.skipped.swap(0, order)))
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, " (and {n} more since the last message)"),
        }
    }
}

/// `log_limited!(warn, "…", …)`: logs at `warn`, at most once in ten seconds from this place.
macro_rules! log_limited {
    ($level:ident, $($message:tt)+) => {{
        static LIMIT: $crate::log_limit::LogLimit = $crate::log_limit::LogLimit::new();
        if let Some(skipped) = LIMIT.allow() {
            log::$level!("{}{skipped}", format_args!($($message)+));
        }
    }};
}
pub(crate) use log_limited;

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a guest fills the host's log, or what was held back is not told.
    #[test]
    fn one_message_an_interval_passes_and_tells_what_was_held_back() {
        let limit = LogLimit::new();
        assert_eq!(limit.allow_at(5), Some(Skipped(0)));
        for now in [5, 6, INTERVAL_MS] {
            assert_eq!(limit.allow_at(now), None);
        }
        let skipped = limit.allow_at(5 + INTERVAL_MS).unwrap();
        assert_eq!(skipped.to_string(), " (and 3 more since the last message)");
    }
}
