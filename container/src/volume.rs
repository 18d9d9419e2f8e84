//! Volumes: they have a name and outlive containers. Each is an image of a file system, for one VM at a
//! time, or a directory that is shared.

pub mod visit;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::{self, DiskError, Purpose};
use crate::files::{FileError, file, private_directory, remove_tree};
use crate::options::{Bytes, pairs};
use crate::state::{self, Lock, Now, StateError, named};

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// None has the name.
    #[error("no such volume: {0}")]
    Unknown(String),
    /// The name is none.
    #[error("{0:?} is no name of a volume: [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed")]
    Name(String),
    /// An option that there is not.
    #[error("--opt {0}: there are type=image, type=shared and, for images, size=BYTES")]
    Option(String),
    /// There is one of that name, and it is another.
    #[error("the volume {0} is there, and has other options")]
    Differs(String),
    /// A container has it.
    #[error("volume {volume} is in use by container {container}")]
    InUse {
        /// The volume.
        volume: String,
        /// Whose.
        container: String,
    },
    /// Another VM has the image mounted.
    #[error(
        "volume {volume} is in use by {holder}: it is an image, which one container has at a time, or \
         several that mount it read-only; 'volume create --opt type=shared' makes a directory that \
         several can write to, and 'volume update --opt type=shared' makes one of it"
    )]
    Held {
        /// The volume.
        volume: String,
        /// Who has it.
        holder: String,
    },
    /// The host's kernel mounts nothing that a guest wrote.
    #[error(
        "--isolation=process cannot have volume {0}: it is an image that a guest wrote, which the \
         host's kernel does not mount; 'volume update --opt type=shared {0}' makes a directory of it"
    )]
    Image(String),
    /// What is there may not fit any more.
    #[error("volume {volume} holds {size}; it can be made larger and not smaller")]
    Smaller {
        /// The volume.
        volume: String,
        /// How much it holds.
        size: Bytes,
    },
    /// Its files cannot be brought from one place to the other.
    #[error("volume {0} stays what it was")]
    Copy(String, #[source] Box<visit::VisitError>),
    /// What a killed VM left in its journal cannot be put in its place.
    #[error("volume {0} was left in use by a VM that was killed, and cannot be recovered")]
    Recover(String, #[source] Box<visit::VisitError>),
    /// Somebody has it.
    #[error("volume {volume} is in use by {holder}")]
    Busy {
        /// The volume.
        volume: String,
        /// Who has it.
        holder: String,
    },
    /// A file or directory of ours.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file system in its image.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Its record.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What a volume is on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// A file with a file system of its own, which the kernels of VMs mount: for one container at a time.
    Image,
    /// A directory that containers share with each other and with the host.
    // What volumes were before there were images.
    #[default]
    Shared,
}

/// What was asked for with `--opt`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Type,
    /// How much an image can hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
}

impl Options {
    /// Of a volume that is this, with nothing else said.
    pub const fn of(kind: Type) -> Self {
        Self { kind, size: None }
    }

    /// Reads `NAME=VALUE` texts, which change them.
    pub fn with(mut self, texts: &[String]) -> Result<Self, VolumeError> {
        for text in texts {
            let bad = || VolumeError::Option(text.clone());
            match text.split_once('=') {
                Some(("type", "image")) => self.kind = Type::Image,
                Some(("type", "shared")) => self = Self::of(Type::Shared),
                Some(("size", size)) => self.size = Some(size.parse().map_err(|_| bad())?),
                _ => return Err(bad()),
            }
        }
        match self {
            Self {
                kind: Type::Shared,
                size: Some(size),
            } => Err(VolumeError::Option(format!("size={size}"))),
            _ => Ok(self),
        }
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// When it was made, as RFC 3339 has it.
    pub created_at: String,
    /// Where its files are: a directory, or an image.
    pub mountpoint: PathBuf,
    /// Labels.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Always `local`.
    pub driver: String,
    /// Always `local`.
    pub scope: String,
    /// What it is.
    #[serde(default)]
    pub options: Options,
}

impl Volume {
    /// Whether a VM has its image mounted to write, or was killed when it had.
    pub fn is_dirty(&self) -> Result<bool, FileError> {
        if self.options.kind == Type::Shared {
            return Ok(false);
        }
        // Of the superblock's features, that of a journal with something in it.
        let mut byte = [0];
        let read = File::open(&self.mountpoint)
            .and_then(|image| image.read_exact_at(&mut byte, 1024 + 0x60));
        read.map_err(file("cannot read", &self.mountpoint))?;
        Ok(byte[0] & 4 != 0)
    }
}

/// All volumes.
#[derive(Clone, Debug)]
pub struct Volumes {
    data: PathBuf,
    dir: PathBuf,
}

const RECORD: &str = "volume.json";
/// What a volume's directory has, by its type.
const DIRECTORY: &str = "_data";
const IMAGE: &str = "volume.img";
/// Locked by who has the image in a VM.
const LOCK: &str = "lock";

impl Volumes {
    /// Those below a directory.
    pub fn at(data: &Path) -> Self {
        Self {
            data: data.to_owned(),
            dir: data.join("volumes"),
        }
    }

