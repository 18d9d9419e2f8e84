//! The initrd.
use crate::{GuestMemory, Kernel, PageMode};
use std::fs::File;
use vm_memory::GuestAddress;

/// An initrd in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// Where it starts, page-aligned.
    pub base: GuestAddress,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that are mapped from the file.
    pub mapped: u64,
    /// Bytes that were copied from the file.
    pub copied: u64,
}

/// Why an initrd could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {}

impl Initrd {
    /// Loads the initrd in `file` as high as possible above `kernel`.
    ///
    /// # Errors
    /// If it is no regular file or does not fit.
    pub fn load(
        _mem: &GuestMemory,
        _file: &File,
        _kernel: &Kernel,
        _pages: PageMode,
    ) -> Result<Self, InitrdError> {
        unimplemented!()
    }
}
