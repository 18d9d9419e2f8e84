//! `--memory-swap`: memory and swap together.

use std::fmt;
use std::str::FromStr;

use super::{Bytes, as_text};

/// So much; or, as -1, as much as there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySwap {
    /// Bytes of both.
    Limit(Bytes),
    /// No limit.
    Unlimited,
}

impl FromStr for MemorySwap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "-1" => Ok(Self::Unlimited),
            text => text.parse().map(Self::Limit),
        }
    }
}

impl fmt::Display for MemorySwap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(bytes) => write!(f, "{}", bytes.0),
            Self::Unlimited => f.write_str("-1"),
        }
    }
}

as_text!(MemorySwap);
