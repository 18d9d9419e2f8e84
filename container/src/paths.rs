//! Where container mode keeps what it has.

use std::env;
use std::path::PathBuf;

/// What outlives a boot of the host: images, containers that were made, volumes. `$COFFERDAM_DATA` if
/// it is set, `/var/lib/cofferdam` for root of the host's, else in the user's own data directory.
pub fn data() -> PathBuf {
    if let Some(path) = set("COFFERDAM_DATA") {
        return path;
    }
    if crate::user::is_root() {
        return "/var/lib/cofferdam".into();
    }
    set("XDG_DATA_HOME")
        .unwrap_or_else(|| home().join(".local/share"))
        .join("cofferdam")
}

/// What is about running processes: sockets, locks, process numbers. `$COFFERDAM_RUN` if it is set,
/// `/run/cofferdam` for root of the host's, else in the user's runtime directory, or beside [`data`] if the host
/// gives none.
pub fn run() -> PathBuf {
    if let Some(path) = set("COFFERDAM_RUN") {
        return path;
    }
    if crate::user::is_root() {
        return "/run/cofferdam".into();
    }
    match set("XDG_RUNTIME_DIR") {
        Some(path) => path.join("cofferdam"),
        None => data().join("run"),
    }
}

/// Where settings may be, the file that counts most first: `$COFFERDAM_SETTINGS` alone if it is set, else
/// the user's own file and that of the host.
pub fn settings() -> Vec<PathBuf> {
    const NAME: &str = "cofferdam/settings.json";
    if let Some(path) = set("COFFERDAM_SETTINGS") {
        return vec![path];
    }
    let of_host = PathBuf::from("/etc").join(NAME);
    if crate::user::is_root() {
        return vec![of_host];
    }
    let own = set("XDG_CONFIG_HOME").unwrap_or_else(|| home().join(".config"));
    vec![own.join(NAME), of_host]
}

fn home() -> PathBuf {
    set("HOME").unwrap_or_else(|| "/".into())
}

fn set(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}
