//! `login` and `logout`: who the user is to a registry, and that it knows him.

use std::path::PathBuf;

use super::client::Client;
use super::credentials::{self, Credentials};
use super::{Error, Options, connect, runtime};
use crate::image::reference::Reference;

/// The registry that a user names: its host alone, and Docker's hub by the name that images have.
pub fn host(text: &str) -> &str {
    let text = text
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    match text.split('/').next().unwrap_or_default() {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" | "hub.docker.com" => {
            "docker.io"
        }
        host => host,
    }
}

/// Asks a registry whether it knows a user, and keeps him if so; gives the file that has him now.
pub fn login(registry: &str, user: &str, password: &str, insecure: bool) -> Result<PathBuf, Error> {
    runtime()?.block_on(check(registry, user, password, insecure))?;
    credentials::keep(registry, user, password)
}

/// Forgets a user; gives the files that knew him.
pub fn logout(registry: &str) -> Result<Vec<PathBuf>, Error> {
    credentials::forget(registry)
}

async fn check(registry: &str, user: &str, password: &str, insecure: bool) -> Result<(), Error> {
    let name = Reference {
        registry: registry.to_owned(),
        repository: String::new(),
        tag: None,
        digest: None,
    };
    let options = Options {
        insecure,
        ..Options::default()
    };
    let known = Credentials::Password(user.to_owned(), password.to_owned());
    let asked = async |client: &Client| client.check().await;
    match connect(&name, &options, known, "", asked).await {
        Ok(_) => Ok(()),
        Err(Error::Refused { .. }) => Err(Error::Unknown {
            registry: registry.to_owned(),
            user: user.to_owned(),
        }),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a login is kept under a name by which no image's registry is looked for.
    #[test]
    fn registries_are_called_as_images_call_them() {
        for (text, name) in [
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("localhost:5000", "localhost:5000"),
            ("https://r.example/v2/", "r.example"),
        ] {
            assert_eq!(host(text), name);
        }
    }
}
