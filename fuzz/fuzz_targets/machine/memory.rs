//! Guest memory that is mapped once, with pages around it that nobody may touch: what reaches past it
//! does not go unseen.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::{Arc, LazyLock};

use cofferdam_devices::GuestMemory;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// Bytes of each of two regions that touch in the guest, not in the host; nothing above.
pub const REGION: usize = 512 << 10;
const GUARD: usize = 64 << 10;
const ACCESS: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const PRIVATE: libc::c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Who has the memory.
#[derive(Clone, Copy, Debug)]
pub enum Sharing {
    /// The monitor alone.
    Private,
    /// Whoever is given its file.
    Shared,
}

/// The memory, all zeros.
pub fn fresh(sharing: Sharing) -> GuestMemory {
    static ANONYMOUS: LazyLock<GuestMemory> = LazyLock::new(|| map(None));
    static FILE: LazyLock<GuestMemory> = LazyLock::new(|| {
        let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(2 * REGION as u64).unwrap();
        map(Some(Arc::new(file)))
    });
    let (mem, advice) = match sharing {
        Sharing::Private => (&ANONYMOUS, libc::MADV_DONTNEED),
        Sharing::Shared => (&FILE, libc::MADV_REMOVE),
    };
    for region in mem.iter() {
        let start = region.as_volatile_slice().unwrap();
        // SAFETY: a mapping of ours, which is zeros afterwards; nobody has a reference into it.
        let code = unsafe {
            let start = start.ptr_guard_mut().as_ptr();
            libc::madvise(start.cast(), REGION, advice)
        };
        assert_eq!(code, 0);
    }
    (*mem).clone()
}

/// Lets nobody touch `mem` while `work` goes on: who does is caught.
pub fn without(mem: &GuestMemory, work: impl FnOnce()) {
    protect(mem, libc::PROT_NONE);
    work();
    protect(mem, ACCESS);
}

fn protect(mem: &GuestMemory, access: libc::c_int) {
    for region in mem.iter() {
        let start = region.as_volatile_slice().unwrap();
        let start = start.ptr_guard_mut().as_ptr();
        // SAFETY: a mapping of ours, which nobody has a reference into.
        assert_eq!(unsafe { libc::mprotect(start.cast(), REGION, access) }, 0);
    }
}

fn map(file: Option<Arc<File>>) -> GuestMemory {
    let len = 2 * (GUARD + REGION) + GUARD;
    // SAFETY: a new mapping, wherever there is room.
    let room = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, PRIVATE, -1, 0) };
    assert_ne!(room, libc::MAP_FAILED);
    let regions = [0, 1].map(|number| {
        let place = room.wrapping_byte_add(GUARD + number * (GUARD + REGION));
        let start = (number * REGION) as u64;
        let (flags, fd) = match &file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (PRIVATE, -1),
        };
        let offset = libc::off_t::try_from(start).unwrap();
        let fixed = flags | libc::MAP_FIXED;
        // SAFETY: the range is part of the mapping above, which nobody else knows of.
        let address = unsafe { libc::mmap(place, REGION, ACCESS, fixed, fd, offset) };
        assert_eq!(address, place);
        let mut region = MmapRegionBuilder::new(REGION)
            .with_mmap_prot(ACCESS)
            .with_mmap_flags(flags);
        if let Some(file) = &file {
            region = region.with_file_offset(FileOffset::from_arc(file.clone(), start));
        }
        // SAFETY: what was just mapped, and is never unmapped.
        let region = unsafe { region.with_raw_mmap_pointer(place.cast()) };
        GuestRegionMmap::new(region.build().unwrap(), GuestAddress(start)).unwrap()
    });
    GuestMemory::from_regions(regions.into()).unwrap()
}
