//! Who the user is to a registry: what `podman login` and `docker login` left.

use std::env;
use std::fs::File;
use std::path::PathBuf;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::secrets::RegistryAuth;

use super::Error;

/// The credentials for a registry, from the first file that has some.
pub(super) fn find(registry: &str) -> Result<RegistryAuth, Error> {
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
                    return Ok(RegistryAuth::Basic(user, password));
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
    Ok(RegistryAuth::Anonymous)
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
