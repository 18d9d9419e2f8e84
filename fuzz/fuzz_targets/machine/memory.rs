//! Guest memory that is mapped once, with pages around it that nobody may touch: what reaches past it
//! does not go unseen.

use std::ptr;
use std::sync::LazyLock;

use cofferdam_devices::GuestMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// Bytes of each of two regions that touch in the guest, not in the host; nothing above.
pub const REGION: usize = 512 << 10;
const GUARD: usize = 64 << 10;
const ACCESS: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    let len = 2 * (GUARD + REGION) + GUARD;
    // SAFETY: a new mapping, wherever there is room.
    let room = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, FLAGS, -1, 0) };
    assert_ne!(room, libc::MAP_FAILED);
    let regions = [0, 1].map(|number| {
        let place = room
            .cast::<u8>()
            .wrapping_add(GUARD + number * (GUARD + REGION));
        // SAFETY: the range is part of the mapping above, which is never unmapped, and the region
        // is the only one with it.
        let region = unsafe {
            assert_eq!(libc::mprotect(place.cast(), REGION, ACCESS), 0);
            MmapRegion::build_raw(place, REGION, ACCESS, FLAGS)
        };
        let start = GuestAddress((number * REGION) as u64);
        GuestRegionMmap::new(region.unwrap(), start).unwrap()
    });
    GuestMemory::from_regions(regions.into()).unwrap()
});

/// The memory, all zeros.
pub fn fresh() -> GuestMemory {
    for region in MEMORY.iter() {
        let start = region.as_volatile_slice().unwrap();
        // SAFETY: a private anonymous mapping, which is zeros afterwards; nobody has a reference
        // into it.
        let code = unsafe {
            let start = start.ptr_guard_mut().as_ptr();
            libc::madvise(start.cast(), REGION, libc::MADV_DONTNEED)
        };
        assert_eq!(code, 0);
    }
    MEMORY.clone()
}
