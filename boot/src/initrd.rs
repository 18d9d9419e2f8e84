//! The initrd.

use std::fs::File;

use thiserror::Error;
use vm_memory::GuestAddress;

use crate::image::{Image, ImageError};
use crate::layout::{self, PAGE_SIZE};
use crate::{GuestMemory, Kernel, PageMode};

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
#[derive(Debug, Error)]
pub enum InitrdError {
    /// The file is no image, or cannot be brought into guest memory.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It does not fit between the kernel and the end of memory.
    #[error(
        "the initrd has {} MiB, between the kernel and the end of memory it can use there are {} MiB",
        .size.div_ceil(1 << 20), .room >> 20
    )]
    TooLarge {
        /// Size of the initrd in bytes.
        size: u64,
        /// Bytes between the kernel and the end of memory that the initrd may use.
        room: u64,
    },
}

impl Initrd {
    /// Loads the initrd in `file` right above the kernel, so that a small one shares the kernel's
    /// last huge page in the host: one page fault and 2 MiB less than at the end of memory. It ends
    /// below the MMIO hole, the end of memory and [`Kernel::initrd_max`].
    ///
    /// # Errors
    /// If it is no regular file, is empty or does not fit.
    pub fn load(
        mem: &GuestMemory,
        file: &File,
        kernel: &Kernel,
        pages: PageMode,
    ) -> Result<Self, InitrdError> {
        let image = Image::new(file)?;
        let size = image.len();
        let bottom = kernel.end.0.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1);
        let top = layout::low_memory_size(mem).min(kernel.initrd_max.0.saturating_add(1));
        let room = top.saturating_sub(bottom);
        if size > room {
            return Err(InitrdError::TooLarge { size, room });
        }
        let base = GuestAddress(bottom);
        let placed = image.place(mem, base, 0, size, pages, "initrd")?;
        Ok(Self {
            base,
            size,
            mapped: placed.mapped,
            copied: placed.copied,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use vm_memory::Bytes;
    use vmm_sys_util::tempfile::TempFile;

    use super::*;
    use crate::kernel::samples;

    const MEMORY: usize = 64 << 20;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
    }

    fn file(size: usize) -> File {
        let mut file = TempFile::new().unwrap().into_file();
        file.write_all(&vec![0x5a; size]).unwrap();
        file
    }

    /// If this fails, the initrd is not behind the kernel, not page-aligned, or not whole.
    #[test]
    fn lies_behind_the_kernel() {
        for pages in [PageMode::Map, PageMode::Copy] {
            let mem = memory();
            let kernel = samples::kernel();
            let size = 0x3_0001_u64;
            let initrd = Initrd::load(&mem, &file(size as usize), &kernel, pages).unwrap();
            assert_eq!(initrd.base.0, kernel.end.0.next_multiple_of(PAGE_SIZE));
            assert_eq!(initrd.mapped + initrd.copied, size);
            assert_eq!(
                initrd.mapped,
                if pages == PageMode::Map { 0x3_0000 } else { 0 }
            );
            let mut bytes = vec![0; 0x3_1000];
            mem.read_slice(&mut bytes, initrd.base).unwrap();
            let (data, rest) = bytes.split_at(size as usize);
            assert!(data.iter().all(|b| *b == 0x5a) && rest.iter().all(|b| *b == 0));
        }
    }

    /// If this fails, a kernel gets its initrd where it cannot reach it.
    #[test]
    fn stays_below_the_kernels_limit() {
        let mem = memory();
        let mut kernel = samples::kernel();
        kernel.initrd_max = GuestAddress(kernel.end.0 + 0xfff);
        assert!(Initrd::load(&mem, &file(0x1000), &kernel, PageMode::Map).is_ok());
        let error = Initrd::load(&mem, &file(0x1001), &kernel, PageMode::Map).unwrap_err();
        assert!(
            matches!(error, InitrdError::TooLarge { room: 0x1000, .. }),
            "{error}"
        );
    }

    /// If this fails, an initrd overwrites the kernel, or the user is not told both sizes.
    #[test]
    fn must_fit_above_the_kernel() {
        let mem = memory();
        let mut kernel = samples::kernel();
        kernel.end = GuestAddress(MEMORY as u64 - 0x2000 + 1);
        assert!(Initrd::load(&mem, &file(0x1000), &kernel, PageMode::Map).is_ok());
        let error = Initrd::load(&mem, &file(0x1001), &kernel, PageMode::Map).unwrap_err();
        assert!(
            matches!(
                error,
                InitrdError::TooLarge {
                    size: 0x1001,
                    room: 0x1000
                }
            ),
            "{error}"
        );
        kernel.end = GuestAddress(u64::MAX);
        assert!(Initrd::load(&mem, &file(1), &kernel, PageMode::Map).is_err());
    }
}
