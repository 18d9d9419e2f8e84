//! A file and its way into guest memory.

use std::fs::File;
use std::io;
use std::ops::AddAssign;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;

use thiserror::Error;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    ByteValued, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use crate::GuestMemory;
use crate::layout::PAGE_SIZE;

/// How the pages of a file get into guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageMode {
    /// Whole pages are mapped privately from the file where alignment allows, so that all VMs
    /// share the host's page cache until they write; the rest is copied. The file must not change
    /// while a VM runs on it.
    #[default]
    Map,
    /// Everything is copied.
    Copy,
}

/// Why a file could not be brought into guest memory.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Its metadata cannot be read.
    #[error("the file cannot be examined")]
    Stat(#[source] io::Error),
    /// It is a directory.
    #[error("the file is a directory")]
    Directory,
    /// It is a device, a pipe or a socket.
    #[error("the file is not a regular file")]
    NotRegular,
    /// It has no bytes.
    #[error("the file is empty")]
    Empty,
    /// It ends before something it should contain.
    #[error("the file is truncated: its {what} would end at byte {end}, the file ends at {len}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it would end.
        end: u64,
        /// Length of the file.
        len: u64,
    },
    /// It cannot be read.
    #[error("the file's {what} cannot be read")]
    Read {
        /// What was read.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It cannot be read into guest memory.
    #[error("the file's {what} cannot be copied into guest memory")]
    Copy {
        /// What was copied.
        what: &'static str,
        /// Why not.
        #[source]
        source: VolatileMemoryError,
    },
    /// The place for it is not in one region of guest memory.
    #[error("the file's {what} has no place in guest memory at {address:#x}")]
    Place {
        /// What was to be placed.
        what: &'static str,
        /// Guest physical address.
        address: u64,
        /// Why not.
        #[source]
        source: GuestMemoryError,
    },
    /// A private mapping could not be moved to its place; guest memory is no longer whole.
    #[error("the file's {what} cannot be mapped into guest memory")]
    Map {
        /// What was mapped.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// How many bytes came into guest memory, and which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) mapped: u64,
    pub(crate) copied: u64,
}

impl AddAssign for Placed {
    fn add_assign(&mut self, other: Self) {
        self.mapped += other.mapped;
        self.copied += other.copied;
    }
}

/// A regular file of known length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image<'a> {
    file: &'a File,
    len: u64,
}

impl<'a> Image<'a> {
    /// Mapping fewer bytes than this costs more (two system calls, a kernel VMA, its page faults)
    /// than copying them.
    const MAP_MIN: usize = 64 << 10;

    pub(crate) fn new(file: &'a File) -> Result<Self, ImageError> {
        let metadata = file.metadata().map_err(ImageError::Stat)?;
        if metadata.is_dir() {
            return Err(ImageError::Directory);
        }
        if !metadata.is_file() {
            return Err(ImageError::NotRegular);
        }
        match metadata.len() {
            0 => Err(ImageError::Empty),
            len => Ok(Self { file, len }),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Checks that the `size` bytes at `offset` are in the file.
    pub(crate) fn check(
        &self,
        offset: u64,
        size: u64,
        what: &'static str,
    ) -> Result<(), ImageError> {
        let end = offset.saturating_add(size);
        if end > self.len {
            let len = self.len;
            return Err(ImageError::Truncated { what, end, len });
        }
        Ok(())
    }

    pub(crate) fn read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        what: &'static str,
    ) -> Result<(), ImageError> {
        self.check(offset, buffer.len() as u64, what)?;
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|source| ImageError::Read { what, source })
    }

    pub(crate) fn read_obj<T: ByteValued + Default>(
        &self,
        offset: u64,
        what: &'static str,
    ) -> Result<T, ImageError> {
        let mut object = T::default();
        self.read(offset, object.as_mut_slice(), what)?;
        Ok(object)
    }

    /// Brings `size` bytes at `offset` to `address`, which must be in one region of `mem`.
    pub(crate) fn place(
        &self,
        mem: &GuestMemory,
        address: GuestAddress,
        offset: u64,
        size: u64,
        pages: PageMode,
        what: &'static str,
    ) -> Result<Placed, ImageError> {
        self.check(offset, size, what)?;
        if size == 0 {
            return Ok(Placed::default());
        }
        let place = |source| ImageError::Place {
            what,
            address: address.0,
            source,
        };
        let region = mem
            .find_region(address)
            .ok_or_else(|| place(GuestMemoryError::InvalidGuestAddress(address)))?;
        let count = usize::try_from(size)
            .map_err(|_| place(GuestMemoryError::InvalidGuestAddress(address)))?;
        let slice = mem.get_slice(address, count).map_err(place)?;

        // A part of a huge page cannot be replaced by a mapping.
        let huge = region.flags() & libc::MAP_HUGETLB != 0 || region.is_hugetlbfs() == Some(true);
        let mappable = pages == PageMode::Map && !huge;
        let (head, body) = match whole_pages(&slice, offset) {
            Some((head, body)) if mappable && body >= Self::MAP_MIN => (head, body),
            _ => (count, 0),
        };
        let tail = head + body;
        let part = |from: usize, to: usize| {
            slice
                .subslice(from, to - from)
                .map_err(|source| ImageError::Copy { what, source })
        };
        let mapped = body > 0 && self.map(&part(head, tail)?, offset + head as u64, what)?;
        if mapped {
            self.copy(&part(0, head)?, offset, what)?;
            self.copy(&part(tail, count)?, offset + tail as u64, what)?;
        } else {
            self.copy(&slice, offset, what)?;
        }
        let mapped = if mapped { body as u64 } else { 0 };
        let copied = size - mapped;
        Ok(Placed { mapped, copied })
    }

