//! What is written down of containers: a directory each, below `--root`.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Hooks;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::systemd::Scope;
use crate::files::{FileError, file, lock_file, remove_tree};
use crate::mirror::Mirror;
use crate::state::{self, StateError};

/// Why a container cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// Engines look for these words.
    #[error("container {0} does not exist")]
    Unknown(String),
    /// The ID is another's.
    #[error("container with id exists: {0}")]
    Taken(String),
    /// The ID is none.
    #[error("invalid id format: {0:?}; letters, digits, and _ + - . are allowed, 200 at most")]
    Id(String),
    /// A file or directory of ours.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is written down.
    #[error(transparent)]
    Record(#[from] StateError),
}

/// How far a container is, in the specification's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// What there is to know of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub oci_version: String,
    pub id: String,
    /// The number of the shim's process; 0 before there is one.
    pub pid: u32,
    pub status: Status,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// When it was made, as RFC 3339 has it.
    pub created: String,
    pub annotations: HashMap<String, String>,
    pub hooks: Hooks,
    /// Where its sockets are.
    pub run: PathBuf,
    /// Its cgroup on the host.
    pub cgroup: Option<PathBuf>,
    /// systemd's name for that, if systemd made it.
    pub scope: Option<Scope>,
    /// Bytes that the VM has for it.
    pub memory: u64,
    /// What the guest has been told of its network.
    pub network: Mirror,
    /// The host's file that says where it asks for names.
    #[serde(default)]
    pub resolv_conf: Option<PathBuf>,
    /// It has no network namespace of its own.
    #[serde(default)]
    pub is_on_host_network: bool,
    /// The ID of the mount that was made of its root for lack of a mount namespace.
    #[serde(default)]
    pub root_mount: Option<u64>,
}

/// All containers of a `--root`.
#[derive(Clone, Debug)]
pub(super) struct Store {
    root: PathBuf,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Container {
    /// Its directory.
    pub dir: PathBuf,
    pub record: Record,
}

/// Held by a container's shim for as long as it lives, and by who makes it.
#[derive(Debug)]
pub(super) struct Alive(pub File);

const RECORD: &str = "state.json";
const ALIVE: &str = "alive";
/// The guest's config.json.
const SPEC: &str = "config.json";
/// There as soon as the container's process has ended, while its VM may take a moment more.
const ENDED: &str = "ended";

fn check_id(id: &str) -> Result<(), StoreError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    let is_good = !id.is_empty() && id.len() <= 200 && id.chars().all(good);
    match is_good && !id.starts_with('.') {
        true => Ok(()),
        false => Err(StoreError::Id(id.to_owned())),
    }
}

