//! Guest memory that is there from the start.

use std::io;
use std::ptr;

use cofferdam_devices::GuestMemory;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of a page of the host.
const PAGE: usize = 4096;

/// Takes every page of `mem`, in which nothing is yet, from the host.
pub(super) fn prefault(mem: &GuestMemory) -> io::Result<()> {
    for region in mem.iter() {
        let start = region.as_ptr();
        let len = usize::try_from(region.len()).map_err(io::Error::other)?;
        // SAFETY: faults pages of a mapping in, and changes nothing in them.
        let result = unsafe { libc::madvise(start.cast(), len, libc::MADV_POPULATE_WRITE) };
        if result == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
        // A kernel before 5.14.
        for offset in (0..len).step_by(PAGE) {
            // SAFETY: a byte of the region, which is mapped and writable, and zero already.
            unsafe { ptr::write_volatile(start.wrapping_add(offset), 0) };
        }
    }
    Ok(())
}
