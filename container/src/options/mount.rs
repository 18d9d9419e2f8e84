//! What is mounted into a container.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Bytes, as_text};

/// What a mount is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type", content = "source")]
pub enum Kind {
    /// A directory or file of the host.
    Bind {
        /// Its absolute path.
        path: PathBuf,
        /// A directory is made there if there is nothing: `-v` does, `--mount` does not.
        create: bool,
    },
    /// A volume by its name; without one it is the container's own.
    Volume(Option<String>),
    /// Memory.
    Tmpfs(Tmpfs),
}

/// What a container may leave on the host, in what is shared with it, beside files and directories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rights {
    /// Programs that run as their owner, or with capabilities.
    pub suid: bool,
    /// Device nodes.
    pub dev: bool,
}

/// A mount: `-v` and `--mount`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    #[serde(flatten)]
    pub kind: Kind,
    /// Where, in the container.
    pub target: String,
    /// The container may not write.
    pub read_only: bool,
    /// What it may leave there.
    #[serde(default)]
    pub rights: Rights,
}

/// A memory file system: `TARGET[:OPTION,…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// Where, in the container.
    pub target: String,
    /// mount(8)'s options.
    pub options: Vec<String>,
}

impl Mount {
    /// Reads `[SOURCE:]TARGET[:OPTION,…]`.
    pub fn from_volume(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => (None, target, ""),
            [source, target] => (Some(source), target, ""),
            [source, target, options] => (Some(source), target, options),
            _ => return Err("expected [SOURCE:]TARGET[:OPTIONS]".into()),
        };
        let (mut read_only, mut rights) = (false, Rights::default());
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => read_only = true,
                "suid" => rights.suid = true,
                "nosuid" => rights.suid = false,
                "dev" => rights.dev = true,
                "nodev" => rights.dev = false,
                // There is no SELinux to label for, and a mount's propagation ends at the VM.
                "rw" | "z" | "Z" | "rprivate" | "private" => {}
                _ => {
                    return Err(format!(
                        "the option {option:?} is not there; there are ro, rw, suid and dev"
                    ));
                }
            }
        }
        let kind = match source {
            None => Kind::Volume(None),
            Some(source) if source.starts_with(['/', '.', '~']) => Kind::Bind {
                path: absolute(source)?,
                create: true,
            },
            Some(name) => Kind::Volume(Some(volume_name(name)?)),
        };
        Ok(Self {
            kind,
            target: checked_target(target)?,
            read_only,
            rights,
        })
    }

    /// Reads `type=…,source=…,target=…`.
    pub fn from_mount(text: &str) -> Result<Self, String> {
        let (mut kind, mut source, mut target) = ("volume", None, None);
        let (mut read_only, mut options) = (false, Vec::new());
        let mut rights = Rights::default();
        for field in text.split(',') {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            match name {
                "type" => kind = value,
                "source" | "src" => source = Some(value),
                "target" | "dst" | "destination" => target = Some(value),
                "readonly" | "ro" => read_only = !matches!(value, "false" | "0"),
                "suid" => rights.suid = !matches!(value, "false" | "0"),
                "dev" => rights.dev = !matches!(value, "false" | "0"),
                "tmpfs-size" => options.push(format!("size={}", value.parse::<Bytes>()?.0)),
                "tmpfs-mode" => options.push(format!("mode={value}")),
                _ => return Err(format!("the field {name:?} is not there")),
            }
        }
        let target = checked_target(target.ok_or("target= is missing")?)?;
        if kind != "tmpfs" && !options.is_empty() {
            return Err("tmpfs-size and tmpfs-mode are for type=tmpfs".into());
        }
        let kind = match (kind, source) {
            ("bind", Some(path)) => Kind::Bind {
                path: absolute(path)?,
                create: false,
            },
            ("bind", None) => return Err("type=bind needs source=".into()),
            ("volume", name) => Kind::Volume(name.map(volume_name).transpose()?),
            ("tmpfs", None) => Kind::Tmpfs(Tmpfs {
                target: target.clone(),
                options,
            }),
            ("tmpfs", Some(_)) => return Err("type=tmpfs has no source".into()),
            (other, _) => {
                return Err(format!(
                    "there is no type {other:?}; there are bind, volume, tmpfs"
                ));
            }
        };
        Ok(Self {
            kind,
            target,
            read_only,
            rights,
        })
    }
}

impl FromStr for Tmpfs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (target, options) = text.split_once(':').unwrap_or((text, ""));
        let options = options.split(',').filter(|option| !option.is_empty());
        Ok(Self {
            target: checked_target(target)?,
            options: options.map(str::to_owned).collect(),
        })
    }
}

impl fmt::Display for Tmpfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.target)?;
        if !self.options.is_empty() {
            write!(f, ":{}", self.options.join(","))?;
        }
        Ok(())
    }
}

as_text!(Tmpfs);

fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("{path}: {error}"))
}

/// The target, if it is absolute and below the root.
fn checked_target(target: &str) -> Result<String, String> {
    let path = Path::new(target);
    let steps = path.components().skip(1).count();
    if !path.is_absolute() || steps == 0 || path.components().any(|c| c == Component::ParentDir) {
        return Err(format!("the target {target:?} is no absolute path below /"));
    }
    Ok(target.to_owned())
}

/// The name of a volume, if it can be one.
pub fn volume_name(name: &str) -> Result<String, String> {
    if crate::state::is_name(name) {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "{name:?} is no name of a volume ([a-zA-Z0-9][a-zA-Z0-9_.-]*); a path begins with / or ."
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, other files of the host are mounted than asked for, or writable ones.
    #[test]
    fn mounts_are_read() {
        let mount = Mount::from_volume("/a:/b:ro,z").unwrap();
        assert!(mount.read_only && mount.target == "/b");
        let bind = |create| Kind::Bind {
            path: "/a".into(),
            create,
        };
        assert_eq!(mount.kind, bind(true));
        assert_eq!(
            Mount::from_volume("data:/b").unwrap().kind,
            Kind::Volume(Some("data".into()))
        );
        assert_eq!(Mount::from_volume("/b").unwrap().kind, Kind::Volume(None));
        let mount = Mount::from_mount("type=bind,src=/a,dst=/b,readonly").unwrap();
        assert!(mount.read_only && mount.kind == bind(false));
        let rights = |suid, dev| Rights { suid, dev };
        assert_eq!(mount.rights, rights(false, false));
        let mount = Mount::from_volume("/a:/b:suid,dev").unwrap();
        assert_eq!(mount.rights, rights(true, true));
        let mount = Mount::from_mount("type=bind,src=/a,dst=/b,suid,dev=false").unwrap();
        assert_eq!(mount.rights, rights(true, false));
        let mount = Mount::from_mount("type=tmpfs,target=/t,tmpfs-size=1m").unwrap();
        let Kind::Tmpfs(tmpfs) = mount.kind else {
            panic!()
        };
        assert_eq!(tmpfs.to_string(), "/t:size=1048576");
        for text in [
            "/a:b",
            "/a:/",
            "/a:/b:odd",
            "a/b:/c",
            "/a:/b/../..",
            "a:b:c:d",
            "-x:/b",
        ] {
            assert!(Mount::from_volume(text).is_err(), "{text}");
        }
        for text in [
            "type=bind,target=/b",
            "type=npipe,target=/b",
            "target=b",
            "type=tmpfs",
        ] {
            assert!(Mount::from_mount(text).is_err(), "{text}");
        }
    }
}
