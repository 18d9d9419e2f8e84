//! Resource limits.

use std::fmt;
use std::str::FromStr;

use oci_spec::runtime::PosixRlimitType;

use super::as_text;

/// `TYPE=SOFT[:HARD]`; -1 and `unlimited` are no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ulimit {
    /// What is limited.
    pub kind: PosixRlimitType,
    /// What holds.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

const KINDS: [(&str, PosixRlimitType); 15] = [
    ("as", PosixRlimitType::RlimitAs),
    ("core", PosixRlimitType::RlimitCore),
    ("cpu", PosixRlimitType::RlimitCpu),
    ("data", PosixRlimitType::RlimitData),
    ("fsize", PosixRlimitType::RlimitFsize),
    ("locks", PosixRlimitType::RlimitLocks),
    ("memlock", PosixRlimitType::RlimitMemlock),
    ("msgqueue", PosixRlimitType::RlimitMsgqueue),
    ("nice", PosixRlimitType::RlimitNice),
    ("nofile", PosixRlimitType::RlimitNofile),
    ("nproc", PosixRlimitType::RlimitNproc),
    ("rss", PosixRlimitType::RlimitRss),
    ("rtprio", PosixRlimitType::RlimitRtprio),
    ("sigpending", PosixRlimitType::RlimitSigpending),
    ("stack", PosixRlimitType::RlimitStack),
];

impl FromStr for Ulimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("expected TYPE=SOFT[:HARD], as nofile=1024:4096, not {text:?}");
        let (name, limits) = text.split_once('=').ok_or_else(bad)?;
        let known = KINDS.into_iter().find(|(known, _)| *known == name);
        let Some((_, kind)) = known else {
            let names = KINDS.map(|(name, _)| name).join(", ");
            return Err(format!("there is no limit {name:?}; there are {names}"));
        };
        let number = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            _ => text.parse().map_err(|_| bad()),
        };
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard {
            return Err(format!("{text}: the soft limit is above the hard limit"));
        }
        Ok(Self { kind, soft, hard })
    }
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(_, kind)| *kind == self.kind);
        let name = name.map_or("", |(name, _)| name);
        write!(f, "{name}={}:{}", self.soft, self.hard)
    }
}

as_text!(Ulimit);

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, limits are misread or lost when a container is stored.
    #[test]
    fn limits_are_read() {
        let limit: Ulimit = "nofile=1024:4096".parse().unwrap();
        assert_eq!((limit.soft, limit.hard), (1024, 4096));
        assert_eq!(limit.to_string().parse(), Ok(limit));
        let limit: Ulimit = "core=-1".parse().unwrap();
        assert_eq!((limit.soft, limit.hard), (u64::MAX, u64::MAX));
        for text in ["nofile", "nofile=", "nofile=2:1", "files=1", "nofile=a"] {
            assert!(text.parse::<Ulimit>().is_err(), "{text}");
        }
    }
}
