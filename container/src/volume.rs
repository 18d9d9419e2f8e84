//! Volumes: directories of the host that have a name and outlive containers.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{FileError, file, private_directory};
use crate::options::pairs;
use crate::state::{self, Now, StateError, named};

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// None has the name.
    #[error("no such volume: {0}")]
    Unknown(String),
    /// The name is none.
    #[error("{0:?} is no name of a volume: [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed")]
    Name(String),
    /// A container has it.
    #[error("volume {volume} is in use by container {container}")]
    InUse {
        /// The volume.
        volume: String,
        /// Whose.
        container: String,
    },
    /// A file or directory of ours.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its record.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// When it was made, as RFC 3339 has it.
    pub created_at: String,
    /// Where its files are.
    pub mountpoint: PathBuf,
    /// Labels.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Always `local`.
    pub driver: String,
    /// Always `local`.
    pub scope: String,
}

/// All volumes.
#[derive(Clone, Debug)]
pub struct Volumes {
    dir: PathBuf,
}

const RECORD: &str = "volume.json";

impl Volumes {
    /// Those below a directory.
    pub fn at(data: &Path) -> Self {
        Self {
            dir: data.join("volumes"),
        }
    }

    /// The volume of that name, which is made if it is not there.
    pub fn make(&self, name: &str, labels: &[String]) -> Result<Volume, VolumeError> {
        private_directory(&self.dir)?;
        if let Ok(volume) = self.find(name) {
            return Ok(volume);
        }
        if !state::is_name(name) {
            return Err(VolumeError::Name(name.to_owned()));
        }
        let mountpoint = self.dir.join(name).join("_data");
        fs::create_dir_all(&mountpoint).map_err(file("cannot make", &mountpoint))?;
        let volume = Volume {
            name: name.to_owned(),
            created_at: Now::text(),
            mountpoint,
            labels: pairs(labels),
            driver: "local".into(),
            scope: "local".into(),
        };
        state::save(&self.dir.join(name).join(RECORD), &volume)?;
        Ok(volume)
    }

    /// The volume of that name.
    pub fn find(&self, name: &str) -> Result<Volume, VolumeError> {
        let volume = named::find(&self.dir, name, RECORD)?;
        volume.ok_or_else(|| VolumeError::Unknown(name.to_owned()))
    }

    /// All of them, by name.
    pub fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        Ok(named::list(&self.dir, RECORD)?)
    }

    /// Removes one, with its files. `user`: the container that has it, if one does.
    pub fn remove(&self, name: &str, user: Option<&str>) -> Result<(), VolumeError> {
        let volume = self.find(name)?;
        if let Some(container) = user {
            return Err(VolumeError::InUse {
                volume: volume.name,
                container: container.to_owned(),
            });
        }
        let dir = self.dir.join(&volume.name);
        Ok(fs::remove_dir_all(&dir).map_err(file("cannot remove", &dir))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, data in volumes is lost or mixed up.
    #[test]
    fn volumes_are_kept() {
        let dir = std::env::temp_dir().join(format!("cofferdam-volumes-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let volumes = Volumes::at(&dir);
        assert!(volumes.list().unwrap().is_empty());
        let volume = volumes.make("data", &["a=1".into()]).unwrap();
        fs::write(volume.mountpoint.join("file"), "x").unwrap();
        assert_eq!(volumes.make("data", &[]).unwrap(), volume);
        assert_eq!(volumes.list().unwrap(), [volume]);
        assert!(matches!(
            volumes.make("../x", &[]),
            Err(VolumeError::Name(_))
        ));
        assert!(matches!(volumes.find(".."), Err(VolumeError::Unknown(_))));
        let error = volumes.remove("data", Some("web")).unwrap_err().to_string();
        assert!(error.contains("web"), "{error}");
        volumes.remove("data", None).unwrap();
        assert!(volumes.find("data").is_err() && !dir.join("volumes/data").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
