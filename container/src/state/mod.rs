//! Containers that there are: their directories, records, states, names and locks.
//!
//! A container is a directory below [`paths::data`](crate::paths::data) with its record, which only
//! `rename` and `update` change, and its state, which is replaced as a whole by a rename. Whoever runs it holds a
//! lock for as long as he lives: a state that says `running` while nobody holds the lock is what a
//! killed shim left behind.

mod events;
pub mod named;
mod names;
mod record;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use events::{Event, Events};
pub use names::{is_id, is_name, new_id, new_name};
pub use record::{Attached, Now, Probe, Record, Share, State, Status, VmSize, Wellness, timestamp};

use crate::files::{FileError, New, file, lock_file, private_directory, remove_tree};
use crate::paths;

/// Why a container cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No container is called so.
    #[error("No such container: {0}")]
    Unknown(String),
    /// More than one begins so.
    #[error("{0:?} is the beginning of several containers' IDs; give more of it")]
    Ambiguous(String),
    /// The name is another's.
    #[error(
        "the name {name:?} is in use by container {id}; remove or rename that container, or choose \
         another name"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        id: String,
    },
    /// The name is none.
    #[error("{0:?} is no name of a container: [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed")]
    Name(String),
    /// Somebody has the container in hand.
    #[error("container {0} is running")]
    Busy(String),
    /// A file or directory of ours.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that is not what it should be.
    #[error("{path} is damaged")]
    Json {
        /// The file.
        path: PathBuf,
        /// In what way.
        #[source]
        source: serde_json::Error,
    },
}

impl StateError {
    /// Whether the file is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::File(error) if error.source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether somebody else has the lock.
    pub fn is_held(&self) -> bool {
        matches!(self, Self::File(error) if error.source.kind() == io::ErrorKind::WouldBlock)
    }
}

/// All containers.
#[derive(Clone, Debug)]
pub struct Containers {
    data: PathBuf,
    run: PathBuf,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Container {
    /// What was asked for.
    pub record: Record,
    /// Where it has what outlives the host's boot.
    pub dir: PathBuf,
    /// Where it has its sockets.
    pub run: PathBuf,
}

/// Held by who runs a container, or changes what there is.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closed, it is free")] File);

impl Containers {
    /// Those of this user.
    pub fn open() -> Result<Self, StateError> {
        Self::at(&paths::data(), &paths::run())
    }

    /// Those below two directories, which are made if they are missing.
    pub fn at(data: &Path, run: &Path) -> Result<Self, StateError> {
        let containers = Self {
            data: data.join("containers"),
            run: run.to_owned(),
        };
        for dir in [&containers.data, &containers.run] {
            private_directory(dir)?;
        }
        Ok(containers)
    }

