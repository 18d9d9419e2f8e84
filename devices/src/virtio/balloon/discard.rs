//! Giving guest memory back to the host.

use std::collections::BTreeSet;
use std::io;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::sparse;
use crate::GuestMemory;
use crate::log_limit::log_limited;

/// Bytes of a page of the balloon (virtio 1.2, section 5.5.6), and of the host.
pub(super) const PAGE: u64 = 4096;
/// Bytes of an explicit huge page: only whole ones can be given back.
const HUGE_PAGE: u64 = 2 << 20;
/// What `statfs` says of a file of explicit huge pages.
const HUGETLBFS_MAGIC: rustix::fs::FsWord = libc::HUGETLBFS_MAGIC;

/// Gives ranges of guest memory back: the host forgets what is in them, and the next access finds
/// zeros (or, where a file was mapped privately, the file). Pages that are not whole in a range
/// stay.
#[derive(Debug)]
pub(super) struct Discarder {
    mem: GuestMemory,
    /// How each region of `mem` goes back.
    backings: Vec<Backing>,
    /// Addresses, here, of what were transparent huge pages and are small ones now.
    split: BTreeSet<usize>,
}

/// What a region lives on.
#[derive(Clone, Copy, Debug)]
struct Backing {
    /// Bytes of the least that can be given back.
    page: u64,
    advice: libc::c_int,
    /// The host may have it in huge pages that a small hole breaks.
    breaks: bool,
}

impl Backing {
    fn of(region: &GuestRegionMmap<()>) -> Self {
        let is_huge_file = region.file_offset().is_some_and(|file| {
            rustix::fs::fstatfs(file.file()).is_ok_and(|fs| fs.f_type == HUGETLBFS_MAGIC)
        });
        let is_huge = is_huge_file || region.flags() & libc::MAP_HUGETLB != 0;
        let is_shared = region.flags() & libc::MAP_SHARED != 0;
        Self {
            breaks: !is_shared && !is_huge,
            page: if is_huge { HUGE_PAGE } else { PAGE },
            // Shared memory lives in its file: only a hole in that gives it back.
            advice: match is_shared {
                false => libc::MADV_DONTNEED,
                true => libc::MADV_REMOVE,
            },
        }
    }
}

impl Discarder {
    pub(super) fn new(mem: GuestMemory) -> Self {
        let backings = mem.iter().map(Backing::of).collect();
        Self {
            mem,
            backings,
            split: BTreeSet::new(),
        }
    }

    /// Huge pages, by their addresses here, are small ones from now on.
    pub(super) fn add_split(&mut self, addresses: Vec<usize>) {
        self.split.extend(addresses);
    }

    /// The memory that it is about.
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.mem
    }

    fn regions(&self) -> impl Iterator<Item = (&GuestRegionMmap<()>, Backing)> {
        self.mem.iter().zip(self.backings.iter().copied())
    }

    /// The `count` pages from page `first` of guest physical memory on; what of them is not memory
    /// is left out.
    pub(super) fn pages(&self, first: u32, count: u32) {
        let start = u64::from(first) * PAGE;
        let end = start + u64::from(count) * PAGE;
        let mut left = end - start;
        for (region, backing) in self.regions() {
            let base = region.start_addr().raw_value();
            let from = start.max(base);
            let to = end.min(base.saturating_add(region.len()));
            if from < to {
                left -= to - from;
                discard(region, backing, from - base, to - base);
            }
        }
        if left > 0 {
            log_limited!(
                warn,
                "virtio-balloon: the guest's driver gives away {left} bytes at {start:#x} and \
                 behind that it does not have"
            );
        }
    }

    /// Pieces of guest memory, as a chain has them: each lies in one region. Parts of huge pages stay
    /// where they would break them.
    pub(super) fn pieces(&mut self, pieces: &[libc::iovec]) {
        let Self {
            mem,
            backings,
            split,
        } = self;
        for piece in pieces {
            let at = piece.iov_base.addr() as u64;
            let inside = |(region, _): &(&GuestRegionMmap<()>, &Backing)| {
                let base = region.as_ptr().addr() as u64;
                at >= base && at - base < region.len()
            };
            if let Some((region, backing)) = mem.iter().zip(backings.iter()).find(inside) {
                let from = at - region.as_ptr().addr() as u64;
                let to = from.saturating_add(piece.iov_len as u64);
                discard_piece(region, *backing, from, to.min(region.len()), split);
            }
        }
    }
}

