use std::fs;

use super::*;
use crate::options::Options;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> (Self, Containers) {
        let path = std::env::temp_dir().join(format!("cofferdam-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        let containers = Containers::at(&path.join("data"), &path.join("run")).unwrap();
        (Self(path), containers)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn record(id: &str, name: &str) -> Record {
    Record {
        id: id.into(),
        name: name.into(),
        created: Now::text(),
        options: Options::default(),
        image: "sha256:0".into(),
        image_config: Default::default(),
        layers: Vec::new(),
        shares: Vec::new(),
        health: None,
    }
}

fn nothing(_: &Container) -> Result<(), StateError> {
    Ok(())
}

/// If it fails, containers are not found, found wrongly, or two have one name.
#[test]
fn containers_are_made_found_and_removed() {
    let (_dir, all) = Dir::new("state-find");
    let first = all.create(record("abc1", "one"), nothing).unwrap();
    all.create(record("abd2", "two"), nothing).unwrap();
    assert_eq!(all.list().unwrap().len(), 2);
    assert_eq!(all.find("one").unwrap().record.id, "abc1");
    assert_eq!(all.find("/one").unwrap().record.id, "abc1");
    assert_eq!(all.find("abd").unwrap().record.name, "two");
    for bad in ["two", "one", "a/b", ""] {
        assert!(all.rename(&first, bad).is_err(), "{bad}");
    }
    all.rename(&first, "three").unwrap();
    assert_eq!(all.find("three").unwrap().record.id, "abc1");
    assert!(all.find("one").is_err());
    all.rename(&first, "one").unwrap();
    assert!(matches!(all.find("ab"), Err(StateError::Ambiguous(_))));
    for unknown in ["", "x", "../one"] {
        assert!(
            matches!(all.find(unknown), Err(StateError::Unknown(_))),
            "{unknown}"
        );
    }
    let taken = all.create(record("ff", "one"), nothing).unwrap_err();
    assert!(taken.to_string().contains("abc1"), "{taken}");
    assert!(all.create(record("ff", "../x"), nothing).is_err());
    let unnamed = all.create(record("ff", ""), nothing).unwrap();
    assert!(is_name(&unnamed.record.name));
    first.remove(&first.lock().unwrap()).unwrap();
    assert!(all.find("one").is_err());
    all.create(record("abc1", "one"), nothing).unwrap();
}

/// If it fails, what could not be made whole is seen, or stays on the disk.
#[test]
fn half_made_containers_are_never_seen() {
    let (_dir, all) = Dir::new("state-half");
    let refuse = |c: &Container| Err(StateError::Unknown(c.record.id.clone()));
    assert!(all.create(record("aa", "one"), refuse).is_err());
    fs::create_dir(all.data.join(".new-bb")).unwrap();
    fs::create_dir(all.data.join(".old-cc")).unwrap();
    assert!(all.list().unwrap().is_empty());
    all.create(record("dd", "one"), nothing).unwrap();
    let hidden = fs::read_dir(&all.data).unwrap().flatten();
    let names = hidden.map(|entry| entry.file_name().into_string().unwrap());
    let left: Vec<String> = names.filter(|name| name.contains('-')).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// If it fails, a container whose shim was killed counts as running for ever, a living one does not, or
/// nobody learns when it ended.
#[test]
fn the_lock_says_who_lives() {
    let (_dir, all) = Dir::new("state-lock");
    let container = all.create(record("aa", "one"), nothing).unwrap();
    assert_eq!(container.state().unwrap().status, Status::Created);
    let lock = container.lock().unwrap();
    let running = State {
        status: Status::Running,
        pid: 7,
        ..State::default()
    };
    container.set_state(&running).unwrap();
    assert_eq!(container.state().unwrap(), running);
    assert!(matches!(container.lock(), Err(StateError::Busy(_))));
    drop(lock);
    let state = container.state().unwrap();
    assert_eq!(
        (state.status, state.exit_code, state.pid),
        (Status::Exited, 137, 0)
    );
    let finished = state.finished.as_deref().and_then(timestamp).unwrap();
    assert!(finished > 1_600_000_000);
    // Found out once: it does not move on with who looks.
    assert_eq!(container.state().unwrap(), state);
    let written: State = load(&container.dir.join(STATE)).unwrap();
    assert_eq!(written, state);
}

/// If it fails, times are shown wrong.
#[test]
fn times_are_read() {
    assert_eq!(timestamp("1970-01-01T00:01:00Z"), Some(60));
    assert!(timestamp(&Now::text()).unwrap() > 1_600_000_000);
    assert_eq!(timestamp("yesterday"), None);
}
