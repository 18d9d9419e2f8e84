//! Moments as Docker's `--since` and `--until` take them.

use std::str::FromStr;

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime, PrimitiveDateTime};

use crate::options::Period;

/// A moment: nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct When(pub i128);

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos();
        read(text, now).map(Self).ok_or_else(|| {
            "a moment is so long ago (90s, 1h30m), a date (2026-01-31, or with a time: \
             2026-01-31T12:00:00Z), or seconds since 1970"
                .into()
        })
    }
}

impl When {
    /// The moment that RFC 3339 text names.
    pub fn of(text: &str) -> Option<Self> {
        let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        Some(Self(time.unix_timestamp_nanos()))
    }
}

/// Without an offset a time is UTC, as all times that are printed.
fn read(text: &str, now: i128) -> Option<i128> {
    const SECOND: i128 = 1_000_000_000;
    let with_time = text.contains('T');
    if let Some(When(at)) = When::of(text) {
        return Some(at);
    }
    if let Some((whole, part)) = seconds(text) {
        return Some(i128::from(whole) * SECOND + i128::from(part));
    }
    if let Ok(Period(ago)) = text.parse() {
        return Some(now - i128::try_from(ago.as_nanos()).ok()?);
    }
    let text = text.strip_suffix('Z').unwrap_or(text);
    let midnight = |date: Date| date.midnight().assume_utc().unix_timestamp_nanos();
    if !with_time {
        let day = format_description!("[year]-[month]-[day]");
        return Date::parse(text, &day).ok().map(midnight);
    }
    let formats = [
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond]"),
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]"),
        format_description!("[year]-[month]-[day]T[hour]:[minute]"),
    ];
    let mut times = formats
        .iter()
        .filter_map(|format| PrimitiveDateTime::parse(text, format).ok());
    times
        .next()
        .map(|time| time.assume_utc().unix_timestamp_nanos())
}

/// Seconds since 1970, and nanoseconds.
fn seconds(text: &str) -> Option<(i64, u32)> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    Some((whole.parse().ok()?, format!("{part:0<9}").parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, `logs --since` shows other lines than were asked for.
    #[test]
    fn moments_are_read() {
        let now = 1_800_000_000_000_000_000;
        let second = 1_000_000_000;
        let new_year = 1_767_225_600 * second;
        for (text, expected) in [
            ("90s", now - 90 * second),
            ("1h30m", now - 5400 * second),
            ("500ms", now - second / 2),
            ("1767225600", new_year),
            ("1767225600.25", new_year + second / 4),
            ("2026-01-01", new_year),
            ("2026-01-01T00:00", new_year),
            ("2026-01-01T00:00:00", new_year),
            ("2026-01-01T00:00:00Z", new_year),
            ("2026-01-01T01:00:00+01:00", new_year),
            ("2026-01-01T00:00:00.5", new_year + second / 2),
        ] {
            assert_eq!(read(text, now), Some(expected), "{text}");
        }
        for bad in [
            "",
            "yesterday",
            "-1h",
            "1x",
            "2026-13-01",
            "2026-01-01T25:00",
            ".5",
        ] {
            assert_eq!(read(bad, now), None, "{bad}");
        }
    }
}