/// Gives back what is in whole pages of the bytes `from..to` of a region, but for parts of huge pages that
/// were not split; those that were and are free as a whole may be huge again.
fn discard_piece(
    region: &GuestRegionMmap<()>,
    backing: Backing,
    from: u64,
    to: u64,
    split: &mut BTreeSet<usize>,
) {
    if !backing.breaks {
        return discard(region, backing, from, to);
    }
    let base = region.as_ptr().addr();
    // Whole huge pages, as the host has them.
    let offset = (base.next_multiple_of(sparse::HUGE_PAGE) - base) as u64;
    let up = |at: u64| offset + at.saturating_sub(offset).next_multiple_of(HUGE_PAGE);
    let down = |at: u64| match at.checked_sub(offset) {
        Some(at) => offset + at / HUGE_PAGE * HUGE_PAGE,
        None => 0,
    };
    let (first, last) = (up(from), down(to));
    let is_split = |split: &BTreeSet<usize>, at: u64| {
        usize::try_from(down(at)).is_ok_and(|at| split.contains(&(base + at)))
    };
    if first > last {
        // Within one.
        if is_split(split, from) {
            discard(region, backing, from, to);
        }
        return;
    }
    discard(region, backing, first, last);
    for (from, to) in [(from, first), (last, to)] {
        if from < to && is_split(split, from) {
            discard(region, backing, from, to);
        }
    }
    let addresses = |at: u64| usize::try_from(at).map_or(usize::MAX, |at| base.saturating_add(at));
    let whole: Vec<_> = split
        .range(addresses(first)..addresses(last))
        .copied()
        .collect();
    for address in whole {
        sparse::join(region, address - base);
        split.remove(&address);
    }
}

