//! Images in files: OCI layouts, as directories or archives, and the archives of `docker save`.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::digest::Digest;
use super::layer::budget::{Budget, TooMuch};
use super::layer::tar::{Archive, Kind};
use super::layer::{self, decompress};
use super::reference::Reference;
use super::store::oci::{self, Descriptor, Index, Platform};
use super::store::{self, Record, Store};
use crate::json;

/// An index of indexes of indexes is what real images have at most.
const MAX_NESTING: u32 = 4;
/// An archive with more files than this holds no images.
const MAX_FILES: usize = 100_000;

/// What each of them takes in memory beside its path.
const KEPT: usize = 192;

/// Why an archive cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error("cannot read {path:?}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "this is no archive of images: it has neither index.json nor manifest.json; for the files of a container there is `cofferdam import`"
    )]
    NoImages,
    #[error("the archive's {0} cannot be read")]
    Document(&'static str, #[source] serde_json::Error),
    #[error("the archive's manifest.json names {0:?}, which is not in it")]
    Missing(String),
    #[error("the archive has more than {MAX_FILES} files")]
    TooMany,
    #[error(transparent)]
    Memory(#[from] TooMuch),
    #[error("the archive has no image for {wanted}, only for {there}")]
    Platform { wanted: Platform, there: String },
    #[error("the archive's index refers to itself or is nested too deeply")]
    Nested,
    #[error("{0} is neither a manifest nor an index, or both at once")]
    NoManifest(Digest),
    #[error("cannot read the layer")]
    Layer(#[source] io::Error),
    #[error(transparent)]
    Change(#[from] super::change::Error),
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration's digest.
    pub id: Digest,
    /// Its whole names.
    pub names: Vec<String>,
}

/// A `docker save` archive's list of images.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What was found in an archive: files by path, all in the store by now.
#[derive(Default)]
struct Contents {
    files: HashMap<String, (Digest, u64)>,
    links: HashMap<String, String>,
}

/// Loads all images of an archive, compressed or not.
pub fn load(store: &Store, archive: impl Read, platform: &Platform) -> Result<Vec<Loaded>, Error> {
    let session = store.begin()?;
    let mut archive = Archive::new(decompress(archive).map_err(Error::Read)?);
    let mut contents = Contents::default();
    let mut budget = Budget::default();
    while let Some(entry) = archive.entry().map_err(Error::Read)? {
        if contents.files.len() + contents.links.len() > MAX_FILES {
            return Err(Error::TooMany);
        }
        budget.keep(KEPT + entry.path.len() + entry.link.len())?;
        let path = plain(&String::from_utf8_lossy(&entry.path));
        match entry.kind {
            Kind::File => {
                let found = add(store, &mut archive, &path)?;
                contents.files.insert(path, found);
            }
            Kind::Symlink | Kind::HardLink => {
                let link = String::from_utf8_lossy(&entry.link).into_owned();
                let target = match entry.kind {
                    Kind::HardLink => link,
                    _ => format!("{path}/../{link}"),
                };
                contents.links.insert(path, plain(&target));
            }
            _ => {}
        }
    }
    let loaded = contents.load(store, platform);
    drop(session);
    store.sweep(false)?;
    loaded
}

/// Loads all images of an OCI layout that is a directory.
pub fn load_directory(
    store: &Store,
    directory: &Path,
    platform: &Platform,
) -> Result<Vec<Loaded>, Error> {
    let session = store.begin()?;
    let mut contents = Contents::default();
    for part in ["", "blobs/sha256"] {
        let path = directory.join(part);
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_type().map_err(failed)?.is_file() {
                continue;
            }
            let name = plain(&format!("{part}/{}", entry.file_name().to_string_lossy()));
            let path = entry.path();
            let mut file = File::open(&path).map_err(|source| Error::File { path, source })?;
            let found = add(store, &mut file, &name)?;
            contents.files.insert(name, found);
        }
    }
    let loaded = contents.load(store, platform);
    drop(session);
    store.sweep(false)?;
    loaded
}

/// Adds a file to the store; in an OCI layout its name says what its digest must be.
fn add(store: &Store, content: &mut impl Read, path: &str) -> Result<(Digest, u64), Error> {
    let expected = path
        .strip_prefix("blobs/sha256/")
        .and_then(|hex| format!("sha256:{hex}").parse().ok());
    let mut blob = store.add()?;
    io::copy(content, &mut blob).map_err(Error::Read)?;
    Ok(blob.finish(expected)?)
}

/// A path without `.`, `..` and double slashes.
fn plain(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

impl Contents {
    fn load(&self, store: &Store, platform: &Platform) -> Result<Vec<Loaded>, Error> {
        let index = self.files.get("index.json");
        if let (Some((index, _)), true) = (index, self.files.contains_key("oci-layout")) {
            let index = store.read("index", *index)?;
            let index =
                json::from_slice(&index).map_err(|error| Error::Document("index.json", error))?;
            return load_index(store, &index, platform);
        }
        let (list, _) = self.files.get("manifest.json").ok_or(Error::NoImages)?;
        let list: Vec<Saved> = json::from_slice(&store.read("list", *list)?)
            .map_err(|error| Error::Document("manifest.json", error))?;
        list.iter()
            .map(|saved| self.load_saved(store, saved))
            .collect()
    }

    fn find(&self, path: &str) -> Result<(Digest, u64), Error> {
        let mut at = plain(path);
        // Old archives have a layer once, and links to it.
        for _ in 0..8 {
            if let Some(found) = self.files.get(&at) {
                return Ok(*found);
            }
            match self.links.get(&at) {
                Some(target) => at = target.clone(),
                None => break,
            }
        }
        Err(Error::Missing(path.to_owned()))
    }

    fn load_saved(&self, store: &Store, saved: &Saved) -> Result<Loaded, Error> {
        let (config, size) = self.find(&saved.config)?;
        let mut layers = Vec::new();
        for path in &saved.layers {
            let (digest, size) = self.find(path)?;
            layers.push(layer_descriptor(store, digest, size)?);
        }
        let config = Descriptor {
            media_type: oci::CONFIG.to_owned(),
            digest: config,
            size,
            annotations: BTreeMap::new(),
            platform: None,
        };
        let manifest = store.add_manifest(config, layers)?;
        let names = saved.repo_tags.iter().flatten();
        let names = names.filter_map(|name| name.parse().ok()).collect();
        finish(store, manifest, names)
    }
}

/// A layer as it is in the store.
pub fn layer_descriptor(store: &Store, digest: Digest, size: u64) -> Result<Descriptor, Error> {
    let path = store.blob(digest);
    let mut magic = [0; 4];
    let read = File::open(&path).and_then(|mut file| file.read(&mut magic));
    read.map_err(|source| Error::File { path, source })?;
    let media_type = match layer::compression(&magic) {
        layer::Compression::None => oci::LAYER,
        layer::Compression::Gzip => oci::LAYER_GZIP,
        layer::Compression::Zstd => oci::LAYER_ZSTD,
    };
    Ok(Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        annotations: BTreeMap::new(),
        platform: None,
    })
}

fn load_index(store: &Store, index: &Index, platform: &Platform) -> Result<Vec<Loaded>, Error> {
    let mut loaded = Vec::new();
    let mut others = Vec::new();
    for entry in &index.manifests {
        match pick(store, entry, platform, 0)? {
            Ok(manifest) => loaded.push(finish(store, manifest, names(entry))?),
            Err(there) => others.extend(there),
        }
    }
    if loaded.is_empty() && !others.is_empty() {
        others.dedup();
        return Err(Error::Platform {
            wanted: platform.clone(),
            there: others.join(", "),
        });
    }
    Ok(loaded)
}

/// The manifest that an entry of an index is, or leads to for this platform; else the platforms there are.
fn pick(
    store: &Store,
    entry: &Descriptor,
    platform: &Platform,
    depth: u32,
) -> Result<Result<Descriptor, Vec<String>>, Error> {
    if depth > MAX_NESTING {
        return Err(Error::Nested);
    }
    if let Some(other) = &entry.platform
        && !platform.takes(other)
    {
        return Ok(Err(vec![other.to_string()]));
    }
    let document: Value = store.document("manifest", entry.digest)?;
    match oci::is_index(&document) {
        Some(true) => {}
        Some(false) => return Ok(Ok(entry.clone())),
        None => return Err(Error::NoManifest(entry.digest)),
    }
    let index: Index = json::from_value(document).map_err(|_| Error::NoManifest(entry.digest))?;
    let mut others = Vec::new();
    for entry in &index.manifests {
        // Archives of one platform still have the whole index.
        if !store.blob(entry.digest).exists() {
            continue;
        }
        match pick(store, entry, platform, depth + 1)? {
            Ok(manifest) => return Ok(Ok(manifest)),
            Err(there) => others.extend(there),
        }
    }
    Ok(Err(others))
}

/// The names that an index has for an image. `latest` alone is a tag without a repository, as
/// `skopeo copy … oci:DIRECTORY:latest` leaves it: no name.
fn names(entry: &Descriptor) -> Vec<Reference> {
    let given = |key| entry.annotations.get(key);
    let name = given(oci::FULL_NAME).or_else(|| given(oci::NAME).filter(|name| *name != "latest"));
    name.and_then(|name| name.parse().ok())
        .into_iter()
        .collect()
}

/// Makes the layers, so that only what can be used gets a name.
pub(super) fn finish(
    store: &Store,
    manifest: Descriptor,
    names: Vec<Reference>,
) -> Result<Loaded, Error> {
    let mut manifest = manifest;
    manifest.annotations.clear();
    let record = Record {
        manifest: store.document("manifest", manifest.digest)?,
        descriptor: manifest,
        names: Vec::new(),
    };
    let image = store.image(&record)?;
    if names.is_empty() {
        store.name(&record.descriptor, None)?;
    }
    for name in &names {
        store.name(&record.descriptor, Some(name))?;
    }
    Ok(Loaded {
        id: image.id,
        names: names.iter().map(Reference::to_string).collect(),
    })
}

/// Makes an image of one layer: a tar of a file system, compressed or not.
pub fn import(
    store: &Store,
    mut tar: impl Read,
    config: Value,
    name: Option<&Reference>,
) -> Result<Loaded, Error> {
    let _session = store.begin()?;
    let mut blob = store.add()?;
    io::copy(&mut tar, &mut blob).map_err(Error::Read)?;
    let (digest, size) = blob.finish(None)?;
    let layer = layer_descriptor(store, digest, size)?;
    let diff_id = unpacked_digest(&store.blob(digest)).map_err(Error::Layer)?;
    let mut config = config;
    config["rootfs"] = json!({ "type": "layers", "diff_ids": [diff_id] });
    let config = store.add_bytes(oci::CONFIG, config.to_string().as_bytes())?;
    let manifest = store.add_manifest(config, vec![layer])?;
    finish(store, manifest, name.cloned().into_iter().collect())
}

fn unpacked_digest(path: &Path) -> io::Result<Digest> {
    let mut digesting = super::digest::Digesting::new(io::sink());
    io::copy(&mut decompress(File::open(path)?)?, &mut digesting)?;
    Ok(digesting.finish().0)
}

/// Writes images as an archive that is an OCI layout and what `docker save` writes at once. The same
/// images make the same bytes.
pub fn save(store: &Store, images: &[String], out: impl Write) -> Result<(), Error> {
    let _session = store.begin()?;
    let mut index = Index::default();
    let mut list: Vec<Value> = Vec::new();
    let mut blobs = BTreeMap::new();
    for image in images {
        let record = store.find(image)?;
        let reference = image.parse::<Reference>().ok();
        // By an id an image is saved with all its names.
        let named = reference.filter(|name| record.names.contains(&name.to_string()));
        let names: Vec<Reference> = match named {
            Some(name) => vec![name],
            None => record
                .names
                .iter()
                .filter_map(|name| name.parse().ok())
                .collect(),
        };
        let manifest = &record.manifest;
        blobs.insert(record.descriptor.digest, ());
        blobs.insert(manifest.config.digest, ());
        blobs.extend(manifest.layers.iter().map(|layer| (layer.digest, ())));
        let path = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
        list.push(json!({
            "Config": path(manifest.config.digest),
            "RepoTags": names.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "Layers": manifest.layers.iter().map(|layer| path(layer.digest)).collect::<Vec<_>>(),
        }));
        let mut entry = record.descriptor.clone();
        entry.annotations.clear();
        if names.is_empty() {
            index.manifests.push(entry.clone());
        }
        for name in names {
            let name = name.to_string();
            entry.annotations.insert(oci::NAME.to_owned(), name.clone());
            entry.annotations.insert(oci::FULL_NAME.to_owned(), name);
            index.manifests.push(entry.clone());
        }
    }
    let document = |value: Result<Vec<u8>, serde_json::Error>| {
        value.map_err(|error| Error::Write(error.into()))
    };
    let index = document(serde_json::to_vec(&index))?;
    let list = document(serde_json::to_vec(&list))?;
    let mut tar = tar::Builder::new(out);
    for digest in blobs.into_keys() {
        let path = store.blob(digest);
        let failed = |source| Error::File {
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let name = format!("blobs/sha256/{}", digest.hex());
        append(&mut tar, &name, size, file).map_err(Error::Write)?;
    }
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    for (name, bytes) in [
        ("index.json", &index[..]),
        ("manifest.json", &list),
        ("oci-layout", layout),
    ] {
        append(&mut tar, name, bytes.len() as u64, bytes).map_err(Error::Write)?;
    }
    let mut out = tar.into_inner().map_err(Error::Write)?;
    out.flush().map_err(Error::Write)
}

fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    tar.append(&header, content)
}
