//! Guest memory, aligned so that the host can back it with huge pages: anonymous memory, or a memfd
//! where a device works in another process (see [`Sharing`]).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

use crate::arch::layout;
use crate::config::{HugePages, MemoryConfig, MemorySize};

/// The host's huge page, and so the alignment of guest memory in the host.
const HUGE_PAGE: usize = 2 << 20;

/// Where a kernel lies: what all of is read into, and most of is used.
const DENSE: usize = 16 << 20;

/// Why the guest gets no memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host does not give so much address space.
    #[error("the host gives no {0} of memory; ask for less or raise its limits (ulimit -v)")]
    Map(MemorySize, #[source] io::Error),
    /// The host has too few free huge pages.
    #[error(
        "the host has no {wanted} free huge pages of 2M for {size}; \
         set them aside with 'sysctl vm.nr_hugepages={wanted}'"
    )]
    HugePages {
        /// The guest's memory.
        size: MemorySize,
        /// How many pages that takes.
        wanted: u64,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// A range of it makes no region.
    #[error("guest memory of {0} cannot be laid out")]
    Region(MemorySize, #[source] MmapRegionError),
    /// The ranges do not fit each other.
    #[error("guest memory of {0} cannot be laid out")]
    Layout(MemorySize, #[source] vm_memory::GuestRegionCollectionError),
}

/// Whether other processes can map guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// They cannot: anonymous memory, which the host can back with transparent huge pages.
    Private,
    /// They can, given the descriptor: a memfd of a fixed size. On a host with the usual settings
    /// it gets no transparent huge pages by itself, and each 4 KiB page that the guest touches for the
    /// first time is then a nested page fault of its own, thousands of them in one boot. Where the kernel
    /// lies it is given them. So only where a device needs it.
    Memfd,
}

/// Guest memory as `config` asks for. No page of it is touched yet.
pub fn allocate(
    config: &MemoryConfig,
    sharing: Sharing,
) -> Result<GuestMemoryMmap<()>, MemoryError> {
    let (size, hugepages) = (config.size, config.hugepages);
    let refused = |source| match hugepages {
        Some(HugePages::Mib2) => MemoryError::HugePages {
            size,
            wanted: size.bytes() / HUGE_PAGE as u64,
            source,
        },
        None => MemoryError::Map(size, source),
    };
    let file = match sharing {
        Sharing::Private => None,
        Sharing::Memfd => Some(Arc::new(memfd(size.bytes(), hugepages).map_err(refused)?)),
    };
    let mut offset = 0;
    let regions = layout::ram_ranges(size.bytes())
        .into_iter()
        .map(|(base, bytes)| {
            let len = usize::try_from(bytes).map_err(|_| MemoryError::Map(size, too_large()))?;
            let file = file
                .as_ref()
                .map(|file| FileOffset::from_arc(file.clone(), offset));
            offset += bytes;
            let region = map(len, hugepages, file).map_err(refused)?;
            GuestRegionMmap::new(region, GuestAddress(base))
                .ok_or_else(|| MemoryError::Map(size, too_large()))
        });
    let regions = regions.collect::<Result<Vec<_>, _>>()?;
    GuestMemoryMmap::from_regions(regions).map_err(|source| MemoryError::Layout(size, source))
}

/// Gives shared memory huge pages where a kernel is to be read into it. The usual settings keep them from files
/// in memory, but who asks for them in this way gets them (MADV_COLLAPSE, Linux 6.1); failure costs speed only.
pub fn collapse(memory: &GuestMemoryMmap<()>) {
    let Some(region) = memory.iter().next() else {
        return;
    };
    let len = usize::try_from(region.len()).map_or(DENSE, |len| len.min(DENSE));
    let len = len / HUGE_PAGE * HUGE_PAGE;
    for at in (0..len).step_by(HUGE_PAGE) {
        // Where there is no page at all, none are made one.
        let _ = region.write_slice(&[0], MemoryRegionAddress(at as u64));
    }
    // SAFETY: a part of the region, of which nothing that is in it changes.
    unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_COLLAPSE) };
}