    /// The volume of that name, which is made if it is not there.
    pub fn make(
        &self,
        name: &str,
        labels: &[String],
        options: Options,
    ) -> Result<Volume, VolumeError> {
        if !state::is_name(name) {
            return Err(VolumeError::Name(name.to_owned()));
        }
        private_directory(&self.dir)?;
        let _lock = state::lock(&self.dir.join(".lock"), true)?;
        if let Ok(volume) = self.find(name) {
            return Ok(volume);
        }
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).map_err(file("cannot make", &dir))?;
        let mountpoint = self.fill(&dir, options).inspect_err(|_| {
            let _ = fs::remove_dir(&dir);
        })?;
        let volume = Volume {
            name: name.to_owned(),
            created_at: Now::text(),
            mountpoint,
            labels: pairs(labels),
            driver: "local".into(),
            scope: "local".into(),
            options,
        };
        state::save(&dir.join(RECORD), &volume)?;
        Ok(volume)
    }

    /// Makes what a volume's directory is to have, and says where. What is there is of one who was killed
    /// before there was a record.
    fn fill(&self, dir: &Path, options: Options) -> Result<PathBuf, VolumeError> {
        match options.kind {
            Type::Shared => {
                let path = dir.join(DIRECTORY);
                let _ = remove_tree(&path);
                fs::create_dir_all(&path).map_err(file("cannot make", &path))?;
                Ok(path)
            }
            Type::Image => {
                let path = dir.join(IMAGE);
                let _ = fs::remove_file(&path);
                disk::make(&self.data, Purpose::Volume, options.size, &path)?;
                Ok(path)
            }
        }
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

    /// Takes a volume in hand, alone or with others. None if somebody else has it.
    pub fn hold(&self, volume: &Volume, alone: bool) -> Result<Option<Lock>, VolumeError> {
        let path = self.dir.join(&volume.name).join(LOCK);
        let locked = match alone {
            true => state::lock(&path, false),
            false => state::lock_shared(&path),
        };
        match locked {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.is_held() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes one larger, or brings its files from an image to a directory or back. `_lock`: its own, alone.
    pub fn update(
        &self,
        volume: Volume,
        options: Options,
        _lock: &Lock,
    ) -> Result<Volume, VolumeError> {
        let (dir, new) = (self.dir.join(&volume.name), volume.clone());
        let mut new = Volume { options, ..new };
        if options.kind == volume.options.kind {
            grow(&volume, options)?;
            state::save(&dir.join(RECORD), &new)?;
            return Ok(new);
        }
        new.mountpoint = self.fill(&dir, options)?;
        let copied = visit::copy(&volume, &new)
            .map_err(|error| VolumeError::Copy(volume.name, Box::new(error)))
            .and_then(|()| Ok(state::save(&dir.join(RECORD), &new)?));
        let old = match copied {
            Ok(()) => &volume.mountpoint,
            Err(_) => &new.mountpoint,
        };
        let _ = match old.is_dir() {
            true => remove_tree(old),
            false => fs::remove_file(old).map_err(file("cannot remove", old)),
        };
        copied.map(|()| new)
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
        Ok(remove_tree(&dir)?)
    }
}

/// Makes an image larger. Its file system follows when a VM mounts it.
fn grow(volume: &Volume, options: Options) -> Result<(), VolumeError> {
    let path = &volume.mountpoint;
    let work = || -> io::Result<Result<(), u64>> {
        let image = File::options().write(true).open(path)?;
        let now = image.metadata()?.len();
        match options.size {
            Some(size) if size.0 < now => return Ok(Err(now)),
            Some(size) => image.set_len(size.0)?,
            None => {}
        }
        Ok(Ok(()))
    };
    let done = work().map_err(file("cannot make larger", path))?;
    done.map_err(|size| VolumeError::Smaller {
        volume: volume.name.clone(),
        size: Bytes(size),
    })
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
        let shared = Options::of(Type::Shared);
        let volume = volumes.make("data", &["a=1".into()], shared).unwrap();
        fs::write(volume.mountpoint.join("file"), "x").unwrap();
        assert_eq!(volumes.make("data", &[], shared).unwrap(), volume);
        assert_eq!(volumes.list().unwrap(), [volume]);
        assert!(matches!(
            volumes.make("../x", &[], shared),
            Err(VolumeError::Name(_))
        ));
        assert!(matches!(volumes.find(".."), Err(VolumeError::Unknown(_))));
        let error = volumes.remove("data", Some("web")).unwrap_err().to_string();
        assert!(error.contains("web"), "{error}");
        volumes.remove("data", None).unwrap();
        assert!(volumes.find("data").is_err() && !dir.join("volumes/data").exists());
        fs::remove_dir_all(dir).unwrap();
    }

    /// If it fails, two kernels write to one file system, or nobody can read what is not written.
    #[test]
    fn an_image_has_one_writer_or_many_readers() {
        let dir = std::env::temp_dir().join(format!("cofferdam-images-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let volumes = Volumes::at(&dir);
        let options = Options::of(Type::Image).with(&["size=64m".into()]).unwrap();
        let volume = volumes.make("data", &[], options).unwrap();
        assert_eq!(fs::metadata(&volume.mountpoint).unwrap().len(), 64 << 20);
        let hold = |alone| volumes.hold(&volume, alone).unwrap();
        let readers = (hold(false).unwrap(), hold(false).unwrap());
        assert!(hold(true).is_none());
        drop(readers);
        let writer = hold(true).unwrap();
        assert!(hold(true).is_none() && hold(false).is_none());

        assert!(!volume.is_dirty().unwrap());
        let options = |size: &str| volume.options.with(&[size.into()]).unwrap();
        let smaller = volumes.update(volume.clone(), options("size=63m"), &writer);
        assert!(matches!(smaller, Err(VolumeError::Smaller { .. })));
        let larger = volumes.update(volume.clone(), options("size=65m"), &writer);
        assert_eq!(larger.unwrap(), volumes.find("data").unwrap());
        assert_eq!(fs::metadata(&volume.mountpoint).unwrap().len(), 65 << 20);
        fs::remove_dir_all(dir).unwrap();
    }

    /// If it fails, an option that does nothing is taken without a word, or volumes of before are lost.
    #[test]
    fn options_are_read() {
        let parse = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|&text| text.into()).collect();
            Options::of(Type::Image).with(&texts)
        };
        assert_eq!(parse(&[]).unwrap(), Options::of(Type::Image));
        let shared = parse(&["type=shared"]).unwrap();
        assert_eq!(shared, Options::of(Type::Shared));
        assert_eq!(parse(&["size=1g"]).unwrap().size, Some(Bytes(1 << 30)));
        let back = parse(&["size=1g", "type=shared"]).unwrap();
        assert_eq!(back, shared);
        for bad in [
            &["type=nfs"][..],
            &["size=x"],
            &["o=bind"],
            &["type=shared", "size=1g"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        let before = r#"{"Name": "a", "CreatedAt": "", "Mountpoint": "/a", "Driver": "local",
            "Scope": "local"}"#;
        let volume: Volume = crate::json::from_slice(before.as_bytes()).unwrap();
        assert_eq!(volume.options, shared);
    }
}
