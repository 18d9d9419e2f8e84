//! What a container changed: the upper directory of its overlay as a layer.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

pub use cofferdam_changes::write_layer;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::archive::{self, Error, Loaded};
use super::digest::Digesting;
use super::layer::budget::Budget;
use super::layer::tar::Archive;
use super::layer::tree::Tree;
use super::layer::{OPAQUE, WHITEOUT};
use super::reference::Reference;
use super::store::oci::{self, Descriptor};
use super::store::{Record, Store};

/// What a change takes in memory beside its path.
const KEPT: usize = 64;

/// What a new image says of itself.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// `NAME <ADDRESS>`.
    pub author: Option<String>,
    /// A comment in its history.
    pub message: Option<String>,
    /// When, in RFC 3339.
    pub created: String,
    /// What was run.
    pub created_by: String,
    /// Dockerfile instructions for its configuration, see [`super::change`].
    pub changes: Vec<String>,
}

/// Makes an image of another and a layer on top, an uncompressed tar with OCI's whiteouts, as
/// [`write_layer`] writes it.
pub fn commit(
    store: &Store,
    base: &Record,
    mut layer: impl Read,
    about: &About,
    name: Option<&Reference>,
) -> Result<Loaded, Error> {
    let _session = store.begin()?;
    let blob = store.add()?;
    let mut zipped = GzEncoder::new(blob, Compression::default());
    let mut tar = Digesting::new(&mut layer);
    io::copy(&mut tar, &mut zipped).map_err(Error::Layer)?;
    let (diff_id, _) = tar.finish();
    let (digest, size) = zipped.finish().map_err(Error::Layer)?.finish(None)?;
    let mut config = store.config(base)?;
    for instruction in &about.changes {
        super::change::apply(&mut config, instruction)?;
    }
    config["created"] = about.created.clone().into();
    if let Some(author) = &about.author {
        config["author"] = author.clone().into();
    }
    append(&mut config["rootfs"]["diff_ids"], json!(diff_id));
    append(
        &mut config["history"],
        json!({
            "created": about.created,
            "created_by": about.created_by,
            "author": about.author,
            "comment": about.message,
        }),
    );
    let mut layers = base.manifest.layers.clone();
    layers.push(Descriptor {
        media_type: oci::LAYER_GZIP.to_owned(),
        digest,
        size,
        annotations: Default::default(),
        platform: None,
    });
    let config = store.add_bytes(oci::CONFIG, config.to_string().as_bytes())?;
    let manifest = store.add_manifest(config, layers)?;
    archive::finish(store, manifest, name.cloned().into_iter().collect())
}

fn append(list: &mut Value, entry: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(entry),
        None => *list = json!([entry]),
    }
}

/// How a file differs from the image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The image has none of this name.
    Added,
    /// Its content or attributes.
    Changed,
    /// The container has none of this name.
    Deleted,
}

/// What a layer changes of an image: paths from the root, in the layer's order.
pub fn diff(
    store: &Store,
    base: &Record,
    layer: impl Read,
) -> Result<Vec<(Change, PathBuf)>, Error> {
    let _session = store.begin()?;
    let mut below = store.names(base)?;
    let mut layer = Archive::new(layer);
    let mut changes = Vec::new();
    let mut budget = Budget::default();
    while let Some(entry) = layer.entry().map_err(Error::Layer)? {
        budget.earn(entry.size);
        budget.keep(KEPT + entry.path.len())?;
        let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
        let at = path
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |at| at + 1);
        let (parent, name) = path.split_at(at);
        if name == OPAQUE || (parent.is_empty() && matches!(name, b"" | b".")) {
            continue;
        }
        let (change, path) = match name.strip_prefix(WHITEOUT) {
            Some(hidden) => (Change::Deleted, [parent, hidden].concat()),
            None if is_there(&mut below, path) => (Change::Changed, path.to_vec()),
            None => (Change::Added, path.to_vec()),
        };
        let path = Path::new("/").join(OsString::from_vec(path));
        changes.push((change, path));
    }
    Ok(changes)
}

/// A path through what is no directory is not there.
fn is_there(tree: &mut Tree, path: &[u8]) -> bool {
    matches!(tree.find(path), Ok(Some(_)))
}

impl Change {
    /// `A`, `C` or `D`.
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}
