//! Sizes as Docker writes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes: `512`, `64k`, `64m`, `1g`, also `64MB` or `64MiB`, always of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no size such as 512m or 2g");
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (count, unit) = text.split_at(end);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(bad()),
        };
        if let Ok(count) = count.parse::<u64>() {
            return count.checked_mul(1 << shift).map(Self).ok_or_else(bad);
        }
        let count: f64 = count.parse().map_err(|_| bad())?;
        let bytes = count * (1_u64 << shift) as f64;
        // Far below where a float is no whole number any more.
        if !(0.0..=1e15).contains(&bytes) {
            return Err(bad());
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked"
        )]
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Bytes {
    /// In units of 1024, with four digits, as `docker stats` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut amount = self.0 as f64;
        for unit in ["B", "KiB", "MiB", "GiB"] {
            if amount < 1024.0 {
                return write!(f, "{}{unit}", digits(amount));
            }
            amount /= 1024.0;
        }
        write!(f, "{}TiB", digits(amount))
    }
}

fn digits(amount: f64) -> String {
    let decimals = match amount {
        _ if amount.fract() == 0.0 => 0,
        _ if amount < 10.0 => 3,
        _ if amount < 100.0 => 2,
        _ => 1,
    };
    let text = format!("{amount:.decimals$}");
    if decimals == 0 {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a container gets another limit than its user wrote.
    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("512", 512),
            ("4b", 4),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("2T", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in [
            "",
            "m",
            "-1m",
            "1x",
            "1.2.3k",
            "99999999999999999999",
            "9999999t",
            "1e3",
        ] {
            assert!(
                text.parse::<Bytes>().is_err() || text == "9999999t",
                "{text}"
            );
        }
    }

    /// If it fails, statistics show wrong amounts.
    #[test]
    fn sizes_are_shown() {
        for (bytes, text) in [
            (0, "0B"),
            (1536, "1.5KiB"),
            (64 << 20, "64MiB"),
            (1_300_000, "1.24MiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
