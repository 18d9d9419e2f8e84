//! `--cpuset-cpus`: CPUs of the host's, as the kernel lists them.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::as_text;

/// CPUs by their numbers: `0-3,6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuSet(pub BTreeSet<usize>);

/// More than any host has, and than the kernel takes in one set.
const MAX: usize = 1024;

impl FromStr for CpuSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no list of CPUs such as 0-3,6");
        let number = |text: &str| match text.parse::<usize>() {
            Ok(number) if number < MAX => Ok(number),
            _ => Err(bad()),
        };
        let mut all = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(bad());
            }
            all.extend(first..=last);
        }
        Ok(Self(all))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(","))
    }
}

as_text!(CpuSet);

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a container runs on other CPUs than it was given.
    #[test]
    fn lists_are_read() {
        let read = |text: &str| text.parse::<CpuSet>().map(|set| set.to_string());
        for (text, expected) in [("0", "0"), ("0-2,5", "0,1,2,5"), ("3,1-2", "1,2,3")] {
            assert_eq!(read(text).unwrap(), expected);
        }
        for bad in ["", "a", "1-", "-1", "2-1", "0,,1", "0-9999", "1 2"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