/// Gives back what is in whole pages of the bytes `from..to` of a region.
fn discard(region: &GuestRegionMmap<()>, backing: Backing, from: u64, to: u64) {
    let Backing { page, advice, .. } = backing;
    let (from, to) = (from.next_multiple_of(page), to / page * page);
    let (Ok(offset), Ok(len)) = (
        usize::try_from(from),
        usize::try_from(to.saturating_sub(from)),
    ) else {
        return;
    };
    if len == 0 {
        return;
    }
    // SAFETY: the range lies in the region, which stays mapped; what is in guest memory is the
    // guest's, who gives it away, and nothing of Rust's depends on it.
    let result = unsafe {
        let start = region.as_ptr().wrapping_add(offset);
        libc::madvise(start.cast(), len, advice)
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        log_limited!(
            warn,
            "virtio-balloon: the host does not take memory back: {error}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd;

    use proptest::prelude::*;
    use vm_memory::{Bytes, FileOffset, GuestAddress, MmapRegion};

    use super::*;

    const LEN: usize = 8 << 20;

    /// Guest memory at 1 MiB, full of ones.
    fn memory(region: MmapRegion<()>) -> GuestMemory {
        let base = GuestAddress(1 << 20);
        let mem = GuestMemory::from_regions(vec![GuestRegionMmap::new(region, base).unwrap()]);
        let mem = mem.unwrap();
        mem.write_slice(&vec![1; LEN], base).unwrap();
        mem
    }

    /// The pages that are zeros now, counted from the region's first.
    fn gone(mem: &GuestMemory) -> Vec<u64> {
        let is_gone = |page: &u64| {
            let mut data = [7; 4096];
            let at = GuestAddress((1 << 20) + page * PAGE);
            mem.read_slice(&mut data, at).unwrap();
            let is_zero = data == [0; 4096];
            assert!(is_zero || data == [1; 4096], "page {page} is cut");
            is_zero
        };
        (0..LEN as u64 / PAGE).filter(is_gone).collect()
    }

    /// If it fails, memory does not come back, or something is lost that the guest did not give.
    #[test]
    fn private_memory_is_given_back_by_whole_pages() {
        let mem = memory(MmapRegion::new(LEN).unwrap());
        let discarder = Discarder::new(mem.clone());
        // 256 is the region's first page.
        discarder.pages(255, 3);
        discarder.pages(256 + 2047, 9);
        for outside in [(0, 256), (5000, 1), (u32::MAX, u32::MAX), (300, 0)] {
            discarder.pages(outside.0, outside.1);
        }
        assert_eq!(gone(&mem), [0, 1, 2047]);
    }

    /// If it fails, small pieces of free memory break huge pages, stay where they would not, or take
    /// more with them.
    #[test]
    fn pieces_of_huge_pages_go_back_where_these_are_split() {
        let mem = memory(MmapRegion::new(LEN).unwrap());
        let mut discarder = Discarder::new(mem.clone());
        let base = mem.iter().next().unwrap().as_ptr();
        let huge = |number: usize| {
            base.addr().next_multiple_of(sparse::HUGE_PAGE) + number * sparse::HUGE_PAGE
        };
        let page = |address: usize| ((address - base.addr()) / 4096) as u64;
        let piece = |at: usize, iov_len: usize| libc::iovec {
            iov_base: base.wrapping_add(at - base.addr()).cast(),
            iov_len,
        };
        discarder.add_split(vec![huge(0), huge(1)]);
        let first = page(huge(0));
        discarder.pieces(&[
            piece(huge(0) + 5 * 4096 - 1, 4098),
            piece(huge(0) + 7 * 4096 + 1, 8190),
            piece(huge(0) + 9, 0),
            // Of one that is whole.
            piece(huge(2) + 4096, 4096),
        ]);
        let outside = base.wrapping_add(LEN).addr();
        discarder.pieces(&[
            piece(outside, 4096),
            libc::iovec {
                iov_base: std::ptr::without_provenance_mut(usize::MAX / 2),
                iov_len: usize::MAX,
            },
        ]);
        assert_eq!(gone(&mem), [first + 5]);
        // All of the second, and a little of its neighbours.
        discarder.pieces(&[piece(huge(1) - 4096, sparse::HUGE_PAGE + 2 * 4096)]);
        let mut all: Vec<_> = (first + 511..first + 1024).collect();
        all.insert(0, first + 5);
        assert_eq!(gone(&mem), all);
        // It may be huge again, so pieces of it stay.
        mem.write_slice(&[1; 4096], GuestAddress((1 << 20) + (first + 600) * PAGE))
            .unwrap();
        discarder.pieces(&[piece(huge(1) + 88 * 4096, 4096)]);
        all.retain(|number| *number != first + 600);
        assert_eq!(gone(&mem), all);
    }

    /// If it fails, memory that another process shares stays in its file, on the host, for good.
    #[test]
    fn shared_memory_is_given_back_to_the_host() {
        // SAFETY: a fresh descriptor, which the file owns from here on.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), 0)) };
        file.set_len(LEN as u64).unwrap();
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let mem = memory(MmapRegion::from_file(offset, LEN).unwrap());
        let before = blocks();
        Discarder::new(mem.clone()).pages(256 + 512, 1024);
        assert_eq!(before - blocks(), 1024 * 8);
        // To look at a hole is to fill it.
        assert_eq!(gone(&mem), (512..1536).collect::<Vec<_>>());
    }

    /// Two regions with a hole between them, and the first and last page of each.
    const REGIONS: [(u64, u64); 2] = [(3, 16), (20, 31)];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// If it fails, the guest loses a page that it did not give away, or the host gets one back
        /// too few.
        #[test]
        fn the_pages_that_are_given_back_are_those_of_the_guest(
            runs in proptest::collection::vec(
                (prop_oneof![0..40u32, Just(u32::MAX), any::<u32>()],
                 prop_oneof![0..8u32, Just(u32::MAX), any::<u32>()]),
                0..4,
            ),
        ) {
            let region = |(first, last): (u64, u64)| {
                let len = usize::try_from((last - first + 1) * PAGE).unwrap();
                let region = MmapRegion::new(len).unwrap();
                GuestRegionMmap::new(region, GuestAddress(first * PAGE)).unwrap()
            };
            let mem = GuestMemory::from_regions(REGIONS.map(region).into()).unwrap();
            let all = || (0..40).map(|page| (page, GuestAddress(page * PAGE)));
            let pages = || all().filter(|(_, at)| mem.address_in_range(*at));
            for (_, at) in pages() {
                mem.write_slice(&[1; 4096], at).unwrap();
            }
            let discarder = Discarder::new(mem.clone());
            for (first, count) in &runs {
                discarder.pages(*first, *count);
            }
            for (page, at) in pages() {
                let mut data = [7; 4096];
                mem.read_slice(&mut data, at).unwrap();
                let is_given = runs.iter().any(|(first, count)| {
                    let first = u64::from(*first);
                    (first..first + u64::from(*count)).contains(&page)
                });
                prop_assert_eq!(data, [u8::from(!is_given); 4096], "page {}", page);
            }
        }
    }
}
