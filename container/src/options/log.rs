//! `--log-opt`: how much is kept of what a container prints.

use super::{Bytes, OptionsError};

/// More files than this are no log.
const MAX_FILES: u32 = 1000;

/// How large a log may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimit {
    /// Bytes of a file; without it there is one file, which has no end.
    pub size: Option<u64>,
    /// How many files there are, with the one that is written to.
    pub files: u32,
}

impl Default for LogLimit {
    /// What a container has if nobody says otherwise.
    fn default() -> Self {
        Self {
            size: Some(10 << 20),
            files: 5,
        }
    }
}

impl LogLimit {
    /// What options of Docker's names say; what they do not say is the default.
    pub fn of(options: &[String]) -> Result<Self, OptionsError> {
        let mut limit = Self::default();
        for option in options {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let bad = || OptionsError::Log(option.clone());
            match name {
                "max-size" if value == "-1" => limit.size = None,
                "max-size" => {
                    let size: Bytes = value.parse().map_err(|_| bad())?;
                    limit.size = Some(size.0).filter(|size| *size > 0);
                    limit.size.ok_or_else(bad)?;
                }
                "max-file" => {
                    let files = value.parse().map_err(|_| bad())?;
                    limit.files = Some(files)
                        .filter(|files| (1..=MAX_FILES).contains(files))
                        .ok_or_else(bad)?;
                }
                _ => return Err(bad()),
            }
        }
        Ok(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a container's log is larger or smaller than its user wants.
    #[test]
    fn log_options_are_dockers() {
        let of = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(|text| (*text).to_owned()).collect();
            LogLimit::of(&options).ok()
        };
        let limit = |size, files| Some(LogLimit { size, files });
        assert_eq!(of(&[]), limit(Some(10 << 20), 5));
        assert_eq!(of(&["max-size=1m", "max-file=2"]), limit(Some(1 << 20), 2));
        // The last counts.
        assert_eq!(of(&["max-size=1m", "max-size=-1"]), limit(None, 5));
        for bad in [
            "max-size",
            "max-size=0",
            "max-size=-2",
            "max-size=x",
            "max-file=0",
            "max-file=1001",
            "max-file=-1",
            "compress=true",
            "",
        ] {
            assert_eq!(of(&[bad]), None, "{bad}");
        }
    }
}
