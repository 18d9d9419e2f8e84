//! The image store: a directory that survives whoever writes to it being killed, and that any number
//! of processes use at once.
//!
//! ```text
//! oci-layout, index.json, blobs/sha256/HEX   an OCI image layout: other tools can read it
//! layers/DIFF-ID.erofs                       a layer, as VMs use it
//! layers/DIFF-ID.needs-lower                 a layer that only makes sense merged with those below
//! layers/CHAIN-ID.merged.erofs               several layers in one image
//! holds/OWNER                                the image that a container needs
//! tmp/                                       files being written; leftovers go with the next prune
//! lock, index.lock                           flock: see below
//! ```
//!
//! Everything but `index.json` is named by its content and appears complete, by rename, after fsync.
//! Who adds content holds `lock` shared until a name in the index or a hold refers to it; who removes
//! content holds it alone. `index.lock` is held for the moment of an update of the index.

mod blobs;
mod gc;
mod index;
mod layers;
pub mod oci;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use rustix::fs::FlockOperation;

pub use self::blobs::{Blob, MAX_DOCUMENT, Partial};
pub use self::gc::Removed;
use self::oci::{Descriptor, Manifest};
use super::digest::Digest;
use super::reference::{NotAReference, Reference};
use super::{busybox, layer};
use crate::files;
use crate::json;

/// Why the store cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{what} {path:?}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "there is no image {0:?} here; `cofferdam pull` or `cofferdam load` gets one, `cofferdam images` lists them"
    )]
    NotFound(String),
    #[error("there is no image {name} here, but there is its tag {tags}")]
    Tags { name: String, tags: String },
    #[error("{0:?} is the beginning of several image ids; give more of it")]
    Ambiguous(String),
    #[error(transparent)]
    Name(#[from] NotAReference),
    #[error("the content {digest} is not in the store")]
    NoContent { digest: Digest },
    #[error(
        "the content has the digest {found}, not {expected}: it was damaged or forged on the way"
    )]
    Mismatch { expected: Digest, found: Digest },
    #[error("the {kind} {digest} cannot be read")]
    Document {
        kind: &'static str,
        digest: Digest,
        #[source]
        source: serde_json::Error,
    },
    #[error("the {kind} {digest} is larger than {MAX_DOCUMENT} bytes")]
    TooLarge { kind: &'static str, digest: Digest },
    #[error("the image has {layers} layers, but its configuration lists {diff_ids}")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("the image's configuration lists the layer {0:?}, which is no digest")]
    DiffId(String),
    #[error("the layer {digest}")]
    Layer {
        digest: Digest,
        #[source]
        source: layer::Error,
    },
    #[error(
        "the image {image} is used by container {owner}; --force removes its name all the same"
    )]
    InUse { image: String, owner: String },
    #[error(transparent)]
    Busybox(#[from] busybox::Error),
}

/// An image that containers can start from.
#[derive(Debug, Clone)]
pub struct Image {
    /// Of the manifest: what registries know it by.
    pub digest: Digest,
    /// Of the configuration: what Docker calls the image's id.
    pub id: Digest,
    /// What to run, and how.
    pub config: ImageConfiguration,
    /// The same as it came, with what only Docker knows, such as `config.Healthcheck`.
    pub raw_config: serde_json::Value,
    /// EROFS images, the lowest first; at most [`MAX_LAYERS`]. Empty if the image has no files.
    pub layers: Vec<PathBuf>,
}

/// More layers than this are merged from below.
pub const MAX_LAYERS: usize = 8;

/// An image as it is listed; its layers may not have been made yet.
#[derive(Debug, Clone)]
pub struct Record {
    /// The manifest.
    pub descriptor: Descriptor,
    /// What it says.
    pub manifest: Manifest,
    /// Whole names, none for an image that lost its last one.
    pub names: Vec<String>,
}

/// The store. See the module's documentation.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// While one is held, nothing is removed from the store. Who adds content needs one.
#[derive(Debug)]
pub struct Session {
    _lock: File,
}

