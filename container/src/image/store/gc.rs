//! Removing what nobody needs any more.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use rustix::fs::FlockOperation;

use super::{Error, Image, Record, Store};
use crate::image::digest::Digest;
use crate::image::reference::Reference;

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Whole names that images have no more.
    pub names: Vec<String>,
    /// Images that are gone: the digests of their configurations.
    pub images: Vec<Digest>,
    /// Bytes on disk.
    pub bytes: u64,
}

impl Store {
    /// Keeps an image for `owner`, a container's id, whatever happens to its names.
    pub fn hold(&self, image: &Image, owner: &str) -> Result<(), Error> {
        let _session = self.begin()?;
        let path = self.hold_path(owner);
        self.write_file(&path, image.digest.to_string().as_bytes())?;
        // Had it been removed since it was resolved, the hold would be on nothing.
        let there = self.blob(image.digest).exists() && image.layers.iter().all(|l| l.exists());
        if !there {
            self.release(owner)?;
            return Err(Error::NoContent {
                digest: image.digest,
            });
        }
        Ok(())
    }

    /// `owner` needs its image no more.
    pub fn release(&self, owner: &str) -> Result<(), Error> {
        let path = self.hold_path(owner);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("cannot remove", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// Who holds which image.
    pub fn holds(&self) -> Result<Vec<(String, Digest)>, Error> {
        let mut holds = Vec::new();
        for path in self.files("holds")? {
            let owner = path.file_name().unwrap_or_default().to_string_lossy();
            // One that was released meanwhile is no hold.
            if let Ok(text) = fs::read_to_string(&path)
                && let Ok(digest) = text.parse()
            {
                holds.push((owner.into_owned(), digest));
            }
        }
        Ok(holds)
    }

    /// Removes a name and, if it was the last, the image; by an id, all its names. What containers use is
    /// refused, or with `force` only loses its names.
    pub fn remove(&self, name: &str, force: bool) -> Result<Removed, Error> {
        let record = self.find(name)?;
        let named = name.parse::<Reference>().map(|name| name.to_string());
        let named = named.ok().filter(|name| record.names.contains(name));
        let mut removed = Removed::default();
        if let Some(name) = named.filter(|_| record.names.len() > 1) {
            self.unname(&name)?;
            removed.names.push(name);
            return Ok(removed);
        }
        let mut holds = self.holds()?.into_iter();
        if let Some((owner, _)) = holds.find(|(_, digest)| *digest == record.descriptor.digest)
            && !force
        {
            return Err(Error::InUse {
                image: name.to_owned(),
                owner,
            });
        }
        self.unlist(&[record.descriptor.digest])?;
        removed.images.push(record.manifest.config.digest);
        removed.names.extend(record.names);
        removed.bytes = self.sweep(false)?;
        Ok(removed)
    }

    /// Removes images without a name that no container uses, with `all` named ones too, if `doomed` says
    /// so, and whatever no image needs: leftovers of killed processes and of downloads.
    pub fn prune(&self, all: bool, doomed: impl Fn(&Record) -> bool) -> Result<Removed, Error> {
        let held: HashSet<Digest> = self.holds()?.into_iter().map(|(_, image)| image).collect();
        let mut removed = Removed::default();
        let mut digests = Vec::new();
        for record in self.list()? {
            let used = held.contains(&record.descriptor.digest);
            if !used && (all || record.names.is_empty()) && doomed(&record) {
                digests.push(record.descriptor.digest);
                removed.images.push(record.manifest.config.digest);
                removed.names.extend(record.names);
            }
        }
        if !digests.is_empty() {
            self.unlist(&digests)?;
        }
        removed.bytes = self.sweep(true)?;
        Ok(removed)
    }

    /// Removes content that no image needs, with `temporary` also what is in `tmp/`; if anybody is adding
    /// content, nothing: the next time does it. Gives the bytes that are free now.
    pub fn sweep(&self, temporary: bool) -> Result<u64, Error> {
        let lock = self.lock("lock", FlockOperation::NonBlockingLockExclusive);
        let Ok(_lock) = lock else { return Ok(0) };
        let needed = self.needed()?;
        let mut freed = 0;
        let kept: &[&str] = &["blobs/sha256", "layers", "tmp"];
        for directory in &kept[..if temporary { 3 } else { 2 }] {
            for path in self.files(directory)? {
                if needed.contains(&path) {
                    continue;
                }
                let blocks = fs::metadata(&path).map_or(0, |metadata| {
                    std::os::unix::fs::MetadataExt::blocks(&metadata)
                });
                fs::remove_file(&path).map_err(|e| Error::io("cannot remove", &path, e))?;
                freed += blocks * 512;
            }
        }
        Ok(freed)
    }

    fn needed(&self) -> Result<HashSet<PathBuf>, Error> {
        let index = self.index()?;
        let listed = index.manifests.iter().map(|entry| entry.digest);
        let held = self.holds()?.into_iter().map(|(_, digest)| digest);
        let mut needed = HashSet::new();
        for digest in listed.chain(held) {
            if !needed.insert(self.blob(digest)) {
                continue;
            }
            let manifest: super::Manifest = self.document("manifest", digest)?;
            needed.insert(self.blob(manifest.config.digest));
            needed.extend(manifest.layers.iter().map(|layer| self.blob(layer.digest)));
            let (config, _) = self.configuration(manifest.config.digest)?;
            needed.extend(self.layer_files(&manifest, config.rootfs().diff_ids()));
        }
        Ok(needed)
    }

    fn hold_path(&self, owner: &str) -> PathBuf {
        // An id has no slash; were there one, it leads nowhere.
        self.root.join("holds").join(owner.replace('/', "_"))
    }

    fn files(&self, directory: &str) -> Result<Vec<PathBuf>, Error> {
        let path = self.root.join(directory);
        let entries = fs::read_dir(&path).map_err(|e| Error::io("cannot read", &path, e))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        Ok(files)
    }
}
