//! Images from and to registries.
//!
//! Content is verified by digest before it has a name in the store. What a broken connection leaves of a
//! layer stays in the store's `tmp/` and is gone on with, by this process or a later one.

mod credentials;
mod pull;
mod push;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::{Client, Reference as Remote, RegistryOperation};

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
        source: Box<OciDistributionError>,
    },
    #[error(
        "{registry} has no image {name}, or not for you; `podman login` or `docker login` tells it who you are"
    )]
    Refused { registry: String, name: String },
    #[error("{name} at {registry}")]
    Remote {
        registry: String,
        name: String,
        #[source]
        source: Box<OciDistributionError>,
    },
    #[error("the registry sends {what} that is no document of an image")]
    Document {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("the registry sends {what} of more than {limit} bytes", limit = store::MAX_DOCUMENT)]
    TooLarge { what: &'static str },
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
    #[error("the manifest has the media type {0:?}, which no registry takes")]
    MediaType(String),
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
    remote: Remote,
    bars: MultiProgress,
}

/// Connects, by each protocol that is allowed, until one answers to `first`.
async fn connect<T>(
    name: &Reference,
    options: &Options,
    operation: RegistryOperation,
    first: impl AsyncFn(&Connection) -> Result<T, OciDistributionError>,
) -> Result<(Connection, T), Error> {
    // There is one in the process already if this is not the first connection.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let credentials = credentials::find(&name.registry)?;
    let insecure = options.insecure || is_loopback(&name.registry);
    let protocols = match insecure {
        true => &[ClientProtocol::Https, ClientProtocol::Http][..],
        false => &[ClientProtocol::Https],
    };
    let mut failed = None;
    for protocol in protocols {
        let config = ClientConfig {
            protocol: protocol.clone(),
            accept_invalid_certificates: insecure,
            use_monolithic_push: true,
            connect_timeout: Some(Duration::from_secs(20)),
            read_timeout: Some(Duration::from_secs(60)),
            user_agent: concat!("cofferdam/", env!("CARGO_PKG_VERSION")),
            https_proxy: proxy("https_proxy"),
            http_proxy: proxy("http_proxy"),
            no_proxy: proxy("no_proxy"),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| remote_error(name, error))?;
        let connection = Connection {
            client,
            remote: remote(name),
            bars: match options.quiet {
                true => MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden()),
                false => MultiProgress::new(),
            },
        };
        let registry = connection.remote.resolve_registry().to_owned();
        connection
            .client
            .store_auth_if_needed(&registry, &credentials)
            .await;
        // Without this, a failure to get a token shows only as a refusal.
        let authenticated = connection
            .client
            .auth(&connection.remote, &credentials, operation)
            .await;
        let answer = match authenticated {
            Ok(_) => first(&connection).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => return Ok((connection, answer)),
            // Whoever answers with a status was reached.
            Err(OciDistributionError::RequestError(error)) if error.status().is_none() => {
                failed = Some(OciDistributionError::RequestError(error));
            }
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

fn remote(name: &Reference) -> Remote {
    let (registry, repository) = (name.registry.clone(), name.repository.clone());
    match name.digest {
        Some(digest) => Remote::with_digest(registry, repository, digest.to_string()),
        None => {
            let tag = name.tag.clone().unwrap_or_else(|| "latest".to_owned());
            Remote::with_tag(registry, repository, tag)
        }
    }
}

/// What a registry or the way to it failed with.
fn remote_error(name: &Reference, error: OciDistributionError) -> Error {
    use OciDistributionError as E;
    let registry = name.registry.clone();
    let status = match &error {
        E::RequestError(error) => error.status().map(|status| status.as_u16()),
        E::ServerError { code, .. } => Some(*code),
        _ => None,
    };
    match error {
        _ if matches!(status, Some(401 | 403 | 404)) => Error::Refused {
            registry,
            name: name.familiar(),
        },
        E::ImageManifestNotFoundError(_)
        | E::AuthenticationFailure(_)
        | E::UnauthorizedError { .. } => Error::Refused {
            registry,
            name: name.familiar(),
        },
        E::RegistryError { ref envelope, .. }
            if envelope.errors.iter().any(|error| {
                use oci_client::errors::OciErrorCode as Code;
                matches!(
                    error.code,
                    Code::ManifestUnknown | Code::NameUnknown | Code::Unauthorized | Code::Denied
                )
            }) =>
        {
            Error::Refused {
                registry,
                name: name.familiar(),
            }
        }
        source => Error::Remote {
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

fn proxy(variable: &str) -> Option<String> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    set(variable).or_else(|| set(&variable.to_uppercase()))
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
