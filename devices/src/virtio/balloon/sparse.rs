//! Huge pages of which the guest uses little.
//!
//! A guest's kernel boots in some twenty faults, since the host gives it huge pages. Afterwards many of
//! them are a few pages in use and hundreds that nobody has ever written to, or that are free in pieces
//! too small to be worth the breaking of a huge page. So when the guest begins to report such huge pages
//! are split. The host's kernel then gives the empty pages back by itself (`remap_page` in
//! mm/huge_memory.c), whatever the guest does meanwhile; and what the guest reports of them in small
//! pieces can go back, too.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::system::uname;
use vm_memory::{
    Bytes, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use crate::GuestMemory;

/// Bytes of a page of the host.
const PAGE: usize = 4096;
/// Bytes of a huge page of the host.
pub(super) const HUGE_PAGE: usize = 2 << 20;
/// From so many empty pages in a huge one on it is worth splitting: an eighth.
const EMPTY: usize = HUGE_PAGE / PAGE / 8;
/// With more huge pages than these, 128 MiB, the guest does not only idle: it has something in them that
/// wants them, or somebody wanted them to be there from the start.
const MOST: usize = 64;
/// How much is looked at in one system call.
const LOOK: usize = 1 << 30;
/// The kernel that gives empty pages back when it splits a huge one.
const SINCE: (u32, u32) = (6, 12);

/// When there is a look, after the one before: at once, and again when the guest has settled, and what it
/// does some seconds after its start (a file system's first commit) has taken huge pages for little, too.
const LOOKS: [Duration; 2] = [Duration::ZERO, Duration::from_secs(8)];

/// Splits what is sparse on a thread of its own, since it takes some milliseconds, and rings `done` after
/// each look. What comes each time are the addresses, here, of the huge pages that were. Nothing comes,
/// and nobody rings, where there are none to be split.
pub(super) fn split_all(mem: &GuestMemory, done: OwnedFd) -> Option<Receiver<Vec<usize>>> {
    if !is_of_use(&uname().release().to_string_lossy()) || !mem.iter().any(has_huge_pages) {
        return None;
    }
    let mem = mem.clone();
    let (sender, receiver) = channel();
    let work = move || {
        for pause in LOOKS {
            thread::sleep(pause);
            let mut all = Vec::new();
            for region in mem.iter().filter(|region| has_huge_pages(region)) {
                if let Err(error) = split(region, &mut all) {
                    log::debug!("virtio-balloon: sparse huge pages stay: {error}");
                }
            }
            log::debug!("virtio-balloon: {} sparse huge pages are split", all.len());
            // The driver may have gone meanwhile, and who listened with it.
            if sender.send(all).is_err() {
                return;
            }
            let _ = rustix::io::write(&done, &1u64.to_ne_bytes());
        }
    };
    let thread = thread::Builder::new().name("sparse".into()).spawn(work);
    thread.is_ok().then_some(receiver)
}

/// Whether a kernel of this release does its part.
fn is_of_use(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    number()
        .zip(number())
        .is_some_and(|version: (u32, u32)| version >= SINCE)
}

/// Transparent ones: files have their own, and explicit ones cannot be split.
fn has_huge_pages(region: &GuestRegionMmap<()>) -> bool {
    region.file_offset().is_none() && region.flags() & (libc::MAP_HUGETLB | libc::MAP_SHARED) == 0
}

/// Splits the sparse ones of a region, if there are not too many, and adds their addresses to `all`.
fn split(region: &GuestRegionMmap<()>, all: &mut Vec<usize>) -> io::Result<()> {
    let huge = resident(region)?;
    if huge.len() > MOST {
        return Ok(());
    }
    for at in huge {
        if empty_pages(region, at) < EMPTY {
            continue;
        }
        // Or the host puts them together again when it next goes about (khugepaged).
        advise(region, at, HUGE_PAGE, libc::MADV_NOHUGEPAGE)?;
        // Of all that can be said of a part of a huge page, that it is cold changes nothing else.
        advise(region, at, PAGE, libc::MADV_COLD)?;
        all.push(region.as_ptr().addr() + at);
    }
    Ok(())
}

/// Lets the host have a huge page again where one was split, now that nothing is in it.
pub(super) fn join(region: &GuestRegionMmap<()>, at: usize) {
    // It costs speed alone if the host does not hear it.
    let _ = advise(region, at, HUGE_PAGE, libc::MADV_HUGEPAGE);
}

/// Where in the region huge pages are, or as many small ones: offsets in bytes.
fn resident(region: &GuestRegionMmap<()>) -> io::Result<Vec<usize>> {
    let len = usize::try_from(region.len()).map_err(io::Error::other)?;
    let start = region.as_ptr();
    let mut first = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    let mut found = Vec::new();
    let mut there = vec![0u8; LOOK.min(len) / PAGE];
    while first + HUGE_PAGE <= len {
        let bytes = (len - first).min(LOOK) / HUGE_PAGE * HUGE_PAGE;
        // SAFETY: asks about a range of the region, which stays mapped; the answer has a byte a page.
        let result =
            unsafe { libc::mincore(start.wrapping_add(first).cast(), bytes, there.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let pages = there.get(..bytes / PAGE).unwrap_or_default();
        for (number, pages) in pages.chunks_exact(HUGE_PAGE / PAGE).enumerate() {
            if pages.iter().all(|page| page & 1 != 0) {
                found.push(first + number * HUGE_PAGE);
            }
        }
        first += bytes;
    }
    Ok(found)
}

/// How many pages of the huge one at `at` hold nothing but zeros. The guest may write to them meanwhile;
/// this is no more than a reason to split.
fn empty_pages(region: &GuestRegionMmap<()>, at: usize) -> usize {
    let mut data = [0; PAGE];
    let mut is_empty = |page: &usize| {
        let address = MemoryRegionAddress((at + page * PAGE) as u64);
        // Most that are in use say so at their start.
        region.read_obj::<u64>(address).is_ok_and(|word| word == 0)
            && region.read_slice(&mut data, address).is_ok()
            && data == [0; PAGE]
    };
    (0..HUGE_PAGE / PAGE).filter(|page| is_empty(page)).count()
}

fn advise(
    region: &GuestRegionMmap<()>,
    at: usize,
    len: usize,
    advice: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the range lies in the region, which stays mapped, and no advice of ours changes what is in it.
    match unsafe { libc::madvise(region.as_ptr().wrapping_add(at).cast(), len, advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, MmapRegion};

    fn region(bytes: usize) -> GuestRegionMmap<()> {
        GuestRegionMmap::new(MmapRegion::new(bytes).unwrap(), GuestAddress(0)).unwrap()
    }

    fn write(region: &GuestRegionMmap<()>, page: usize, byte: u8) {
        let address = MemoryRegionAddress((page * PAGE) as u64);
        region.write_slice(&[byte; PAGE], address).unwrap();
    }

    /// If it fails, hosts are split pages on that give nothing back for it, or none are.
    #[test]
    fn kernels_are_told_apart() {
        for release in ["6.12.95+deb12-cloud-amd64", "6.12", "7.0-rc1", "10.1.2"] {
            assert!(is_of_use(release), "{release}");
        }
        for release in ["6.11.99", "5.15.0-generic", "6", "", "linux"] {
            assert!(!is_of_use(release), "{release}");
        }
    }

    /// If it fails, pages that are in use are split, sparse ones are missed, or what is in them is lost.
    #[test]
    fn what_is_in_sparse_pages_stays() {
        let region = region(4 * HUGE_PAGE);
        let skip = region.as_ptr().addr().next_multiple_of(HUGE_PAGE) - region.as_ptr().addr();
        let first = skip / PAGE;
        // Two that are there as a whole, the first with something in each fourth page.
        for page in 0..2 * HUGE_PAGE / PAGE {
            let byte = u8::from(page >= HUGE_PAGE / PAGE || page % 4 == 0);
            write(&region, first + page, byte);
        }
        // Of the third nobody has touched more than a page.
        write(&region, first + 2 * HUGE_PAGE / PAGE, 1);
        let found = resident(&region).unwrap();
        assert_eq!(found, [skip, skip + HUGE_PAGE]);
        let empty = |at| empty_pages(&region, at);
        assert_eq!(empty(skip), 3 * HUGE_PAGE / PAGE / 4);
        assert_eq!(empty(skip + HUGE_PAGE), 0);
        let mut all = Vec::new();
        split(&region, &mut all).unwrap();
        assert_eq!(all, [region.as_ptr().addr() + skip]);
        join(&region, skip);
        assert_eq!(empty(skip), 3 * HUGE_PAGE / PAGE / 4);
        assert_eq!(empty(skip + HUGE_PAGE), 0);
    }

    /// If it fails, the memory of a guest that uses much of it is gone through, or split.
    #[test]
    fn guests_with_much_memory_in_use_are_left_alone() {
        let region = region((MOST + 2) * HUGE_PAGE);
        for page in 0..(MOST + 2) * HUGE_PAGE / PAGE {
            write(&region, page, 0);
        }
        assert!(resident(&region).unwrap().len() > MOST);
        let mut all = Vec::new();
        split(&region, &mut all).unwrap();
        assert!(all.is_empty());
    }
}
