//! Who the user is to a registry: what `cofferdam login`, `podman login` and `docker login` left.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use rustix::fs::CWD;
use serde_json::{Value, json};

use super::Error;
use crate::files::{New, private_directory};

/// Who the user is.
#[derive(Clone)]
pub(super) enum Credentials {
    /// Nobody in particular.
    Anonymous,
    /// A name and a password.
    Password(String, String),
}

/// Not the password: it must reach no log.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Password(user, _) => f.debug_tuple("Password").field(user).finish(),
        }
    }
}

/// The credentials for a registry, from the first file that has some.
pub(super) fn find(registry: &str) -> Result<Credentials, Error> {
    for path in files() {
        for name in names(&registry) {
            let Ok(file) = File::open(&path) else { break };
            match docker_credential::get_credential_from_reader(file, name) {
                Ok(DockerCredential::UsernamePassword(user, password)) => {
                    return Ok(Credentials::Password(user, password));
                }
                Ok(DockerCredential::IdentityToken(_)) => {
                    return Err(Error::Credentials {
                        registry: registry.to_owned(),
                        why: format!(
                            "{} has an identity token, which is for Docker only; log in with a user and an access token",
                            path.display()
                        ),
                    });
                }
                // A helper for all registries knows nothing of this one: then it is anonymous.
                Err(
                    CredentialRetrievalError::NoCredentialConfigured
                    | CredentialRetrievalError::HelperFailure { .. },
                ) => {}
                Err(error) => {
                    return Err(Error::Credentials {
                        registry: registry.to_owned(),
                        why: format!("{}: {error}", path.display()),
                    });
                }
            }
        }
    }
    Ok(Credentials::Anonymous)
}

/// What a registry is called in the files. Docker files its hub's under the address of its first version.
fn names<'a>(registry: &'a &'a str) -> &'a [&'a str] {
    match *registry {
        "docker.io" => &[
            "docker.io",
            "https://index.docker.io/v1/",
            "index.docker.io",
        ],
        _ => std::slice::from_ref(registry),
    }
}

/// Keeps who the user is to a registry, in the first file that has something for it, or else in that of
/// the user's configuration. Gives the file.
pub(super) fn keep(registry: &str, user: &str, password: &str) -> Result<PathBuf, Error> {
    keep_in(&files(), registry, user, password)
}

fn keep_in(
    files: &[PathBuf],
    registry: &str,
    user: &str,
    password: &str,
) -> Result<PathBuf, Error> {
    let has = |path: &&PathBuf| {
        let kept = read(path).unwrap_or_default();
        names(&registry)
            .iter()
            .any(|name| !kept["auths"][*name].is_null())
    };
    // Podman's own first one is gone with the next boot of the host.
    let lasting = files.get(1).or(files.first());
    let Some(path) = files.iter().find(has).or(lasting) else {
        return Err(unusable(registry, "no home directory to keep them in"));
    };
    let mut kept = read(path).map_err(|error| at(registry, path, &error))?;
    forget_names(&mut kept, registry);
    if !kept["auths"].is_object() {
        kept["auths"] = json!({});
    }
    kept["auths"][registry] = json!({"auth": STANDARD.encode(format!("{user}:{password}"))});
    write(path, &kept).map_err(|error| at(registry, path, &error))?;
    Ok(path.clone())
}

/// Forgets who the user is to a registry; gives the files that knew it.
pub(super) fn forget(registry: &str) -> Result<Vec<PathBuf>, Error> {
    forget_in(&files(), registry)
}

fn forget_in(files: &[PathBuf], registry: &str) -> Result<Vec<PathBuf>, Error> {
    let mut knew = Vec::new();
    for path in files {
        let mut kept = read(path).map_err(|error| at(registry, path, &error))?;
        if forget_names(&mut kept, registry) {
            write(path, &kept).map_err(|error| at(registry, path, &error))?;
            knew.push(path.clone());
        }
    }
    Ok(knew)
}

