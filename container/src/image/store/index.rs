//! Which images there are, and their names.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io;

use rustix::fs::FlockOperation;

use super::oci::{self, Descriptor, Index};
use super::{Error, Record, Store};
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::json;

impl Store {
    /// All images, each once, by name.
    pub fn list(&self) -> Result<Vec<Record>, Error> {
        let _session = self.begin()?;
        let mut records: BTreeMap<Digest, Record> = BTreeMap::new();
        for mut descriptor in self.index()?.manifests {
            let name = descriptor.annotations.remove(oci::NAME);
            descriptor.annotations.remove(oci::FULL_NAME);
            let digest = descriptor.digest;
            let record = match records.entry(digest) {
                Entry::Occupied(slot) => slot.into_mut(),
                Entry::Vacant(slot) => slot.insert(Record {
                    descriptor,
                    manifest: self.document("manifest", digest)?,
                    names: Vec::new(),
                }),
            };
            record.names.extend(name);
        }
        let mut records: Vec<Record> = records.into_values().collect();
        for record in &mut records {
            record.names.sort();
        }
        records.sort_by(|a, b| a.names.cmp(&b.names));
        Ok(records)
    }

    /// Lists an image, whose content is all there, under a name or without one. The image that had the
    /// name before keeps its other names. A session must be held.
    pub fn name(&self, manifest: &Descriptor, name: Option<&Reference>) -> Result<(), Error> {
        self.change(|index| {
            let name = name.map(Reference::to_string);
            let mut entry = manifest.clone();
            if let Some(name) = &name {
                entry.annotations.insert(oci::NAME.to_owned(), name.clone());
                entry
                    .annotations
                    .insert(oci::FULL_NAME.to_owned(), name.clone());
                unname(index, name);
            }
            // An image without a name is listed as such only while it has none.
            index.manifests.retain(|other| {
                other.digest != entry.digest || other.annotations.contains_key(oci::NAME)
            });
            let known = index
                .manifests
                .iter()
                .any(|other| other.digest == entry.digest);
            if name.is_some() || !known {
                index.manifests.push(entry);
            }
        })
    }

    /// Takes a name from its image, which stays listed.
    pub(super) fn unname(&self, name: &str) -> Result<(), Error> {
        self.change(|index| unname(index, name))
    }

    /// Takes images off the list, with all their names.
    pub(super) fn unlist(&self, doomed: &[Digest]) -> Result<(), Error> {
        self.change(|index| {
            let keep = |entry: &Descriptor| !doomed.contains(&entry.digest);
            index.manifests.retain(keep);
        })
    }

    pub(super) fn index(&self) -> Result<Index, Error> {
        let path = self.root.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Index::default()),
            Err(error) => return Err(Error::io("cannot read", &path, error)),
        };
        json::from_slice(&bytes)
            .map_err(|error| Error::io("cannot understand", &path, error.into()))
    }

    fn change(&self, change: impl FnOnce(&mut Index)) -> Result<(), Error> {
        let _lock = self.lock("index.lock", FlockOperation::LockExclusive)?;
        let mut index = self.index()?;
        change(&mut index);
        let path = self.root.join("index.json");
        let bytes = serde_json::to_vec_pretty(&index)
            .map_err(|error| Error::io("cannot write", &path, error.into()))?;
        self.write_file(&path, &bytes)
    }
}

/// Takes a name from the image that has it; its last name gone, the image is listed without one.
fn unname(index: &mut Index, name: &str) {
    let has = |entry: &Descriptor| entry.annotations.get(oci::NAME).is_some_and(|n| n == name);
    let Some(at) = index.manifests.iter().position(has) else {
        return;
    };
    let mut entry = index.manifests.remove(at);
    let others = index
        .manifests
        .iter()
        .any(|other| other.digest == entry.digest);
    if !others {
        entry.annotations.clear();
        index.manifests.push(entry);
    }
}