impl Store {
    /// The store in a directory, which is made if need be.
    pub fn open(root: &Path) -> Result<Self, Error> {
        files::private_directory(root).map_err(|e| Error::io(e.action, root, e.source))?;
        for directory in ["blobs/sha256", "layers", "holds", "tmp"] {
            let path = root.join(directory);
            if !path.is_dir() {
                fs::create_dir_all(&path).map_err(|e| Error::io("cannot make", &path, e))?;
            }
        }
        let store = Self { root: root.into() };
        let marker = store.root.join("oci-layout");
        if !marker.exists() {
            let _session = store.begin()?;
            store.write_file(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(store)
    }

    /// The store of container mode: in [`crate::paths::data`].
    pub fn open_default() -> Result<Self, Error> {
        Self::open(&crate::paths::data().join("images"))
    }

    /// The store's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Keeps others from removing content, until it is dropped.
    pub fn begin(&self) -> Result<Session, Error> {
        let lock = self.lock("lock", FlockOperation::LockShared)?;
        Ok(Session { _lock: lock })
    }

    /// The image of a name, `NAME[:TAG][@DIGEST]`, or an id or the beginning of one, with layers as VMs
    /// use them; they are made if this has not been done. `busybox` is made from the host's if there is
    /// none of that name.
    pub fn resolve(&self, name: &str) -> Result<Image, Error> {
        let _session = self.begin()?;
        let record = match self.find(name) {
            Err(Error::NotFound(_)) if busybox::is_meant(name) => {
                busybox::make(self)?;
                self.find(name)?
            }
            other => other?,
        };
        self.image(&record)
    }

    /// A listed image, ready for use.
    pub fn image(&self, record: &Record) -> Result<Image, Error> {
        let id = record.manifest.config.digest;
        let (config, raw_config) = self.configuration(id)?;
        let diff_ids = config.rootfs().diff_ids();
        let layers = self.make_layers(&record.manifest, diff_ids)?;
        Ok(Image {
            digest: record.descriptor.digest,
            id,
            config,
            raw_config,
            layers,
        })
    }

    /// The configuration of a listed image, as it came.
    pub fn config(&self, record: &Record) -> Result<serde_json::Value, Error> {
        Ok(self.configuration(record.manifest.config.digest)?.1)
    }

    /// A configuration: what it says, and the same as it came.
    fn configuration(
        &self,
        digest: Digest,
    ) -> Result<(ImageConfiguration, serde_json::Value), Error> {
        let kind = "configuration";
        let raw: serde_json::Value = self.document(kind, digest)?;
        match json::from_value(raw.clone()) {
            Ok(config) => Ok((config, raw)),
            Err(source) => Err(Error::Document {
                kind,
                digest,
                source,
            }),
        }
    }

    /// Bytes of an image: of its layers as VMs use them or, those that were not made, as they came.
    pub fn size(&self, record: &Record) -> u64 {
        let made = |id: &str| {
            let id = id.parse().ok()?;
            let file = fs::metadata(self.layer_path(id, "erofs")).ok()?;
            Some(file.blocks() * 512)
        };
        let config = self.config(record).unwrap_or_default();
        let ids = config["rootfs"]["diff_ids"].as_array();
        let ids = ids
            .into_iter()
            .flatten()
            .map(|id| id.as_str().unwrap_or(""));
        let layers = record.manifest.layers.iter().zip(ids);
        layers
            .map(|(layer, id)| made(id).unwrap_or(layer.size))
            .sum()
    }

    /// The image that a name or an id means.
    pub fn find(&self, name: &str) -> Result<Record, Error> {
        let records = self.list()?;
        let missing = || Error::NotFound(name.to_owned());
        if let Ok(reference) = name.parse::<Reference>() {
            let named = find_named(&records, &reference);
            if let Some(record) = named {
                return Ok(record.clone());
            }
        }
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        if digits.len() < 3 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            name.parse::<Reference>()?;
            return Err(missing());
        }
        let mut found = records.iter().filter(|record| {
            record.manifest.config.digest.hex().starts_with(digits)
                || record.descriptor.digest.hex().starts_with(digits)
        });
        let first = found.next().ok_or_else(missing)?;
        // Two manifests (one compressed, say) may share a configuration: that is one image.
        let id = first.manifest.config.digest;
        match found.all(|other| other.manifest.config.digest == id) {
            true => Ok(first.clone()),
            false => Err(Error::Ambiguous(name.to_owned())),
        }
    }

    fn lock(&self, name: &str, operation: FlockOperation) -> Result<File, Error> {
        let path = self.root.join(name);
        let failed = |error| Error::io("cannot lock", &path, error);
        let file = files::lock_file(&path).map_err(failed)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation))
            .map_err(|error| failed(error.into()))?;
        Ok(file)
    }
}

/// A name with a digest means the image of that digest, if it came by that name.
impl Store {
    /// What to tell of an image that is not there: perhaps another tag of it is.
    pub fn absent(&self, name: &str) -> Error {
        let reference = name.parse::<Reference>().ok();
        let tags = reference.as_ref().and_then(|name| self.tags(name).ok());
        match (reference, tags) {
            (Some(name), Some(tags)) if !tags.is_empty() => Error::Tags {
                name: name.familiar(),
                tags: tags.join(", "),
            },
            _ => Error::NotFound(name.to_owned()),
        }
    }

    /// The tags that there are of an image's name.
    pub fn tags(&self, of: &Reference) -> Result<Vec<String>, Error> {
        let records = self.list()?;
        let names = records.iter().flat_map(|record| &record.names);
        let all = names.filter_map(|name| name.parse::<Reference>().ok());
        let same =
            all.filter(|name| (&name.registry, &name.repository) == (&of.registry, &of.repository));
        Ok(same.filter_map(|name| name.tag).collect())
    }
}

fn find_named<'a>(records: &'a [Record], reference: &Reference) -> Option<&'a Record> {
    let mut plain = reference.clone();
    plain.digest = None;
    records.iter().find(|record| match reference.digest {
        None => record.names.contains(&plain.to_string()),
        Some(digest) => {
            let repository = format!("{}/{}", plain.registry, plain.repository);
            let names = |name: &String| {
                name.strip_prefix(&repository)
                    .is_some_and(|rest| rest.starts_with([':', '@']))
            };
            let listed = |name: &String| name.ends_with(&format!("@{digest}"));
            (record.descriptor.digest == digest || record.names.iter().any(listed))
                && record.names.iter().any(names)
        }
    })
}

impl Error {
    fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.into(),
            source,
        }
    }
}
