//! Sizes of memory as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// More than any host has; keeps every later sum of sizes and addresses far from overflow.
const MAX: u64 = 1 << 46;

/// A size of guest memory: whole MiB, written `512`, `512M`, `512MiB`, `2G` or `2GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

/// Why a text is no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a known unit.
    #[error("expected a size such as 512 (MiB), 512M or 2G")]
    Form,
    /// More than a machine can have.
    #[error("that is more than any host has")]
    TooLarge,
}

impl MemorySize {
    /// So many MiB.
    pub const fn from_mib(mib: u32) -> Self {
        Self(mib as u64 * MIB)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) || digits.is_empty() {
            return Err(SizeError::Form);
        }
        let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            _ => return Err(SizeError::Form),
        };
        let count: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
        match count.checked_mul(unit) {
            Some(bytes) if bytes <= MAX => Ok(Self(bytes)),
            _ => Err(SizeError::TooLarge),
        }
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes.is_multiple_of(GIB) && bytes > 0 => write!(f, "{}G", bytes / GIB),
            bytes => write!(f, "{}M", bytes / MIB),
        }
    }
}

impl Serialize for MemorySize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a size such as 512 (MiB), \"512M\" or \"2G\""
        )]
        enum Form {
            Mib(u64),
            Text(String),
        }
        let text = match Form::deserialize(deserializer)? {
            Form::Mib(mib) => mib.to_string(),
            Form::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a VM gets another size of memory than was written.
    #[test]
    fn sizes_are_read_as_written() {
        for (text, mib) in [
            ("512", 512),
            ("512M", 512),
            ("512mib", 512),
            ("2G", 2048),
            ("2GiB", 2048),
        ] {
            assert_eq!(text.parse(), Ok(MemorySize::from_mib(mib)), "{text}");
        }
        assert_eq!(MemorySize::from_mib(2048).to_string(), "2G");
        assert_eq!(MemorySize::from_mib(1536).to_string(), "1536M");
    }

    /// If it fails, a size wraps around and the guest gets a fraction of it.
    #[test]
    fn nonsense_and_giants_are_refused() {
        for text in ["", "M", "-1", "1.5G", "1T", "0x10", "1G2", "G1"] {
            assert_eq!(text.parse::<MemorySize>(), Err(SizeError::Form), "{text}");
        }
        for text in ["99999999999999999999", "17592186044416G", "1048577G"] {
            assert_eq!(
                text.parse::<MemorySize>(),
                Err(SizeError::TooLarge),
                "{text}"
            );
        }
    }
}