    fn copy<B: BitmapSlice>(
        &self,
        target: &VolatileSlice<'_, B>,
        offset: u64,
        what: &'static str,
    ) -> Result<(), ImageError> {
        let mut target = target
            .offset(0)
            .map_err(|source| ImageError::Copy { what, source })?;
        Pread {
            file: self.file,
            offset,
        }
        .read_exact_volatile(&mut target)
        .map_err(|source| ImageError::Copy { what, source })
    }

    /// Replaces the whole pages `target` by a private mapping of the file. `false` if the file
    /// cannot be mapped (some file systems cannot); `target` is then untouched.
    fn map<B: BitmapSlice>(
        &self,
        target: &VolatileSlice<'_, B>,
        offset: u64,
        what: &'static str,
    ) -> Result<bool, ImageError> {
        let len = target.len();
        let Ok(file_offset) = libc::off_t::try_from(offset) else {
            return Ok(false);
        };
        // Mapped elsewhere first and moved then: MAP_FIXED would remove the guest's pages before
        // it asks the file system whether it can map the file.
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_NORESERVE,
                self.file.as_raw_fd(),
                file_offset,
            )
        };
        if mapping == libc::MAP_FAILED {
            log::debug!(
                "{what} is copied, since its file cannot be mapped: {}",
                io::Error::last_os_error()
            );
            return Ok(false);
        }
        let guard = target.ptr_guard_mut();
        // SAFETY: the target is `len` bytes of whole pages inside one guest memory mapping, which
        // outlives this call and is only accessed as volatile memory. It stays mapped, readable
        // and writable; only what backs it changes.
        let moved = unsafe {
            libc::mremap(
                mapping,
                len,
                len,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                guard.as_ptr(),
            )
        };
        if moved == libc::MAP_FAILED {
            let source = io::Error::last_os_error();
            // SAFETY: the mapping was made above, was not moved, and nothing refers to it.
            unsafe { libc::munmap(mapping, len) };
            return Err(ImageError::Map { what, source });
        }
        Ok(true)
    }
}

/// Bytes before the first whole page of `target`, and bytes in whole pages, if its pages are those
/// of the file from `offset` on.
fn whole_pages<B: BitmapSlice>(
    target: &VolatileSlice<'_, B>,
    offset: u64,
) -> Option<(usize, usize)> {
    let page = usize::try_from(PAGE_SIZE).ok()?;
    let start = target.ptr_guard().as_ptr().addr();
    let offset = usize::try_from(offset % PAGE_SIZE).ok()?;
    let head = start.next_multiple_of(page) - start;
    if start % page != offset || head > target.len() {
        return None;
    }
    Some((head, (target.len() - head) / page * page))
}

/// Reads a file at an offset of its own, so that the file's shared position does not matter.
struct Pread<'a> {
    file: &'a File,
    offset: u64,
}

