//! From a registry into the store.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::{Connection, Error, Options, connect, credentials, remote_error, runtime};
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::store::oci::{self, Descriptor, Index, Manifest};
use crate::image::store::{self, Image, Partial, Record, Store};
use crate::json;

/// As Docker.
const CONCURRENT: usize = 3;
/// A connection that breaks so often without a byte in between is down.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
const WAIT: Duration = Duration::from_millis(100);

/// What was pulled.
#[derive(Debug)]
pub struct Pulled {
    /// The image, ready for use.
    pub image: Image,
    /// Of what the registry has by that name: a manifest or an index.
    pub digest: Digest,
    /// Whether anything had to be fetched or named.
    pub new: bool,
}

/// The image of a name or an id: the store's, or, if it has none, the registry's, as `run` does it.
/// `missing` is called before anything is fetched.
pub fn get(
    store: &Store,
    name: &str,
    options: &Options,
    missing: impl FnOnce(&Reference),
) -> Result<Image, Error> {
    match store.resolve(name) {
        Err(error @ store::Error::NotFound(_)) => match name.parse::<Reference>() {
            Ok(reference) => {
                missing(&reference);
                let pulled = pull(store, &reference, options);
                pulled.map(|pulled| pulled.image).map_err(|error| {
                    match store.tags(&reference).unwrap_or_default() {
                        tags if tags.is_empty() => error,
                        tags => Error::Tags {
                            name: reference.familiar(),
                            tags: tags.join(", "),
                            source: Box::new(error),
                        },
                    }
                })
            }
            Err(_) => Err(error.into()),
        },
        other => Ok(other?),
    }
}

/// Gets an image, and gives it its name in the store.
pub fn pull(store: &Store, name: &Reference, options: &Options) -> Result<Pulled, Error> {
    let session = store.begin()?;
    let (descriptor, digest) = runtime()?.block_on(fetch(store, name, options))?;
    let record = Record {
        manifest: store.document("manifest", descriptor.digest)?,
        descriptor,
        names: Vec::new(),
    };
    let image = store.image(&record)?;
    let mut local = name.clone();
    if local.digest.is_some() {
        // The tag may be another image's by now.
        local.tag = None;
    }
    let known = store.find(&local.to_string());
    let new = !known.is_ok_and(|known| known.descriptor.digest == image.digest);
    store.name(&record.descriptor, Some(&local))?;
    drop(session);
    Ok(Pulled { image, digest, new })
}

async fn fetch(
    store: &Store,
    name: &Reference,
    options: &Options,
) -> Result<(Descriptor, Digest), Error> {
    let wanted = match (name.digest, &name.tag) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.clone(),
        (None, None) => "latest".to_owned(),
    };
    let get = async |client: &Client| client.manifest(&wanted).await;
    let (connection, bytes) = connect(
        name,
        options,
        credentials::find(&name.registry)?,
        "pull",
        get,
    )
    .await?;
    let (bytes, digest) = verified(bytes, name.digest)?;
    let document: Value = parse("a manifest", &bytes)?;
    let bytes = match oci::is_index(&document) {
        None => return Err(Error::NoManifest(digest)),
        Some(false) => bytes,
        Some(true) => {
            let index = parse("an index", &bytes)?;
            let wanted = choose(&index, name, options)?;
            let digest = wanted.digest.to_string();
            let bytes = connection.client.manifest(&digest).await;
            let bytes = bytes.map_err(|error| remote_error(name, error))?;
            verified(bytes, Some(wanted.digest))?.0
        }
    };
    let image: Manifest = parse("a manifest", &bytes)?;
    let media_type = match &image.media_type[..] {
        "" => oci::MANIFEST,
        given => given,
    };
    let blobs = std::iter::once(&image.config).chain(&image.layers);
    // An image may have a layer twice.
    let mut wanted: Vec<&Descriptor> = Vec::new();
    for blob in blobs {
        if !wanted.iter().any(|other| other.digest == blob.digest) {
            wanted.push(blob);
        }
    }
    stream::iter(
        wanted
            .into_iter()
            .map(|blob| get_blob(&connection, store, name, blob)),
    )
    .buffer_unordered(CONCURRENT)
    .try_collect::<Vec<()>>()
    .await?;
    let descriptor = store.add_bytes(media_type, &bytes)?;
    Ok((descriptor, digest))
}

