//! Persistent memory: files mapped into the guest.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use cofferdam_devices::virtio::pmem::{ALIGNMENT, Pmem, PmemFile, ReadOnly};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};

use super::{DeviceError, Devices};
use crate::arch::layout;
use crate::config::PmemConfig;
use crate::vm::memory;

impl Devices<'_> {
    /// Maps the file into the guest, above its memory, and adds the device that says where.
    ///
    /// What is mapped is no part of [`Devices::mem`]: no device is led there by the guest, so none
    /// meets a page that is read-only, or gone with the end of a file.
    pub(super) fn add_pmem(&mut self, config: &PmemConfig) -> Result<(), DeviceError> {
        let file = PmemFile::open(&config.file, config.ro)?;
        let start = self.next_pmem;
        let size = file.size().next_multiple_of(ALIGNMENT);
        let failed = |source| DeviceError::PmemMap {
            path: config.file.clone(),
            source,
        };
        let host = memory::map_file(file.as_fd(), file.size(), size, config.ro).map_err(failed)?;
        let slot = kvm_userspace_memory_region {
            slot: self.next_slot,
            guest_phys_addr: start,
            memory_size: size,
            userspace_addr: host,
            flags: if config.ro { KVM_MEM_READONLY } else { 0 },
        };
        self.next_slot += 1;
        // SAFETY: the range is that of a mapping that lives as long as the process; guest memory
        // and other files end below `start`.
        unsafe { self.vm.set_user_memory_region(slot) }.map_err(|source| {
            DeviceError::PmemSlot {
                path: config.file.clone(),
                source,
            }
        })?;
        if config.ro {
            let writes = Arc::new(Mutex::new(ReadOnly::new(&file)));
            self.mmio.insert(start, size, "pmem", writes)?;
        }
        self.next_pmem = (start + size).next_multiple_of(layout::PMEM_ALIGNMENT);
        let pmem = Arc::new(Mutex::new(Pmem::new(file, start, size)));
        self.pmems.push(pmem.clone());
        self.add_virtio("pmem", pmem)
    }
}