impl ReadVolatile for Pread<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let offset = libc::off_t::try_from(self.offset)
            .map_err(|error| VolatileMemoryError::IOError(io::Error::other(error)))?;
        let guard = buffer.ptr_guard_mut();
        // SAFETY: the guard's pointer is valid for writes of `buffer.len()` bytes, by the
        // invariants of VolatileSlice.
        let read = unsafe {
            libc::pread(
                self.file.as_raw_fd(),
                guard.as_ptr().cast(),
                buffer.len(),
                offset,
            )
        };
        let Ok(read) = usize::try_from(read) else {
            return Err(VolatileMemoryError::IOError(io::Error::last_os_error()));
        };
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use vm_memory::{Bytes, GuestRegionMmap, MmapRegion};
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    const SIZE: usize = 0x40_0000;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap()
    }

    /// A file whose bytes say where they are, and those bytes.
    fn pattern(len: usize) -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8 + 1).collect();
        let mut file = TempFile::new().unwrap().into_file();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    fn place(
        address: u64,
        offset: u64,
        size: u64,
        pages: PageMode,
    ) -> (Placed, Vec<u8>, Vec<u8>, File) {
        let (file, bytes) = pattern(0x4_0123);
        let mem = memory();
        let placed = Image::new(&file)
            .unwrap()
            .place(&mem, GuestAddress(address), offset, size, pages, "test")
            .unwrap();
        let mut seen = vec![0; SIZE];
        mem.read_slice(&mut seen, GuestAddress(0)).unwrap();
        let mut wanted = vec![0; SIZE];
        let (at, offset) = (address as usize, offset as usize);
        wanted[at..at + size as usize].copy_from_slice(&bytes[offset..offset + size as usize]);
        (placed, seen, wanted, file)
    }

    /// If this fails, guests see wrong bytes, or bytes of the file beyond their segment.
    #[test]
    fn both_modes_bring_exactly_the_bytes() {
        for (address, offset, size) in [
            (0x10_0000, 0, 0x4_0123),
            (0x10_0234, 0x234, 0x3_0000),
            (0x10_0000, 0x1000, 0x3_f123),
            (0x10_0010, 0x1020, 0x2_0000),
            (0x10_0fff, 0xfff, 2),
            (0x10_0000, 0x4_0123, 0),
        ] {
            for pages in [PageMode::Map, PageMode::Copy] {
                let (placed, seen, wanted, _file) = place(address, offset, size, pages);
                assert!(
                    seen == wanted,
                    "{address:#x} {offset:#x} {size:#x} {pages:?}"
                );
                assert_eq!(placed.mapped + placed.copied, size);
            }
        }
    }

    /// If this fails, images are copied although they could be mapped, or the other way round.
    #[test]
    fn only_whole_congruent_pages_are_mapped() {
        let mapped = |address, offset, size, pages| place(address, offset, size, pages).0.mapped;
        assert_eq!(mapped(0x10_0000, 0x1000, 0x3_f123, PageMode::Map), 0x3_f000);
        assert_eq!(mapped(0x10_0800, 0x1800, 0x3_0000, PageMode::Map), 0x2_f000);
        assert_eq!(mapped(0x10_0000, 0x1001, 0x3_0000, PageMode::Map), 0);
        assert_eq!(mapped(0x10_0000, 0x1000, 0x8000, PageMode::Map), 0);
        assert_eq!(mapped(0x10_0000, 0x1000, 0x3_f123, PageMode::Copy), 0);
    }

    /// If this fails, a guest with huge pages does not start: parts of them cannot be replaced.
    #[test]
    fn huge_pages_are_not_mapped_over() {
        let (prot, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        let pages = MmapRegion::<()>::build(None, SIZE, prot, flags).unwrap();
        // SAFETY: the address and size are those of `pages`, which lives to the end of the test.
        let region =
            unsafe { MmapRegion::build_raw(pages.as_ptr(), SIZE, prot, flags | libc::MAP_HUGETLB) };
        let region = GuestRegionMmap::new(region.unwrap(), GuestAddress(0)).unwrap();
        let mem = GuestMemory::from_regions(vec![region]).unwrap();
        let (file, _) = pattern(0x2_0000);
        let placed = Image::new(&file)
            .unwrap()
            .place(&mem, GuestAddress(0), 0, 0x2_0000, PageMode::Map, "test")
            .unwrap();
        assert_eq!((placed.mapped, placed.copied), (0, 0x2_0000));
    }

    /// If this fails, a guest's writes reach the kernel image on the host.
    #[test]
    fn writes_stay_private() {
        let (file, bytes) = pattern(0x2_0000);
        let mem = memory();
        let address = GuestAddress(0x10_0000);
        let placed = Image::new(&file)
            .unwrap()
            .place(&mem, address, 0, 0x2_0000, PageMode::Map, "test")
            .unwrap();
        assert_eq!(placed.mapped, 0x2_0000);
        mem.write_slice(&[0; 0x2_0000], address).unwrap();
        let mut now = vec![0; 0x2_0000];
        file.read_exact_at(&mut now, 0).unwrap();
        assert!(now == bytes);
    }

    /// If this fails, a place beyond guest memory or a part beyond the file is not refused.
    #[test]
    fn ranges_are_checked() {
        let (file, _) = pattern(0x1000);
        let (mem, image) = (memory(), Image::new(&file).unwrap());
        let place = |address, offset, size| {
            image.place(
                &mem,
                GuestAddress(address),
                offset,
                size,
                PageMode::Map,
                "x",
            )
        };
        let end = SIZE as u64;
        assert!(matches!(
            place(end - 1, 0, 2),
            Err(ImageError::Place { .. })
        ));
        assert!(matches!(place(end, 0, 1), Err(ImageError::Place { .. })));
        assert!(matches!(
            place(u64::MAX, 0, 2),
            Err(ImageError::Place { .. })
        ));
        assert!(matches!(
            place(0, 1, 0x1000),
            Err(ImageError::Truncated { .. })
        ));
        assert!(matches!(
            place(0, u64::MAX, 2),
            Err(ImageError::Truncated { .. })
        ));
    }

    /// If this fails, the user is not told what is wrong with the file.
    #[test]
    fn files_that_cannot_be_images() {
        let directory = File::open("/").unwrap();
        assert!(matches!(Image::new(&directory), Err(ImageError::Directory)));
        let device = File::open("/dev/zero").unwrap();
        assert!(matches!(Image::new(&device), Err(ImageError::NotRegular)));
        let empty = TempFile::new().unwrap().into_file();
        assert!(matches!(Image::new(&empty), Err(ImageError::Empty)));
    }
}
