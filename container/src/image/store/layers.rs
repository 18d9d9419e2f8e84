//! Layers as VMs use them: one EROFS image each, made once.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::oci::{Descriptor, Manifest};
use super::{Error, Image, MAX_LAYERS, Record, Store};
use crate::image::digest::Digest;
use crate::image::erofs::Writer;
use crate::image::layer::tree::Tree;
use crate::image::layer::{self, apply};
use crate::image::unpack;

/// The diff id of a tar without entries, as Docker writes it. Images have many of them.
const EMPTY: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// A layer of an image: what its tar unpacks to, and where it is.
#[derive(Debug, Clone)]
struct Layer {
    diff_id: Digest,
    blob: Digest,
}

/// What a layer has become.
enum Made {
    Alone(PathBuf),
    NeedsLower,
}

impl Store {
    /// The layers of an image, the lowest first, made if need be. A session must be held.
    pub(super) fn make_layers(
        &self,
        manifest: &Manifest,
        diff_ids: &[String],
    ) -> Result<Vec<PathBuf>, Error> {
        let layers = layers(&manifest.layers, diff_ids)?;
        // So many of the lowest are merged into one.
        let mut merged = match layers.len() > MAX_LAYERS {
            true => layers.len() - (MAX_LAYERS - 1),
            false => 0,
        };
        let mut alone = Vec::new();
        for (at, layer) in layers.iter().enumerate().skip(merged) {
            match self.make_layer(layer)? {
                Made::Alone(path) => alone.push(path),
                Made::NeedsLower => {
                    merged = at + 1;
                    alone.clear();
                }
            }
        }
        if merged > 0 {
            alone.insert(0, self.merge_layers(&layers[..merged])?);
        }
        Ok(alone)
    }

    /// The files under `layers/` that the images of these layers may use.
    pub(super) fn layer_files(&self, manifest: &Manifest, diff_ids: &[String]) -> Vec<PathBuf> {
        let Ok(layers) = layers(&manifest.layers, diff_ids) else {
            return Vec::new();
        };
        let mut chain = None;
        let mut files = Vec::new();
        for layer in layers {
            let id = Digest::chain(chain, layer.diff_id);
            chain = Some(id);
            files.push(self.layer_path(layer.diff_id, "erofs"));
            files.push(self.layer_path(layer.diff_id, "needs-lower"));
            files.push(self.layer_path(id, "merged.erofs"));
        }
        files
    }

    pub(super) fn layer_path(&self, id: Digest, suffix: &str) -> PathBuf {
        self.root.join(format!("layers/{}.{suffix}", id.hex()))
    }

    fn make_layer(&self, layer: &Layer) -> Result<Made, Error> {
        let path = self.layer_path(layer.diff_id, "erofs");
        let marker = self.layer_path(layer.diff_id, "needs-lower");
        let made = || {
            if path.exists() {
                return Some(Made::Alone(path.clone()));
            }
            marker.exists().then_some(Made::NeedsLower)
        };
        if let Some(made) = made() {
            return Ok(made);
        }
        // Others may be making it: then this waits, and finds it made.
        let _lock = self.lock(
            &format!("tmp/{}.lock", layer.diff_id.hex()),
            FlockOperation::LockExclusive,
        )?;
        if let Some(made) = made() {
            return Ok(made);
        }
        let mut tree = Tree::new(false);
        let temporary = self.temporary()?;
        let mut image = self.writer(&temporary.file)?;
        self.apply(layer, &mut tree, &mut image)?;
        if tree.needs_lower() {
            self.write_file(&marker, b"")?;
            return Ok(Made::NeedsLower);
        }
        finish(image, &tree, layer.diff_id)?;
        self.place(temporary, &path)?;
        Ok(Made::Alone(path))
    }

