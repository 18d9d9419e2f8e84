//! From the store to a registry.

use std::fs::File;
use std::io::Read;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::client::Client;
use super::{Connection, Error, Options, connect, credentials, remote_error, runtime};
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::store::oci::Descriptor;
use crate::image::store::{Record, Store};

const CONCURRENT: usize = 3;
const CHUNK: usize = 1 << 20;

/// Sends an image, as it is, to the registry and the tag of a name. Gives its digest there.
pub fn push(
    store: &Store,
    record: &Record,
    name: &Reference,
    options: &Options,
) -> Result<Digest, Error> {
    if name.digest.is_some() {
        return Err(Error::PushByDigest(name.familiar()));
    }
    let _session = store.begin()?;
    runtime()?.block_on(send(store, record, name, options))?;
    Ok(record.descriptor.digest)
}

async fn send(
    store: &Store,
    record: &Record,
    name: &Reference,
    options: &Options,
) -> Result<(), Error> {
    let config = &record.manifest.config;
    // Also tells whether there is a registry at all, and by which protocol.
    let first = async |client: &Client| client.has(config.digest).await;
    let (connection, _) = connect(
        name,
        options,
        credentials::find(&name.registry)?,
        "pull,push",
        first,
    )
    .await?;
    let mut blobs: Vec<&Descriptor> = Vec::new();
    for blob in record.manifest.layers.iter().chain([config]) {
        if !blobs.iter().any(|other| other.digest == blob.digest) {
            blobs.push(blob);
        }
    }
    stream::iter(
        blobs
            .into_iter()
            .map(|blob| send_blob(&connection, store, name, blob)),
    )
    .buffer_unordered(CONCURRENT)
    .try_collect::<Vec<()>>()
    .await?;
    let manifest = store.read("manifest", record.descriptor.digest)?;
    let media_type = &record.descriptor.media_type;
    let tag = name.tag.as_deref().unwrap_or("latest");
    let tagged = connection.client.tag(tag, media_type, manifest);
    tagged.await.map_err(|error| remote_error(name, error))?;
    Ok(())
}

async fn send_blob(
    connection: &Connection,
    store: &Store,
    name: &Reference,
    blob: &Descriptor,
) -> Result<(), Error> {
    let bar = connection.bar(blob);
    let failed = |error| remote_error(name, error);
    let client = &connection.client;
    if client.has(blob.digest).await.map_err(failed)? {
        bar.set_position(blob.size);
        bar.finish_with_message("already there");
        return Ok(());
    }
    let path = store.blob(blob.digest);
    let file = File::open(&path).map_err(|source| Error::Read { path, source })?;
    let progress = bar.clone();
    let parts = stream::unfold(file, move |mut file| {
        let mut part = vec![0; CHUNK];
        let read = file.read(&mut part);
        let progress = progress.clone();
        async move {
            match read {
                Ok(0) => None,
                Ok(read) => {
                    part.truncate(read);
                    progress.inc(read as u64);
                    Some((Ok(Bytes::from(part)), file))
                }
                Err(error) => Some((Err(error), file)),
            }
        }
    });
    client
        .upload(blob.digest, blob.size, parts)
        .await
        .map_err(failed)?;
    bar.finish_with_message("done");
    Ok(())
}