impl Store {
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Takes an ID, and gives the container's directory, the directory of its sockets and its lock.
    pub(super) fn reserve(&self, id: &str) -> Result<(PathBuf, PathBuf, Alive), StoreError> {
        check_id(id)?;
        let dir = self.root.join(id);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o711);
        let root = &self.root;
        builder
            .create(root)
            .map_err(file("cannot make the directory", root))?;
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => StoreError::Taken(id.to_owned()),
                _ => file("cannot make the directory", &dir)(error).into(),
            })?;
        let run = self.run_of(id);
        let make = || -> io::Result<Alive> {
            // Of one that was killed, in another life of --root.
            let _ = remove_tree(&run);
            DirBuilder::new().recursive(true).mode(0o700).create(&run)?;
            let lock = lock_file(&dir.join(ALIVE))?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            Ok(Alive(lock))
        };
        match make() {
            Ok(alive) => Ok((dir, run, alive)),
            Err(error) => {
                let _ = remove_tree(&dir);
                Err(file("cannot prepare", &dir)(error).into())
            }
        }
    }

    /// Where a container's sockets are. Their paths must be short, and engines' are long: so the
    /// directory is called by a digest.
    fn run_of(&self, id: &str) -> PathBuf {
        let digest = Sha256::digest(self.root.join(id).as_os_str().as_encoded_bytes());
        let name: String = digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        crate::paths::run().join("oci").join(name)
    }

    pub(super) fn find(&self, id: &str) -> Result<Container, StoreError> {
        check_id(id)?;
        let dir = self.root.join(id);
        match state::load(&dir.join(RECORD)) {
            Ok(record) => Ok(Container { dir, record }),
            Err(error) if error.is_missing() => Err(StoreError::Unknown(id.to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    /// All of them, the oldest first.
    pub(super) fn list(&self) -> Result<Vec<Container>, StoreError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(file("cannot read", &self.root))?,
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        // What has no record is being made, or is not ours.
        let mut all: Vec<_> = names
            .filter_map(|name| self.find(name.to_str()?).ok())
            .collect();
        all.sort_by(|a, b| a.record.created.cmp(&b.record.created));
        Ok(all)
    }

    /// Removes what is left of an ID without a record: its maker was killed.
    pub(super) fn sweep(&self, id: &str) -> Result<(), StoreError> {
        check_id(id)?;
        let dir = self.root.join(id);
        if dir.exists() && !is_held(&dir) {
            let _ = remove_tree(&self.run_of(id));
            remove_tree(&dir)?;
        }
        Ok(())
    }
}

/// Whether somebody holds the container's lock.
fn is_held(dir: &Path) -> bool {
    let Ok(lock) = File::open(dir.join(ALIVE)) else {
        return false;
    };
    // A shared look does not get in the way of another look.
    flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
}

impl Container {
    /// Its status, as it truly is: what has no shim any more has stopped, and so has what has ended.
    pub(super) fn status(&self) -> Status {
        match self.is_held() && !self.dir.join(ENDED).exists() {
            true => self.record.status,
            false => Status::Stopped,
        }
    }

    /// Whether its shim is there yet, and with it all that the container has on the host.
    pub(super) fn is_held(&self) -> bool {
        is_held(&self.dir)
    }

    /// From now on it has stopped, whatever its VM still does.
    pub(super) fn set_ended(&self) -> io::Result<()> {
        File::create(self.dir.join(ENDED)).map(drop)
    }

    pub(super) fn save(&self) -> Result<(), StoreError> {
        Ok(state::save(&self.dir.join(RECORD), &self.record)?)
    }

    /// The network namespace of the process that stands for it.
    pub(super) fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.record.pid).into()
    }

    /// The guest's config.json.
    pub(super) fn spec(&self) -> PathBuf {
        self.dir.join(SPEC)
    }

    /// The socket of its VM's vsock device.
    pub(super) fn vsock(&self) -> PathBuf {
        self.record.run.join("vsock")
    }

    /// Removes it; nobody holds it.
    pub(super) fn remove(&self) -> Result<(), StoreError> {
        let _ = remove_tree(&self.record.run);
        Ok(remove_tree(&self.dir)?)
    }

    /// `state`, as the specification has it, and what runc adds.
    pub(super) fn state(&self) -> serde_json::Value {
        let Record {
            oci_version,
            id,
            bundle,
            rootfs,
            created,
            annotations,
            ..
        } = &self.record;
        let status = self.status();
        let pid = match status {
            Status::Stopped => 0,
            _ => self.record.pid,
        };
        let mut state = serde_json::json!({
            "ociVersion": oci_version,
            "id": id,
            "pid": pid,
            "status": status,
            "bundle": bundle,
            "rootfs": rootfs,
            "created": created,
            "owner": "",
        });
        if !annotations.is_empty() {
            state["annotations"] = serde_json::json!(annotations);
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, an ID leads out of the directory, two containers have one, or one that was
    /// killed is taken for running.
    #[test]
    fn ids_are_held_once() {
        let dir = std::env::temp_dir().join(format!("cofferdam-runc-{}", std::process::id()));
        let store = Store::at(dir.clone());
        for bad in ["", "..", "a/b", "a b", &"x".repeat(201)] {
            assert!(matches!(store.find(bad), Err(StoreError::Id(_))), "{bad}");
        }
        let long = "f".repeat(64);
        let (_, run, alive) = store.reserve(&long).unwrap();
        assert!(run.join("shim.sock").as_os_str().len() < 108);
        assert!(matches!(store.reserve(&long), Err(StoreError::Taken(_))));
        assert!(matches!(store.find(&long), Err(StoreError::Unknown(_))));
        let container = Container {
            dir: dir.join(&long),
            record: Record {
                oci_version: "1.0.2".into(),
                id: long.clone(),
                pid: 1,
                status: Status::Created,
                bundle: "/b".into(),
                rootfs: "/b/rootfs".into(),
                created: "now".into(),
                annotations: HashMap::new(),
                hooks: Hooks::default(),
                run,
                cgroup: None,
                scope: None,
                memory: 1,
                network: Mirror::default(),
                resolv_conf: None,
                is_on_host_network: false,
                root_mount: None,
            },
        };
        container.save().unwrap();
        assert_eq!(container.state()["status"], "created");
        assert_eq!(store.list().unwrap().len(), 1);
        container.set_ended().unwrap();
        assert_eq!(container.state()["status"], "stopped");
        assert!(container.is_held());
        drop(alive);
        assert_eq!(container.state()["status"], "stopped");
        assert_eq!(container.state()["pid"], 0);
        container.remove().unwrap();
        assert!(store.list().unwrap().is_empty());
        fs::remove_dir_all(dir).unwrap();
    }
}