    fn merge_layers(&self, layers: &[Layer]) -> Result<PathBuf, Error> {
        let chain = layers.iter().fold(None, |below, layer| {
            Some(Digest::chain(below, layer.diff_id))
        });
        let Some(chain) = chain else {
            return Ok(PathBuf::new());
        };
        let path = self.layer_path(chain, "merged.erofs");
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock(
            &format!("tmp/{}.lock", chain.hex()),
            FlockOperation::LockExclusive,
        )?;
        if path.exists() {
            return Ok(path);
        }
        let mut tree = Tree::new(true);
        let temporary = self.temporary()?;
        let mut image = self.writer(&temporary.file)?;
        for layer in layers {
            self.apply(layer, &mut tree, &mut image)?;
            tree.next_layer();
        }
        finish(image, &tree, chain)?;
        self.place(temporary, &path)?;
        Ok(path)
    }

    /// Writes all files of an image to an empty directory, for a container that is only a process. Who
    /// is not root becomes the owner of all of it, and devices are left out.
    pub fn unpack(&self, image: &Image, directory: &Path) -> Result<(), Error> {
        let _session = self.begin()?;
        let temporary = self.temporary()?;
        let mut content = self.writer(&temporary.file)?;
        let tree = self.merge(image.digest, &mut content)?;
        // Holes at the end have not been written.
        let failed = |error| Error::io("cannot unpack to", directory, error);
        content.extend().map_err(failed)?;
        unpack::write(&tree, &temporary.file, directory).map_err(failed)
    }

    /// The names and attributes of an image's files, without content.
    pub fn names(&self, record: &Record) -> Result<Tree, Error> {
        self.merge(record.descriptor.digest, &mut Writer::discarding())
    }

    fn merge(&self, manifest: Digest, image: &mut Writer) -> Result<Tree, Error> {
        let manifest: Manifest = self.document("manifest", manifest)?;
        let (config, _) = self.configuration(manifest.config.digest)?;
        let mut tree = Tree::new(true);
        for layer in layers(&manifest.layers, config.rootfs().diff_ids())? {
            self.apply(&layer, &mut tree, image)?;
            tree.next_layer();
        }
        Ok(tree)
    }

    fn writer(&self, file: &File) -> Result<Writer, Error> {
        let file = file.try_clone();
        Ok(Writer::new(
            file.map_err(|e| Error::io("cannot write", &self.root, e))?,
        ))
    }

    /// Applies a layer; what it unpacks to must be what the configuration says.
    fn apply(&self, layer: &Layer, tree: &mut Tree, image: &mut Writer) -> Result<(), Error> {
        let path = self.blob(layer.blob);
        let file = File::open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NoContent { digest: layer.blob },
            _ => Error::io("cannot open", &path, e),
        })?;
        let found = apply(file, tree, image).map_err(|source| Error::Layer {
            digest: layer.blob,
            source,
        })?;
        match found == layer.diff_id {
            true => Ok(()),
            false => Err(Error::Mismatch {
                expected: layer.diff_id,
                found,
            }),
        }
    }
}

fn finish(image: Writer, tree: &Tree, id: Digest) -> Result<(), Error> {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&id.bytes()[..16]);
    image.finish(tree, uuid).map_err(|source| Error::Layer {
        digest: id,
        source: layer::Error::Image(source),
    })
}

/// The layers that have anything in them.
fn layers(descriptors: &[Descriptor], diff_ids: &[String]) -> Result<Vec<Layer>, Error> {
    if descriptors.len() != diff_ids.len() {
        return Err(Error::LayerCount {
            layers: descriptors.len(),
            diff_ids: diff_ids.len(),
        });
    }
    descriptors
        .iter()
        .zip(diff_ids)
        .filter(|(_, diff_id)| *diff_id != EMPTY)
        .map(|(descriptor, diff_id)| {
            Ok(Layer {
                diff_id: diff_id
                    .parse()
                    .map_err(|_| Error::DiffId(diff_id.clone()))?,
                blob: descriptor.digest,
            })
        })
        .collect()
}
