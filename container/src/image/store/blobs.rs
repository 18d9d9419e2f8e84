//! Content by digest.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;

use super::oci::{self, Descriptor, Manifest};
use super::{Error, Store};
use crate::image::digest::{Digest, Digesting};
use crate::image::reference::Reference;
use crate::json;

/// Bytes of a manifest, an index or a configuration at most, as registries have it.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// Content being added; dropped before it is complete, it is gone.
#[derive(Debug)]
pub struct Blob<'a> {
    store: &'a Store,
    file: Digesting<Temporary>,
}

/// A file in `tmp/`, removed unless it gets its name.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) file: File,
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Write for Temporary {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Write for Blob<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Blob<'_> {
    /// The content is complete; it must have the expected digest. Gives its digest and length.
    pub fn finish(mut self, expected: Option<Digest>) -> Result<(Digest, u64), Error> {
        let file = self.file.get_mut().file.try_clone();
        let path = self.file.get_mut().path.clone();
        let file = file.map_err(|e| Error::io("cannot write", &path, e))?;
        let temporary = Temporary {
            file,
            path: std::mem::take(&mut self.file.get_mut().path),
        };
        let (digest, size) = self.file.finish();
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(Error::Mismatch {
                expected,
                found: digest,
            });
        }
        self.store.place(temporary, &self.store.blob(digest))?;
        Ok((digest, size))
    }
}

impl Store {
    /// The file of some content, whether there or not.
    pub fn blob(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Begins to add content. A session must be held.
    pub fn add(&self) -> Result<Blob<'_>, Error> {
        Ok(Blob {
            store: self,
            file: Digesting::new(self.temporary()?),
        })
    }

    /// Adds content that is in memory.
    pub fn add_bytes(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, Error> {
        let digest = Digest::of(bytes);
        let path = self.blob(digest);
        if !path.exists() {
            self.write_file(&path, bytes)?;
        }
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size: bytes.len() as u64,
            annotations: Default::default(),
            platform: None,
        })
    }

    /// Adds an image of a configuration and its layers, the lowest first, and lists it. A session must be
    /// held since the layers were added.
    pub fn add_image(
        &self,
        config: &serde_json::Value,
        layers: Vec<Descriptor>,
        name: Option<&Reference>,
    ) -> Result<Descriptor, Error> {
        let config = self.add_bytes(oci::CONFIG, config.to_string().as_bytes())?;
        let manifest = self.add_manifest(config, layers)?;
        self.name(&manifest, name)?;
        Ok(manifest)
    }

    /// Adds the manifest of an image whose content is there.
    pub fn add_manifest(
        &self,
        config: Descriptor,
        layers: Vec<Descriptor>,
    ) -> Result<Descriptor, Error> {
        let manifest = Manifest {
            schema_version: 2,
            media_type: oci::MANIFEST.to_owned(),
            config,
            layers,
        };
        let path = self.root.join("blobs");
        let manifest = serde_json::to_vec(&manifest)
            .map_err(|error| Error::io("cannot write a manifest to", &path, error.into()))?;
        self.add_bytes(oci::MANIFEST, &manifest)
    }

    /// Reads a JSON document; whatever was added under its digest had it.
    pub fn document<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        digest: Digest,
    ) -> Result<T, Error> {
        let bytes = self.read(kind, digest)?;
        json::from_slice(&bytes).map_err(|source| Error::Document {
            kind,
            digest,
            source,
        })
    }

    /// Reads content of at most [`MAX_DOCUMENT`] bytes.
    pub fn read(&self, kind: &'static str, digest: Digest) -> Result<Vec<u8>, Error> {
        let path = self.blob(digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoContent { digest });
            }
            other => other.map_err(|e| Error::io("cannot open", &path, e))?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("cannot read", &path, e))?;
        match bytes.len() as u64 <= MAX_DOCUMENT {
            true => Ok(bytes),
            false => Err(Error::TooLarge { kind, digest }),
        }
    }

    /// A new file in `tmp/`.
    pub(super) fn temporary(&self) -> Result<Temporary, Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = self
                .root
                .join(format!("tmp/{}-{count}", std::process::id()));
            let mut options = File::options();
            match options.read(true).write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Temporary { file, path }),
                // Left by a killed process that had the same id.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("cannot make", &path, error)),
            }
        }
    }

    /// Gives a complete file its name, so that after a crash it is whole or not there.
    pub(super) fn place(&self, mut temporary: Temporary, path: &Path) -> Result<(), Error> {
        let failed = |error| Error::io("cannot write", path, error);
        temporary.file.sync_all().map_err(failed)?;
        fs::rename(&temporary.path, path).map_err(failed)?;
        temporary.path = PathBuf::new();
        let directory = path.parent().unwrap_or(&self.root);
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)
    }

    /// Writes a whole file, or replaces one.
    pub(super) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let mut temporary = self.temporary()?;
        temporary
            .write_all(bytes)
            .map_err(|e| Error::io("cannot write", path, e))?;
        self.place(temporary, path)
    }
}

/// Content that comes in parts, perhaps over several processes' lives.
#[derive(Debug)]
pub struct Partial {
    /// Locked: one process at a time.
    file: File,
    path: PathBuf,
    length: u64,
}

impl Partial {
    /// Bytes that are there.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Adds to the end.
    pub fn append(&mut self, part: &[u8]) -> io::Result<()> {
        self.file.write_all_at(part, self.length)?;
        self.length += part.len() as u64;
        Ok(())
    }

    /// Forgets all of it.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.length = 0;
        Ok(())
    }
}

impl Store {
    /// What there is of some content that is not complete; nothing while another process is at it. A
    /// session must be held.
    pub fn partial(&self, digest: Digest) -> Result<Option<Partial>, Error> {
        let name = format!("tmp/{}.partial", digest.hex());
        let path = self.root.join(&name);
        let file = match self.lock(&name, FlockOperation::NonBlockingLockExclusive) {
            Ok(file) => file,
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // It may have been completed between the opening and the lock; then it lies elsewhere.
        let here = fs::metadata(&path)
            .ok()
            .map(|there| (there.dev(), there.ino()));
        let opened = file
            .metadata()
            .map_err(|e| Error::io("cannot read", &path, e))?;
        if here != Some((opened.dev(), opened.ino())) {
            return Ok(None);
        }
        Ok(Some(Partial {
            file,
            path,
            length: opened.len(),
        }))
    }

    /// Content is complete. If it is not what its digest says, all of it is forgotten.
    pub fn finish_partial(&self, partial: Partial, expected: Digest) -> Result<(), Error> {
        let failed = |error| Error::io("cannot read", &partial.path, error);
        let mut digesting = Digesting::new(io::sink());
        let mut reader = File::open(&partial.path).map_err(failed)?;
        io::copy(&mut reader, &mut digesting).map_err(failed)?;
        let (found, _) = digesting.finish();
        let temporary = Temporary {
            file: partial.file,
            path: partial.path,
        };
        match found == expected {
            true => self.place(temporary, &self.blob(expected)),
            false => Err(Error::Mismatch { expected, found }),
        }
    }
}
