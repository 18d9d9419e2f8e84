//! What the kernel mounts as its root.

use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::{DiskConfig, PmemConfig, is_default};

/// The device with the root file system; the first of its kind. In JSON, and on the command line, a
/// disk, or with `pmem` set a [`PmemConfig`] whose file is called `path` like a disk's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootConfig {
    /// `/dev/vda`.
    Disk(DiskConfig),
    /// `/dev/pmem0`.
    Pmem(PmemConfig),
}

impl RootConfig {
    /// Whether the kernel mounts it read-only.
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Disk(disk) => disk.ro,
            Self::Pmem(pmem) => pmem.ro,
        }
    }
}

/// The JSON form of a root on pmem.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PmemRoot {
    path: PathBuf,
    pmem: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    ro: bool,
}

impl Serialize for RootConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Disk(disk) => disk.serialize(serializer),
            Self::Pmem(PmemConfig { file, ro }) => PmemRoot {
                path: file.clone(),
                pmem: true,
                ro: *ro,
            }
            .serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for RootConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(deserializer)?;
        if fields.get("pmem") == Some(&Value::Bool(false)) {
            fields.remove("pmem");
        }
        if fields.contains_key("pmem") {
            let root = PmemRoot::deserialize(Value::Object(fields)).map_err(D::Error::custom)?;
            return Ok(Self::Pmem(PmemConfig {
                file: root.path,
                ro: root.ro,
            }));
        }
        let disk = DiskConfig::deserialize(Value::Object(fields));
        disk.map(Self::Disk).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_options;

    /// If it fails, a root lands on another device than asked for, or an option that its device
    /// does not have is ignored.
    #[test]
    fn a_root_is_a_disk_or_pmem() {
        let parse = |text| parse_options::<RootConfig>(text, Some("path"));
        let pmem = |ro| {
            RootConfig::Pmem(PmemConfig {
                file: "i".into(),
                ro,
            })
        };
        assert_eq!(parse("i,pmem").unwrap(), pmem(false));
        assert_eq!(parse("i,ro,pmem=on").unwrap(), pmem(true));
        for text in ["i,id=x", "i,id=x,pmem=off"] {
            let RootConfig::Disk(disk) = parse(text).unwrap() else {
                panic!("{text} is no disk");
            };
            assert_eq!(disk.id.as_deref(), Some("x"));
        }
        for (text, part) in [
            ("i,pmem,id=x", "`id`"),
            ("i,pmem=7", "on or off"),
            ("ro,pmem", "path"),
            ("i,readonly", "`readonly`"),
        ] {
            let first = (!text.starts_with("ro")).then_some("path");
            let error = parse_options::<RootConfig>(text, first).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        let root = pmem(true);
        let text = serde_json::to_string(&root).unwrap();
        assert_eq!(serde_json::from_str::<RootConfig>(&text).unwrap(), root);
    }
}