/// Whether there was something to forget.
fn forget_names(kept: &mut Value, registry: &str) -> bool {
    let Some(all) = kept["auths"].as_object_mut() else {
        return false;
    };
    let removed = names(&registry).iter().filter_map(|name| all.remove(*name));
    removed.count() > 0
}

fn unusable(registry: &str, why: &str) -> Error {
    Error::Credentials {
        registry: registry.to_owned(),
        why: why.to_owned(),
    }
}

fn at(registry: &str, path: &Path, error: &io::Error) -> Error {
    unusable(registry, &format!("{}: {error}", path.display()))
}

/// What a file has; nothing if it is not there.
fn read(path: &Path) -> io::Result<Value> {
    match fs::read(path) {
        Ok(text) if text.trim_ascii().is_empty() => Ok(json!({})),
        Ok(text) => match crate::json::from_slice(&text)? {
            Value::Object(fields) => Ok(fields.into()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no JSON object")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(json!({})),
        Err(error) => Err(error),
    }
}

/// Puts a file in the place of the old one, for nobody but the user. A link to it, from somebody's own
/// collection of settings, stays.
fn write(path: &Path, value: &Value) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        private_directory(parent).map_err(|error| error.source)?;
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut new = New::make(CWD, &path, 0o600)?;
    new.file.write_all(format!("{value:#}\n").as_bytes())?;
    new.file.sync_data()?;
    new.place()
}

/// The files that may have credentials: Podman's, then Docker's (containers-auth.json(5)).
fn files() -> Vec<PathBuf> {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = set("REGISTRY_AUTH_FILE") {
        return vec![path];
    }
    let home = |path: &str| set("HOME").map(|home| home.join(path));
    let runtime = set("XDG_RUNTIME_DIR").or_else(|| {
        let user = rustix::process::getuid();
        Some(format!("/run/user/{user}").into())
    });
    let config = set("XDG_CONFIG_HOME").or_else(|| home(".config"));
    let docker = set("DOCKER_CONFIG").or_else(|| home(".docker"));
    [
        runtime.map(|path| path.join("containers/auth.json")),
        config.map(|path| path.join("containers/auth.json")),
        docker.map(|path| path.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// If it fails, a login is lost, somebody else reads it, or what others keep in the file is lost.
    #[test]
    fn logins_are_kept_and_forgotten() {
        let dir = env::temp_dir().join(format!("cofferdam-login-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let files = [dir.join("run/auth.json"), dir.join("config/auth.json")];
        let path = keep_in(&files, "r:5000", "me", "p:w").unwrap();
        assert_eq!(path, files[1]);
        let rights = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (rights(&path), rights(path.parent().unwrap())),
            (0o600, 0o700)
        );
        let found =
            docker_credential::get_credential_from_reader(File::open(&path).unwrap(), "r:5000");
        assert_eq!(
            found.unwrap(),
            DockerCredential::UsernamePassword("me".into(), "p:w".into())
        );
        // What counts first is changed where it is, whatever it is called there.
        fs::create_dir(dir.join("run")).unwrap();
        let old = json!({"auths": {"https://index.docker.io/v1/": {"auth": "x"}}, "other": 1});
        fs::write(&files[0], old.to_string()).unwrap();
        assert_eq!(keep_in(&files, "docker.io", "a", "b").unwrap(), files[0]);
        let now = read(&files[0]).unwrap();
        assert_eq!(now["other"], 1);
        assert_eq!(now["auths"], json!({"docker.io": {"auth": "YTpi"}}));
        assert_eq!(forget_in(&files, "docker.io").unwrap(), [files[0].clone()]);
        assert!(forget_in(&files, "docker.io").unwrap().is_empty());
        assert_eq!(forget_in(&files, "r:5000").unwrap(), [files[1].clone()]);
        // One that cannot be read is not replaced.
        fs::write(&files[0], "[]").unwrap();
        assert!(keep_in(&files[..1], "r", "a", "b").is_err());
        assert_eq!(fs::read(&files[0]).unwrap(), b"[]");
        fs::remove_dir_all(dir).unwrap();
    }
}
