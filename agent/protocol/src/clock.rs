//! The host's side of a guest's clock: how far it is from the host's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::api::ClockRequest;
use crate::{Client, ClientError};

/// How often the guest is asked, at most: the answer that came soonest says most.
const TRIES: usize = 4;

/// An answer that came so soon is as good as another one.
const SOON: Duration = Duration::from_millis(2);

/// How far a guest's clock is from the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deviation {
    /// Nanoseconds that it is ahead.
    pub ahead_ns: i64,
    /// By so many nanoseconds the former may be wrong, either way.
    pub doubt_ns: i64,
}

impl Deviation {
    /// As an answer tells it that was asked for and came at these times of the host's, in nanoseconds.
    fn of(asked: i64, guest: i64, answered: i64) -> Self {
        let doubt_ns = answered.saturating_sub(asked).max(0) / 2;
        let then = asked.saturating_add(doubt_ns);
        Self {
            ahead_ns: guest.saturating_sub(then),
            doubt_ns,
        }
    }
}

impl Client {
    /// Compares the guest's clock with the host's.
    pub fn compare_clocks(&self) -> Result<Deviation, ClientError> {
        let mut best: Option<Deviation> = None;
        for _ in 0..TRIES {
            let asked = now();
            let guest = self.clock(ClockRequest::new())?.unix_ns;
            let found = Deviation::of(asked, guest, now());
            if best.is_none_or(|best| found.doubt_ns < best.doubt_ns) {
                best = Some(found);
            }
            if Duration::from_nanos(found.doubt_ns.unsigned_abs()) < SOON {
                break;
            }
        }
        Ok(best.unwrap_or(Deviation {
            ahead_ns: 0,
            doubt_ns: i64::MAX,
        }))
    }
}

/// The host's clock, in nanoseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a guest's clock is moved to where the host's is not, or an answer of the guest's ends the
    /// shim.
    #[test]
    fn a_late_answer_leaves_a_doubt() {
        let found = Deviation::of(1000, 1600, 2000);
        assert_eq!((found.ahead_ns, found.doubt_ns), (100, 500));
        // The host's clock was set back meanwhile.
        let found = Deviation::of(2000, 1900, 1000);
        assert_eq!((found.ahead_ns, found.doubt_ns), (-100, 0));
        let found = Deviation::of(1000, i64::MIN, 2000);
        assert_eq!(found.ahead_ns, i64::MIN);
    }
}
