//! Shared directories.

use std::path::PathBuf;

use cofferdam_devices::virtio::fs::MAX_TAG;
use serde::{Deserialize, Serialize};

use super::{ConfigError, is_default, not_empty};

/// A directory that the guest mounts by its tag. Several with one tag are one device, whose root
/// has each of them under its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FsConfig {
    /// What the guest mounts: at most 36 bytes.
    pub tag: String,
    /// The directory, served by a process of our own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Its name in the root of what the guest mounts, or in a directory of its own there (`DIR/NAME`);
    /// without one it is that root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The guest may not write.
    #[serde(skip_serializing_if = "is_default")]
    pub ro: bool,
    /// Set-ID bits and file capabilities that the guest gives to programs are kept: whoever on the host
    /// can reach such a program becomes the user whose it is.
    #[serde(skip_serializing_if = "is_default")]
    pub suid: bool,
    /// The guest may make device nodes, which are the host's devices for whoever on the host can reach
    /// them.
    #[serde(skip_serializing_if = "is_default")]
    pub dev: bool,
    /// Instead of a directory: the Unix socket of a vhost-user file-system daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

impl FsConfig {
    /// Checks what can be said of it alone.
    fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |why| Err(self.error(why));
        if self.tag.is_empty() || self.tag.len() > MAX_TAG {
            return wrong("the tag must have 1 to 36 bytes");
        }
        if self.tag.chars().any(char::is_control) {
            return wrong("the tag has a control character");
        }
        not_empty("fs", self.path.as_deref().or(self.socket.as_deref()))?;
        if self.path.is_some() == self.socket.is_some() {
            return wrong("give either path=DIRECTORY or socket=PATH");
        }
        let has_options = self.name.is_some() || self.ro || self.suid || self.dev;
        if self.socket.is_some() && has_options {
            return wrong("all else is the daemon's affair where a socket is given");
        }
        let is_bad = |step: &str| {
            matches!(step, "" | "." | "..") || step.contains(['\0', ',']) || step.len() > 255
        };
        match self.name.as_deref() {
            Some(name) if name.split('/').any(is_bad) => {
                wrong("the name is none that a directory can have")
            }
            Some(name) if name.split('/').count() > 2 => {
                wrong("the name is more than that of a directory and one in it")
            }
            _ => Ok(()),
        }
    }

    /// Where it is in the root: its name, or that of the directory that it alone is in.
    fn place(&self) -> Option<&str> {
        self.name.as_deref()?.split('/').next()
    }

    fn error(&self, why: &'static str) -> ConfigError {
        ConfigError::Fs {
            tag: self.tag.clone(),
            why,
        }
    }
}

/// Checks all of them together.
pub(super) fn validate(all: &[FsConfig]) -> Result<(), ConfigError> {
    all.iter().try_for_each(FsConfig::validate)?;
    for (at, fs) in all.iter().enumerate() {
        for before in all.iter().take(at).filter(|other| other.tag == fs.tag) {
            if before.name.is_none() || fs.name.is_none() {
                return Err(fs.error("directories that share a tag must each have a name"));
            }
            if (before.suid, before.dev) != (fs.suid, fs.dev) {
                return Err(fs.error("directories that share a tag must agree on suid and dev"));
            }
            if before.place() == fs.place() {
                return Err(fs.error("two directories have one name, or are in one directory"));
            }
        }
    }
    Ok(())
}

/// The devices: for each tag the directories that it has, in the order of their first mention.
pub(super) fn by_tag(all: &[FsConfig]) -> Vec<(&str, Vec<&FsConfig>)> {
    let mut devices: Vec<(&str, Vec<&FsConfig>)> = Vec::new();
    for fs in all {
        match devices.iter_mut().find(|(tag, _)| *tag == fs.tag) {
            Some((_, same)) => same.push(fs),
            None => devices.push((&fs.tag, vec![fs])),
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fs(tag: &str, name: Option<&str>) -> FsConfig {
        FsConfig {
            tag: tag.into(),
            path: Some("/srv".into()),
            name: name.map(Into::into),
            ..FsConfig::default()
        }
    }

    /// If it fails, a guest gets a device that it cannot mount, or a name leads out of the root.
    #[test]
    fn what_cannot_be_shared_is_refused() {
        let socket = Some(PathBuf::from("/s"));
        for bad in [
            vec![fs("", None)],
            vec![fs(&"t".repeat(37), None)],
            vec![fs("a\nb", None)],
            vec![fs("t", Some(".."))],
            vec![fs("t", Some("a/../b"))],
            vec![fs("t", Some("/a"))],
            vec![fs("t", Some("a/"))],
            vec![fs("t", Some("a/b,c"))],
            vec![fs("t", Some("a/b/c"))],
            vec![fs("t", Some("a/b")), fs("t", Some("a/c"))],
            vec![fs("t", Some("a/b")), fs("t", Some("a"))],
            vec![fs("t", Some("a")), fs("t", Some("a/b"))],
            vec![fs("t", Some(""))],
            vec![fs("t", None), fs("t", Some("a"))],
            vec![fs("t", Some("a")), fs("t", Some("a"))],
            vec![FsConfig {
                path: None,
                ..fs("t", None)
            }],
            vec![FsConfig {
                socket: socket.clone(),
                ..fs("t", None)
            }],
            vec![FsConfig {
                path: None,
                socket: socket.clone(),
                ro: true,
                ..fs("t", None)
            }],
            vec![FsConfig {
                path: None,
                socket,
                suid: true,
                ..fs("t", None)
            }],
            vec![
                fs("t", Some("a")),
                FsConfig {
                    dev: true,
                    ..fs("t", Some("b"))
                },
            ],
        ] {
            validate(&bad).unwrap_err();
        }
        validate(&[fs("t", Some("a")), fs("u", None), fs("t", Some("b"))]).unwrap();
        validate(&[
            fs("t", Some("0/a")),
            fs("t", Some("1/a")),
            fs("t", Some("b")),
        ])
        .unwrap();
    }

    /// If it fails, directories with one tag become devices that hide each other.
    #[test]
    fn one_tag_is_one_device() {
        let all = [fs("t", Some("a")), fs("u", None), fs("t", Some("b"))];
        let devices = by_tag(&all);
        assert_eq!(devices.len(), 2);
        assert_eq!(devices[0], ("t", vec![&all[0], &all[2]]));
    }
}
