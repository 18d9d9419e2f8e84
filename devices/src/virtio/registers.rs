//! A device's registers as its driver reads them: one page of memory.
//!
//! The transport keeps it true. Where KVM can, the monitor maps the page into guest memory, read-only:
//! reading a register then is reading memory, with no exit at all, and only writes are trapped.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of the page.
pub const PAGE_SIZE: usize = 0x1000;
/// First byte of the device's configuration space (virtio 1.2, section 4.2.2).
pub const CONFIG: usize = 0x100;

/// Aligned so that it can be a memory slot of its own.
#[repr(C, align(4096))]
struct Page([AtomicU32; PAGE_SIZE / 4]);

/// A page of registers, each 32 bits, little-endian. Clones are the same page.
#[derive(Clone)]
pub struct Registers(Arc<Page>);

impl Registers {
    /// A page of zeros.
    pub fn new() -> Self {
        Self(Arc::new(Page([const { AtomicU32::new(0) }; PAGE_SIZE / 4])))
    }

    /// Where the page is in this process; it stays there as long as any clone lives.
    pub fn address(&self) -> *const u8 {
        std::ptr::from_ref(&*self.0).cast()
    }

    /// The register at byte `offset`.
    pub(super) fn load(&self, offset: u32) -> u32 {
        let register = self.register(offset);
        register.map_or(0, |register| u32::from_le(register.load(Ordering::Acquire)))
    }

    /// Sets the register at byte `offset`.
    pub(super) fn store(&self, offset: u32, value: u32) {
        if let Some(register) = self.register(offset) {
            register.store(value.to_le(), Ordering::Release);
        }
    }

    /// Sets the bits of `bits` in the register at byte `offset`.
    pub(super) fn set_bits(&self, offset: u32, bits: u32) {
        if let Some(register) = self.register(offset) {
            register.fetch_or(bits.to_le(), Ordering::AcqRel);
        }
    }

    /// Clears the bits of `bits` in the register at byte `offset`.
    pub(super) fn clear_bits(&self, offset: u32, bits: u32) {
        if let Some(register) = self.register(offset) {
            register.fetch_and(!bits.to_le(), Ordering::AcqRel);
        }
    }

    /// Sets the front of the configuration space.
    pub(super) fn store_config(&self, config: &[u8]) {
        for (offset, bytes) in (CONFIG..PAGE_SIZE).step_by(4).zip(config.chunks(4)) {
            let mut word = [0; 4];
            for (to, from) in word.iter_mut().zip(bytes) {
                *to = *from;
            }
            // An offset in the page.
            self.store(u32::try_from(offset).unwrap_or(0), u32::from_le_bytes(word));
        }
    }

    /// Reads any bytes of the page; behind it there are zeros.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = u32::try_from(offset) else {
            return;
        };
        for (distance, byte) in (0..).zip(data) {
            let offset = offset.saturating_add(distance);
            let Some(register) = self.register(offset) else {
                return;
            };
            // In memory the registers are little-endian.
            let bytes = register.load(Ordering::Acquire).to_ne_bytes();
            let place = usize::try_from(offset % 4).ok();
            *byte = place.and_then(|i| bytes.get(i)).copied().unwrap_or(0);
        }
    }

    fn register(&self, offset: u32) -> Option<&AtomicU32> {
        self.0.0.get(usize::try_from(offset / 4).ok()?)
    }
}

impl Default for Registers {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registers({:p})", self.address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a driver that reads memory and one that is trapped see different registers.
    #[test]
    fn bytes_are_those_of_the_little_endian_registers() {
        let page = Registers::new();
        assert_eq!(page.address().addr() % PAGE_SIZE, 0);
        page.store(0, 0x7472_6976);
        page.store_config(&[1, 2, 3, 4, 5]);
        let mut bytes = [0xff; 6];
        page.read(0x100, &mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 0]);
        page.read(1, &mut bytes[..2]);
        assert_eq!(&bytes[..2], b"ir");
        page.read(0xffe, &mut bytes);
        assert_eq!(bytes, [0; 6]);
        page.read(u64::MAX, &mut bytes);
        assert_eq!(page.load(0x2000), 0);
    }
}
