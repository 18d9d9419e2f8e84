//! Who the user is to a registry: what `podman login` and `docker login` left.

use std::env;
use std::fs::File;
use std::path::PathBuf;

use docker_credential::{CredentialRetrievalError, DockerCredential};

use super::Error;

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
    // Docker files its hub's under the address of its first version.
    let names: &[&str] = match registry {
        "docker.io" => &[
            "docker.io",
            "https://index.docker.io/v1/",
            "index.docker.io",
        ],
        other => &[other],
    };
    for path in files() {
        for name in names {
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