/// A file of `size` bytes that lives in memory, and that nobody it is given to can cut short: that
/// would be a SIGBUS in all who map it.
fn memfd(size: u64, hugepages: Option<HugePages>) -> io::Result<File> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if hugepages.is_some() {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let file = File::from(rustix::fs::memfd_create("guest-memory", flags)?);
    file.set_len(size)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

fn too_large() -> io::Error {
    io::ErrorKind::OutOfMemory.into()
}

/// Maps `len` bytes, of `file` if there is one, so that the host address is a multiple of the huge
/// page.
fn map(
    len: usize,
    hugepages: Option<HugePages>,
    file: Option<FileOffset>,
) -> io::Result<MmapRegion<()>> {
    let mut flags = match file {
        Some(_) => libc::MAP_SHARED | libc::MAP_NORESERVE,
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    };
    if hugepages.is_some() {
        // Reserved at once: a page that is not there would be a SIGBUS in the middle of the run.
        flags &= !libc::MAP_NORESERVE;
        if file.is_none() {
            flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        }
    }
    let (fd, offset) = match &file {
        Some(file) => (file.file().as_raw_fd(), file.start()),
        None => (-1, 0),
    };
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let room = reserve(len)?;
    // SAFETY: the range is part of the reservation that `reserve` just made for us alone, so the
    // fixed mapping replaces nothing that anyone uses.
    let address = unsafe { libc::mmap(room, len, prot, flags | libc::MAP_FIXED, fd, offset) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    leave_out_of_cores(address, len)?;
    if hugepages.is_none() {
        // SAFETY: advises on the mapping just made. Failure means a host without transparent huge
        // pages, which costs speed only.
        unsafe { libc::madvise(address, len, libc::MADV_HUGEPAGE) };
    }
    let mut region = MmapRegionBuilder::new(len)
        .with_mmap_prot(prot)
        .with_mmap_flags(flags);
    if let Some(file) = file {
        region = region.with_file_offset(file);
    }
    // SAFETY: the mapping has `len` bytes at `address`, and lives as long as the process: guest
    // memory is mapped once and unmapped by the process's end.
    unsafe { region.with_raw_mmap_pointer(address.cast()) }
        .build()
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Maps `size` bytes of `file` into a range of `len` bytes whose address, which it returns, is a
/// multiple of the huge page. Behind the file's last page come pages of zeros. Lives as long as the
/// process.
///
/// Nothing in the monitor may touch the range: where the file is cut short, that would be a SIGBUS.
pub fn map_file(file: BorrowedFd, size: u64, len: u64, read_only: bool) -> io::Result<u64> {
    let size = usize::try_from(size.next_multiple_of(4096)).map_err(|_| too_large())?;
    let len = usize::try_from(len).map_err(|_| too_large())?.max(size);
    let prot = match read_only {
        true => libc::PROT_READ,
        false => libc::PROT_READ | libc::PROT_WRITE,
    };
    let room = reserve(len)?;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    // SAFETY: the range is part of the reservation that `reserve` just made for us alone, so the
    // fixed mapping replaces nothing that anyone uses.
    let address = unsafe { libc::mmap(room, size, prot, flags, file.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    leave_out_of_cores(address, size)?;
    // SAFETY: what is left of the reservation behind the file, which nobody knows of yet.
    if unsafe { libc::mprotect(room.wrapping_byte_add(size), len - size, prot) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(room.addr() as u64)
}

/// Has no core dump of the process show what is the guest's.
fn leave_out_of_cores(address: *mut libc::c_void, len: usize) -> io::Result<()> {
    // SAFETY: changes nothing that is in memory.
    match unsafe { libc::madvise(address, len, libc::MADV_DONTDUMP) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets aside `len` bytes of address space, aligned to the huge page, and gives back what stands
/// over on both sides.
fn reserve(len: usize) -> io::Result<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let total = len.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let skip = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    let aligned = start.wrapping_byte_add(skip);
    let rest = aligned.wrapping_byte_add(len.next_multiple_of(4096));
    let rest_len = (total - skip).saturating_sub(len.next_multiple_of(4096));
    // SAFETY: both ranges are parts of the mapping made above that nobody knows of yet.
    unsafe {
        if skip > 0 {
            libc::munmap(start, skip);
        }
        if rest_len > 0 {
            libc::munmap(rest, rest_len);
        }
    }
    Ok(aligned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// If it fails, who reads a core dump of the monitor reads the guest's memory.
    #[test]
    fn core_dumps_have_no_guest_memory() {
        let config = MemoryConfig {
            size: MemorySize::from_mib(32),
            ..MemoryConfig::default()
        };
        for sharing in [Sharing::Private, Sharing::Memfd] {
            let memory = allocate(&config, sharing).unwrap();
            let start = memory.iter().next().unwrap().as_ptr().addr();
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let has_start = |line: &&str| {
                let range = line
                    .split_once(' ')
                    .and_then(|(range, _)| range.split_once('-'));
                let parse = |text| usize::from_str_radix(text, 16).ok();
                range.is_some_and(|(from, to)| {
                    parse(from).is_some_and(|from| from <= start)
                        && parse(to).is_some_and(|to| start < to)
                })
            };
            let mut lines = maps.lines().skip_while(|line| !has_start(line));
            let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
            assert!(flags.contains(" dd"), "{sharing:?}: {flags}");
        }
    }

    /// If it fails, the host cannot use huge pages, and each 4 KiB page costs a fault.
    #[test]
    fn memory_is_aligned_to_huge_pages() {
        let config = MemoryConfig {
            size: MemorySize::from_mib(7 << 10),
            ..MemoryConfig::default()
        };
        let memory = allocate(&config, Sharing::Private).unwrap();
        assert_eq!(
            memory.iter().map(|region| region.len()).sum::<u64>(),
            7 << 30
        );
        for region in memory.iter() {
            assert!(region.as_ptr().addr().is_multiple_of(HUGE_PAGE));
        }
        memory.write_obj(7u8, GuestAddress((8 << 30) - 1)).unwrap();
        assert!(
            memory
                .write_obj(7u8, GuestAddress(layout::MMIO_HOLE))
                .is_err()
        );
    }

    /// If it fails, a host without free huge pages is met by a SIGBUS, or by no word at all.
    #[test]
    fn huge_pages_that_are_not_there_are_an_error() {
        let size = MemorySize::from_mib(1 << 20);
        let config = MemoryConfig {
            size,
            hugepages: Some(HugePages::Mib2),
            ..MemoryConfig::default()
        };
        for sharing in [Sharing::Private, Sharing::Memfd] {
            let error = allocate(&config, sharing).unwrap_err().to_string();
            assert!(error.contains("vm.nr_hugepages=524288"), "{error}");
        }
    }

    /// If it fails, a process that serves the guest sees other memory than the guest, or can cut it
    /// short under the monitor.
    #[test]
    fn shared_memory_is_one_file_of_a_fixed_size() {
        let config = MemoryConfig {
            size: MemorySize::from_mib(4 << 10),
            ..MemoryConfig::default()
        };
        let memory = allocate(&config, Sharing::Memfd).unwrap();
        let regions: Vec<_> = memory.iter().collect();
        assert_eq!(regions.len(), 2);
        let above = regions[1];
        assert!(above.as_ptr().addr().is_multiple_of(HUGE_PAGE));
        memory.write_obj(7u8, above.start_addr()).unwrap();
        let file = above.file_offset().unwrap();
        let mut byte = [0];
        file.file().read_exact_at(&mut byte, file.start()).unwrap();
        assert_eq!((byte, file.start()), ([7], regions[0].len()));
        assert!(file.file().set_len(0).is_err());
        assert!(file.file().set_len(8 << 30).is_err());
    }
}