    /// All that there are, the youngest first.
    pub fn list(&self) -> Result<Vec<Container>, StateError> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.data).map_err(file("cannot read", &self.data))? {
            let entry = entry.map_err(file("cannot read", &self.data))?;
            let id = entry.file_name().to_string_lossy().into_owned();
            // What begins with a dot is coming or going.
            if id.starts_with('.') {
                continue;
            }
            match self.load(&id) {
                Ok(container) => all.push(container),
                // Removed since.
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        all.sort_by(|a, b| b.record.created.cmp(&a.record.created));
        Ok(all)
    }

    /// The one with this name, this ID, or the only one whose ID begins so.
    pub fn find(&self, reference: &str) -> Result<Container, StateError> {
        if reference.len() == 64 && is_name(reference) && self.data.join(reference).exists() {
            return self.load(reference);
        }
        let mut all = self.list()?;
        let name = reference.strip_prefix('/').unwrap_or(reference);
        if let Some(at) = all.iter().position(|c| c.record.name == name) {
            return Ok(all.swap_remove(at));
        }
        all.retain(|c| !reference.is_empty() && c.record.id.starts_with(reference));
        match (all.pop(), all.is_empty()) {
            (Some(container), true) => Ok(container),
            (None, _) => Err(StateError::Unknown(reference.to_owned())),
            (Some(_), false) => Err(StateError::Ambiguous(reference.to_owned())),
        }
    }

    /// Makes a container's directory. `fill` puts into it what belongs there, before anybody sees
    /// it; without a name the record gets one that is free.
    pub fn create<E: From<StateError>>(
        &self,
        mut record: Record,
        fill: impl FnOnce(&Container) -> Result<(), E>,
    ) -> Result<Container, E> {
        let _lock = lock(&self.data.join(".lock"), true)?;
        self.sweep();
        let taken = self.list()?;
        if record.name.is_empty() {
            record.name = new_name(|name| taken.iter().any(|c| c.record.name == name));
        }
        check_name(&taken, &record.name)?;
        let run = self.run_of(&record.id);
        let (dir, new) = (self.data.join(&record.id), format!(".new-{}", record.id));
        let new = self.data.join(new);
        fs::create_dir(&new)
            .map_err(file("cannot make the directory", &new))
            .map_err(StateError::from)?;
        let mut container = Container {
            record,
            dir: new.clone(),
            run,
        };
        let filled = fill(&container)
            .and_then(|()| Ok(save(&new.join(RECORD), &container.record)?))
            .and_then(|()| Ok(container.set_state(&State::default())?));
        if let Err(error) = filled {
            let _ = remove_tree(&new);
            return Err(error);
        }
        fs::rename(&new, &dir)
            .map_err(file("cannot rename", &new))
            .map_err(StateError::from)?;
        container.dir = dir;
        Ok(container)
    }

    /// Gives a container another name, which no other has. What runs keeps the old one till it ends.
    pub fn rename(&self, container: &Container, name: &str) -> Result<(), StateError> {
        let _lock = lock(&self.data.join(".lock"), true)?;
        check_name(&self.list()?, name)?;
        let mut record: Record = load(&container.dir.join(RECORD))?;
        name.clone_into(&mut record.name);
        save(&container.dir.join(RECORD), &record)
    }

    /// Changes what was asked for of a container, with its specification.
    pub fn update<E: From<StateError>>(
        &self,
        container: &Container,
        change: impl FnOnce(&mut Record, &mut Spec) -> Result<(), E>,
    ) -> Result<(), E> {
        let _lock = lock(&self.data.join(".lock"), true)?;
        let (record_at, spec_at) = (
            container.dir.join(RECORD),
            container.bundle().join("config.json"),
        );
        let mut record: Record = load(&record_at)?;
        let mut spec: Spec = load(&spec_at)?;
        change(&mut record, &mut spec)?;
        save(&spec_at, &spec)?;
        save(&record_at, &record)?;
        Ok(())
    }

    /// What the killed left half made or half removed.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.data).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".new-") || name.starts_with(".old-") {
                let _ = remove_tree(&entry.path());
            }
        }
    }

    /// Where a container has its sockets: by its first digits, since their paths must be short; so
    /// many are never the same.
    pub fn run_of(&self, id: &str) -> PathBuf {
        self.run.join(id.get(..16).unwrap_or(id))
    }

    fn load(&self, id: &str) -> Result<Container, StateError> {
        let dir = self.data.join(id);
        Ok(Container {
            record: load(&dir.join(RECORD))?,
            dir,
            run: self.run_of(id),
        })
    }
}

/// Whether a container may have a name beside those that there are.
fn check_name(taken: &[Container], name: &str) -> Result<(), StateError> {
    if !is_name(name) {
        return Err(StateError::Name(name.to_owned()));
    }
    match taken.iter().find(|container| container.record.name == name) {
        None => Ok(()),
        Some(other) => Err(StateError::NameTaken {
            name: name.to_owned(),
            id: other.record.id.clone(),
        }),
    }
}

const RECORD: &str = "config.json";
const STATE: &str = "state.json";
const LOCK: &str = "lock";

impl Container {
    /// Its state, as it truly is: one that was left behind by the killed is put right, in the file, too.
    pub fn state(&self) -> Result<State, StateError> {
        let path = self.dir.join(STATE);
        let state: State = load(&path)?;
        if !state.status.is_live() || self.is_held() {
            return Ok(state);
        }
        // Who finds out first writes it down; till then nobody knows when it was.
        let lock = self.lock();
        // Its end may have been written between the two looks.
        let state: State = load(&path)?;
        if !state.status.is_live() || matches!(lock, Err(StateError::Busy(_))) {
            return Ok(state);
        }
        let state = state.killed();
        if lock.is_ok() {
            // Who cannot write knows it nevertheless.
            let _ = self.set_state(&state);
        }
        Ok(state)
    }

