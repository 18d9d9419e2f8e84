//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// More than any host has; keeps every later sum of sizes and addresses far from overflow.
const MAX: u64 = 1 << 46;

/// A size of guest memory: whole MiB, written `512`, `512M`, `512MiB`, `2G` or `2GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

/// A number of bytes: `4096`, `64K`, `10M` or `1G`, where K is 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// Why a text is no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a known unit.
    #[error("expected a size such as 512 (MiB), 512M or 2G")]
    Form,
    /// Not a number of bytes with a known unit.
    #[error("expected a number of bytes such as 4096, 64K, 10M or 1G")]
    Bytes,
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
        let (count, unit) = split(text).ok_or(SizeError::Form)?;
        let unit = match unit.as_str() {
            "" | "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            _ => return Err(SizeError::Form),
        };
        Ok(Self(product(count, unit)?))
    }
}

impl ByteSize {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let (count, unit) = split(text).ok_or(SizeError::Bytes)?;
        let unit = match unit.as_str() {
            "" => 1,
            "k" | "kib" => KIB,
            "m" | "mib" => MIB,
            "g" | "gib" => GIB,
            _ => return Err(SizeError::Bytes),
        };
        Ok(Self(product(count, unit)?))
    }
}

/// The digits of a size, and its unit in lower case.
fn split(text: &str) -> Option<(&str, String)> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| (digits, text[digits.len()..].to_ascii_lowercase()))
}

fn product(count: &str, unit: u64) -> Result<u64, SizeError> {
    let count: u64 = count.parse().map_err(|_| SizeError::TooLarge)?;
    match count.checked_mul(unit) {
        Some(bytes) if bytes <= MAX => Ok(bytes),
        _ => Err(SizeError::TooLarge),
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

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(GIB, "G"), (MIB, "M"), (KIB, "K")];
        let fits = |unit: u64| self.0 > 0 && self.0.is_multiple_of(unit);
        match units.into_iter().find(|&(unit, _)| fits(unit)) {
            Some((unit, name)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for MemorySize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, SizeError::Form)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read(deserializer, SizeError::Bytes)
    }
}

/// Reads a size from a number or a text; says what it expected where there is neither.
fn read<'de, D, T>(deserializer: D, expected: SizeError) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = SizeError>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Number(u64),
        Text(String),
    }
    let text = match Form::deserialize(deserializer) {
        Ok(Form::Number(number)) => number.to_string(),
        Ok(Form::Text(text)) => text,
        Err(_) => return Err(D::Error::custom(expected)),
    };
    text.parse().map_err(D::Error::custom)
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

    /// If it fails, a rate is another than was written, or not the same after `--print-config`.
    #[test]
    fn bytes_are_read_as_written() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("64K", 65536),
            ("10mib", 10 << 20),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize::from_bytes(bytes)), "{text}");
            let shown = ByteSize::from_bytes(bytes).to_string();
            assert_eq!(shown.parse(), Ok(ByteSize::from_bytes(bytes)), "{shown}");
        }
        for text in ["", "K", "1T", "-1", "1.5M"] {
            assert_eq!(text.parse::<ByteSize>(), Err(SizeError::Bytes), "{text}");
        }
    }
}
