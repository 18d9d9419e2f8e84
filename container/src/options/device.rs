//! Devices: what of the host's a VM can have, and what its own kernel has.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::as_text;

/// A device in a container: `SOURCE[:TARGET[:PERMISSIONS]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// A block device of the host's, or one of [`OF_THE_GUEST`].
    pub source: PathBuf,
    /// Where it is in the container.
    pub target: String,
    /// A disk that is not written to.
    pub read_only: bool,
}

/// What the guest's kernel has, of its own: nothing of the host's is behind these.
pub const OF_THE_GUEST: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

impl Device {
    /// Whether the guest's kernel has it by itself.
    pub fn is_of_the_guest(&self) -> bool {
        OF_THE_GUEST
            .iter()
            .any(|path| Path::new(path) == self.source)
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!("expected SOURCE[:TARGET[:PERMISSIONS]], as /dev/sdb:/dev/data:r, not {text:?}")
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, permissions) = match parts[..] {
            [source] => (source, source, "rwm"),
            // As Docker reads it: without a slash it is permissions.
            [source, target] if target.starts_with('/') => (source, target, "rwm"),
            [source, permissions] => (source, source, permissions),
            [source, target, permissions] => (source, target, permissions),
            _ => return Err(bad()),
        };
        let known = !permissions.is_empty() && permissions.chars().all(|c| "rwm".contains(c));
        if !source.starts_with('/') || !target.starts_with('/') || !known {
            return Err(bad());
        }
        let device = Self {
            source: source.into(),
            target: target.to_owned(),
            read_only: !permissions.contains('w'),
        };
        if device.read_only && device.is_of_the_guest() {
            return Err(format!("{source} cannot be read-only"));
        }
        Ok(device)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let permissions = if self.read_only { "r" } else { "rwm" };
        write!(f, "{}:{}:{permissions}", self.source.display(), self.target)
    }
}

as_text!(Device);

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a container gets another device than was said, or writes where it must not.
    #[test]
    fn devices_are_read() {
        for (text, source, target, read_only) in [
            ("/dev/sdb", "/dev/sdb", "/dev/sdb", false),
            ("/dev/sdb:r", "/dev/sdb", "/dev/sdb", true),
            ("/dev/sdb:/dev/data", "/dev/sdb", "/dev/data", false),
            ("/dev/sdb:/dev/data:r", "/dev/sdb", "/dev/data", true),
        ] {
            let device: Device = text.parse().unwrap();
            let found = (device.source.to_str().unwrap(), device.target.as_str());
            assert_eq!((found, device.read_only), ((source, target), read_only));
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for text in [
            "",
            "sdb",
            "/dev/sdb:",
            "/dev/a:x",
            "/a:/b:rwx",
            "/a:/b:r:w",
            "/dev/fuse:r",
        ] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