fn verified(bytes: Vec<u8>, expected: Option<Digest>) -> Result<(Vec<u8>, Digest), Error> {
    let found = Digest::of(&bytes);
    match expected {
        Some(expected) if expected != found => {
            Err(store::Error::Mismatch { expected, found }.into())
        }
        _ => Ok((bytes, found)),
    }
}

fn parse<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Error> {
    json::from_slice(bytes).map_err(|source| Error::Document { what, source })
}

fn choose<'a>(
    index: &'a Index,
    name: &Reference,
    options: &Options,
) -> Result<&'a Descriptor, Error> {
    let wanted = &options.platform;
    let suits = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|p| wanted.takes(p));
    index.manifests.iter().find(suits).ok_or_else(|| {
        let there = index
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref());
        // What build tools attach to images is for no platform.
        let there = there.filter(|platform| platform.os != "unknown");
        Error::Platform {
            name: name.familiar(),
            wanted: wanted.clone(),
            there: there
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        }
    })
}

/// Gets content that the store does not have, from where the last attempt broke off.
async fn get_blob(
    connection: &Connection,
    store: &Store,
    name: &Reference,
    blob: &Descriptor,
) -> Result<(), Error> {
    let bar = connection.bar(blob);
    let mut partial = loop {
        if store.blob(blob.digest).exists() {
            bar.set_position(blob.size);
            bar.finish_with_message("already there");
            return Ok(());
        }
        match store.partial(blob.digest)? {
            Some(partial) => break partial,
            None => {
                bar.set_message("another process fetches it");
                tokio::time::sleep(WAIT).await;
            }
        }
    };
    if partial.length() > blob.size {
        restart(&mut partial, blob)?;
    }
    let mut attempts = 0;
    while partial.length() < blob.size {
        let before = partial.length();
        bar.set_position(before);
        let outcome = receive(connection, name, blob, &mut partial, &bar).await?;
        if partial.length() > before {
            attempts = 0;
        }
        if let Err(source) = outcome {
            attempts += 1;
            if attempts == ATTEMPTS {
                return Err(Error::Broken {
                    digest: blob.digest,
                    source,
                });
            }
            bar.set_message("the connection broke, trying again");
            tokio::time::sleep(PAUSE * attempts).await;
        }
    }
    store.finish_partial(partial, blob.digest)?;
    bar.finish_with_message("done");
    Ok(())
}

/// Receives until the end, or until the connection breaks: then it may be tried again.
async fn receive(
    connection: &Connection,
    name: &Reference,
    blob: &Descriptor,
    partial: &mut Partial,
    bar: &ProgressBar,
) -> Result<Result<(), std::io::Error>, Error> {
    let (mut response, is_partial) =
        match connection.client.blob(blob.digest, partial.length()).await {
            Ok(answer) => answer,
            Err(error) => return again(name, error),
        };
    // Of a registry that cannot begin in the middle.
    if partial.length() > 0 && !is_partial {
        restart(partial, blob)?;
    }
    loop {
        let part = match response.chunk().await {
            Ok(Some(part)) => part,
            Ok(None) => break,
            Err(error) => return Ok(Err(std::io::Error::other(error))),
        };
        if partial.length() + part.len() as u64 > blob.size {
            restart(partial, blob)?;
            return Err(Error::TooLong {
                digest: blob.digest,
                size: blob.size,
            });
        }
        partial.append(&part).map_err(|source| Error::Write {
            digest: blob.digest,
            source,
        })?;
        bar.set_position(partial.length());
    }
    match partial.length() == blob.size {
        true => Ok(Ok(())),
        false => Ok(Err(std::io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Failures on the way are worth another attempt, refusals are not.
fn again(name: &Reference, error: ClientError) -> Result<Result<(), std::io::Error>, Error> {
    match error.is_of_the_way() || error.status().is_some_and(|status| status >= 500) {
        true => Ok(Err(std::io::Error::other(error))),
        false => Err(remote_error(name, error)),
    }
}

fn restart(partial: &mut Partial, blob: &Descriptor) -> Result<(), Error> {
    partial.restart().map_err(|source| Error::Write {
        digest: blob.digest,
        source,
    })
}