    /// What is asked for of it now.
    pub fn record_now(&self) -> Result<Record, StateError> {
        load(&self.dir.join(RECORD))
    }

    /// Replaces its state. Only who holds the lock may.
    pub fn set_state(&self, state: &State) -> Result<(), StateError> {
        save(&self.dir.join(STATE), state)
    }

    /// Takes the container in hand, or says that somebody has it.
    pub fn lock(&self) -> Result<Lock, StateError> {
        lock(&self.dir.join(LOCK), false).map_err(|error| match error.is_held() {
            true => StateError::Busy(self.record.name.clone()),
            false => error,
        })
    }

    /// Whether somebody runs it.
    pub(crate) fn is_held(&self) -> bool {
        let Ok(file) = File::open(self.dir.join(LOCK)) else {
            return false;
        };
        // A shared look does not get in the way of another look.
        flock(&file, FlockOperation::NonBlockingLockShared).is_err()
    }

    /// The socket of its shim.
    pub fn socket(&self) -> PathBuf {
        self.run.join("shim.sock")
    }

    /// The socket of its VM's vsock device.
    pub fn vsock(&self) -> PathBuf {
        self.run.join("vsock")
    }

    /// What it printed.
    pub fn log(&self) -> PathBuf {
        self.dir.join("container.log")
    }

    /// Its writable layer.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper.img")
    }

    /// Whether it has a volume.
    pub fn has_volume(&self, name: &str) -> bool {
        let mut shares = self.record.shares.iter();
        shares.any(|share| share.volume.as_deref() == Some(name))
    }

    /// The directory with its config.json of the OCI runtime specification.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// Removes it. `_lock` is its own.
    pub fn remove(&self, _lock: &Lock) -> Result<(), StateError> {
        let old = self.dir.with_file_name(format!(".old-{}", self.record.id));
        fs::rename(&self.dir, &old).map_err(file("cannot rename", &self.dir))?;
        let _ = remove_tree(&self.run);
        Ok(remove_tree(&old)?)
    }
}

/// Takes a lock, which is a file.
pub(crate) fn lock(path: &Path, wait: bool) -> Result<Lock, StateError> {
    take_lock(
        path,
        match wait {
            true => FlockOperation::LockExclusive,
            false => FlockOperation::NonBlockingLockExclusive,
        },
    )
}

/// Takes a lock that others may have like this, too. Nobody waits.
pub(crate) fn lock_shared(path: &Path) -> Result<Lock, StateError> {
    take_lock(path, FlockOperation::NonBlockingLockShared)
}

fn take_lock(path: &Path, how: FlockOperation) -> Result<Lock, StateError> {
    let lock = lock_file(path).map_err(file("cannot open", path))?;
    // A look at whether it is held holds it for a moment itself.
    for _ in 0..20 {
        match flock(&lock, how) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) => return Err(file("cannot lock", path)(error.into()).into()),
            Ok(()) => return Ok(Lock(lock)),
        }
    }
    Err(file("cannot lock", path)(io::ErrorKind::WouldBlock.into()).into())
}

/// Reads a JSON file.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<T, StateError> {
    let text = fs::read(path).map_err(file("cannot read", path))?;
    crate::json::from_slice(&text).map_err(|source| StateError::Json {
        path: path.to_owned(),
        source,
    })
}

/// Writes a JSON file so that there is, whatever happens, either the old one or the new one.
pub(crate) fn save(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let json = |source| StateError::Json {
        path: path.to_owned(),
        source,
    };
    let text = serde_json::to_vec_pretty(value).map_err(json)?;
    let write = || -> io::Result<()> {
        let mut new = New::make(CWD, path, 0o644)?;
        new.file.write_all(&text)?;
        // The data before the name, or a crash of the host may leave an empty file.
        new.file.sync_data()?;
        new.place()
    };
    Ok(write().map_err(file("cannot write", path))?)
}

#[cfg(test)]
mod tests;
