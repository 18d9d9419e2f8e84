//! Whether a container starts again when it ends.

use std::fmt;
use std::str::FromStr;

use super::as_text;

/// Docker's restart policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// It stays as it ended.
    #[default]
    No,
    /// However it ended.
    Always,
    /// The same; the difference is a daemon's, at its start.
    UnlessStopped,
    /// When it failed, so many times at most.
    OnFailure(Option<u32>),
}

impl Restart {
    /// Whether a container that ended with `code` for the `times`-th time after 0 restarts starts
    /// again. One that somebody stopped never does.
    pub fn applies(self, code: i32, times: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure(most) => code != 0 && most.is_none_or(|most| times < most),
        }
    }
}

impl FromStr for Restart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "no" | "" => Ok(Self::No),
            "always" => Ok(Self::Always),
            "unless-stopped" => Ok(Self::UnlessStopped),
            "on-failure" => Ok(Self::OnFailure(None)),
            _ => {
                let times = text.strip_prefix("on-failure:").map(str::parse);
                match times {
                    Some(Ok(times)) => Ok(Self::OnFailure(Some(times))),
                    _ => Err("expected no, always, unless-stopped or on-failure[:TIMES]".into()),
                }
            }
        }
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
            Self::OnFailure(None) => f.write_str("on-failure"),
            Self::OnFailure(Some(times)) => write!(f, "on-failure:{times}"),
        }
    }
}

as_text!(Restart);

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, containers restart that should not, or stay down.
    #[test]
    fn policies_hold() {
        for (text, code, times, again) in [
            ("no", 1, 0, false),
            ("always", 0, 100, true),
            ("unless-stopped", 0, 1, true),
            ("on-failure", 0, 0, false),
            ("on-failure", 3, 100, true),
            ("on-failure:2", 3, 1, true),
            ("on-failure:2", 3, 2, false),
        ] {
            let policy: Restart = text.parse().unwrap();
            assert_eq!(policy.applies(code, times), again, "{text} {code} {times}");
            assert_eq!(policy.to_string(), text);
        }
    }
}
