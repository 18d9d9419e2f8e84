//! Images from and to registries.
//!
//! Content is verified by digest before it has a name in the store. What a broken connection leaves of a
//! layer stays in the store's `tmp/` and is gone on with, by this process or a later one.

mod client;
mod credentials;
mod login;
mod pull;
mod push;

use std::io;
use std::path::PathBuf;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::client::{Client, ClientError, Way};
use self::credentials::Credentials;
pub use self::login::{host, login, logout};
pub use self::pull::{Pulled, get, pull};
pub use self::push::push;
use super::digest::Digest;
use super::reference::Reference;
use super::store;
use super::store::oci::{Descriptor, Platform};

/// Why an image does not come or go.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("cannot start network input and output")]
    Runtime(#[source] io::Error),
    #[error("the registry {registry} cannot be reached")]
    Connect {
        registry: String,
        #[source]
        source: Box<ClientError>,
    },
    #[error(
        "{registry} has no image {name}, or not for you; 'cofferdam login {registry}' tells it who you are"
    )]
    Refused { registry: String, name: String },
    #[error("there is no image {name} here, but there is its tag {tags}")]
    Tags {
        name: String,
        tags: String,
        #[source]
        source: Box<Error>,
    },
    #[error("{registry} does not know {user} with that password")]
    Unknown { registry: String, user: String },
    #[error("{name} at {registry}")]
    Remote {
        registry: String,
        name: String,
        #[source]
        source: Box<ClientError>,
    },
    #[error("the registry sends {what} that is no document of an image")]
    Document {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("the registry sends {0}, which is neither a manifest nor an index, or both at once")]
    NoManifest(Digest),
    #[error("{name} is there for {there}, not for {wanted}; --platform takes another")]
    Platform {
        name: String,
        wanted: Platform,
        there: String,
    },
    #[error(
        "the connection broke in the middle of {digest}, again and again; the next pull goes on from there"
    )]
    Broken {
        digest: Digest,
        #[source]
        source: io::Error,
    },
    #[error("the registry sends more for {digest} than the {size} bytes its manifest says")]
    TooLong { digest: Digest, size: u64 },
    #[error("cannot write {digest} to the store")]
    Write {
        digest: Digest,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {path:?}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("an image is pushed to a tag, and {0} has a digest")]
    PushByDigest(String),
    #[error("the credentials for {registry} cannot be used: {why}")]
    Credentials { registry: String, why: String },
}

/// How to talk to a registry.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Takes any certificate, and plain HTTP where there is none. Registries on the loopback are
    /// always treated so.
    pub insecure: bool,
    /// Which image to take of one for several.
    pub platform: Platform,
    /// No progress bars.
    pub quiet: bool,
}

/// A registry, and an image there.
struct Connection {
    client: Client,
    bars: MultiProgress,
}

/// Connects as somebody, by each protocol that is allowed, until one answers to `first`. What is to be done with the
/// repository is in `actions`.
async fn connect<T>(
    name: &Reference,
    options: &Options,
    credentials: Credentials,
    actions: &'static str,
    first: impl AsyncFn(&Client) -> Result<T, ClientError>,
) -> Result<(Connection, T), Error> {
    // There is one in the process already if this is not the first connection.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let insecure = options.insecure || is_loopback(&name.registry);
    let schemes = match insecure {
        true => &["https", "http"][..],
        false => &["https"],
    };
    let mut failed = None;
    for scheme in schemes {
        let way = Way { scheme, insecure };
        let client = Client::new(name, way, credentials.clone(), actions);
        let client = client.map_err(|error| remote_error(name, error))?;
        match first(&client).await {
            Ok(answer) => {
                let bars = match options.quiet {
                    true => MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
                    false => MultiProgress::new(),
                };
                return Ok((Connection { client, bars }, answer));
            }
            Err(error) if error.is_of_the_way() => failed = Some(error),
            Err(error) => return Err(remote_error(name, error)),
        }
    }
    Err(match failed {
        Some(source) => Error::Connect {
            registry: name.registry.clone(),
            source: Box::new(source),
        },
        None => Error::Refused {
            registry: name.registry.clone(),
            name: name.familiar(),
        },
    })
}

impl Connection {
    /// A bar for content on its way; it shows nothing where there is no terminal.
    fn bar(&self, content: &Descriptor) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new(content.size));
        let style = "{prefix} {bar:30} {bytes:>11} of {total_bytes:11} {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_prefix(content.digest.short());
        bar
    }
}

/// What a registry or the way to it failed with.
fn remote_error(name: &Reference, source: ClientError) -> Error {
    let registry = name.registry.clone();
    match source.status() {
        Some(401 | 403 | 404) => Error::Refused {
            registry,
            name: name.familiar(),
        },
        _ => Error::Remote {
            registry,
            name: name.familiar(),
            source: Box::new(source),
        },
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => registry.split(':').next(),
    };
    let host = host.unwrap_or_default();
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, credentials or images go over plain HTTP to another machine.
    #[test]
    fn only_loopback_is_trusted_without_a_certificate() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.1.2.3",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "docker.io",
            "localhost.example",
            "10.0.0.1:5000",
            "[fe80::1]",
            "128.0.0.1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
