//! Kernel images.
use crate::{GuestMemory, PageMode};
use std::fs::File;
use vm_memory::GuestAddress;

/// How a kernel wants to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The 64-bit entry of the Linux boot protocol: long mode, `boot_params` in RSI.
    Linux64,
    /// Xen's PVH: 32-bit protected mode without paging, `hvm_start_info` in EBX.
    Pvh,
}

/// How to load a kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Map or copy.
    pub pages: PageMode,
    /// The protocol to use; none for the format's own, which is the 64-bit entry.
    pub protocol: Option<Protocol>,
}

/// A kernel in guest memory.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Where the first vCPU starts.
    pub entry: GuestAddress,
    /// How it starts there.
    pub protocol: Protocol,
    /// First byte after the kernel, its BSS or the memory it unpacks itself into included.
    pub end: GuestAddress,
    /// Bytes that are mapped from the file.
    pub mapped: u64,
    /// Bytes that were copied from the file.
    pub copied: u64,
    /// Longest command line it takes in bytes, without the NUL.
    pub command_line_max: usize,
    /// Last address an initrd may occupy.
    pub initrd_max: GuestAddress,
}

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {}

impl Kernel {
    /// Loads the kernel in `file` into `mem`.
    ///
    /// # Errors
    /// If it is no kernel, not for this machine, or does not fit.
    pub fn load(
        _mem: &GuestMemory,
        _file: &File,
        _options: LoadOptions,
    ) -> Result<Self, KernelError> {
        unimplemented!()
    }
}
