//! Devices of the host's; and what of them a VM can have, and what its own kernel has.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::as_text;

/// A device in a container: `SOURCE[:TARGET[:PERMISSIONS]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// A device of the host's; for a VM a block device, or one of [`OF_THE_GUEST`].
    pub source: PathBuf,
    /// Where it is in the container.
    pub target: String,
    /// Some of `r`, `w` and `m`: it may be read, written, made.
    pub access: String,
}

/// What the guest's kernel has, of its own: nothing of the host's is behind these.
pub const OF_THE_GUEST: [&str; 4] = [
    "/dev/fuse",
    "/dev/kmsg",
    "/dev/loop-control",
    "/dev/net/tun",
];

impl Device {
    /// Whether it is not written to.
    pub fn is_read_only(&self) -> bool {
        !self.access.contains('w')
    }

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
        Ok(Self {
            source: source.into(),
            target: target.to_owned(),
            access: permissions.to_owned(),
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = self.source.display();
        write!(f, "{source}:{}:{}", self.target, self.access)
    }
}

as_text!(Device);

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a container gets another device than was said, or writes where it must not.
    #[test]
    fn devices_are_read() {
        for (text, source, target, access) in [
            ("/dev/sdb", "/dev/sdb", "/dev/sdb", "rwm"),
            ("/dev/sdb:r", "/dev/sdb", "/dev/sdb", "r"),
            ("/dev/sdb:/dev/data", "/dev/sdb", "/dev/data", "rwm"),
            ("/dev/sdb:/dev/data:r", "/dev/sdb", "/dev/data", "r"),
        ] {
            let device: Device = text.parse().unwrap();
            let found = (device.source.to_str().unwrap(), device.target.as_str());
            assert_eq!((found, &device.access[..]), ((source, target), access));
            assert_eq!(device.is_read_only(), access == "r");
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        for text in ["", "sdb", "/dev/sdb:", "/dev/a:x", "/a:/b:rwx", "/a:/b:r:w"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
