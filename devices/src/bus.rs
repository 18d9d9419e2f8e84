//! The bus: which device answers at which address of a port or memory address space.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A device that answers programmed accesses of the guest. `offset` is relative to the start of
/// the device's range. Every value here is the guest's: offsets lie in the range, `data` has 1 to 8
/// bytes, nothing else is promised.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset`; what is left unwritten reads as it was (0xff).
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Why a device cannot be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Another device has part of the range.
    #[error("the range {base:#x}+{len:#x} of {name} overlaps that of {other}")]
    Overlap {
        /// First address asked for.
        base: u64,
        /// Bytes asked for.
        len: u64,
        /// The device that asked.
        name: &'static str,
        /// The device that is there.
        other: &'static str,
    },
    /// The range is empty or runs over the end of the address space.
    #[error("the range {base:#x}+{len:#x} of {name} is empty or has no end")]
    Range {
        /// First address asked for.
        base: u64,
        /// Bytes asked for.
        len: u64,
        /// The device that asked.
        name: &'static str,
    },
}

struct Slot {
    base: u64,
    len: u64,
    name: &'static str,
    device: Arc<Mutex<dyn BusDevice>>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}+{:#x}", self.name, self.base, self.len)
    }
}

/// One address space: ports or memory. Filled while the VM is built, read-only while it runs, so
/// that vCPU threads share it without a lock; each device has a lock of its own.
#[derive(Debug, Default)]
pub struct Bus {
    slots: Vec<Slot>,
}

impl Bus {
    /// An address space with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base`, for `len` addresses.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        name: &'static str,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let end = match base.checked_add(len) {
            Some(end) if len > 0 => end,
            _ => return Err(BusError::Range { base, len, name }),
        };
        let at = self.slots.partition_point(|slot| slot.base < base);
        let before = at.checked_sub(1).and_then(|i| self.slots.get(i));
        let after = self.slots.get(at);
        let clash = before
            .filter(|slot| slot.base + slot.len > base)
            .or(after.filter(|slot| slot.base < end));
        if let Some(slot) = clash {
            return Err(BusError::Overlap {
                base,
                len,
                name,
                other: slot.name,
            });
        }
        self.slots.insert(
            at,
            Slot {
                base,
                len,
                name,
                device,
            },
        );
        Ok(())
    }

    /// The guest reads at `address`. Where nothing answers, as on real hardware, all bits are set.
    /// Returns whether a device answered.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        self.with(address, data.len(), |device, offset| {
            device.read(offset, data)
        })
    }

    /// The guest writes at `address`. Returns whether a device answered.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        self.with(address, data.len(), |device, offset| {
            device.write(offset, data)
        })
    }

    /// Calls `access` with the device that has all of `address..address + len`.
    fn with(&self, address: u64, len: usize, access: impl FnOnce(&mut dyn BusDevice, u64)) -> bool {
        let at = self.slots.partition_point(|slot| slot.base <= address);
        let Some(slot) = at.checked_sub(1).and_then(|i| self.slots.get(i)) else {
            return false;
        };
        let offset = address - slot.base;
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > slot.len)
        {
            return false;
        }
        // A device that panicked is still a device: the guest must not be able to poison the bus.
        let mut device = slot.device.lock().unwrap_or_else(PoisonError::into_inner);
        access(&mut *device, offset);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Probe(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn probe() -> Arc<Mutex<Probe>> {
        Arc::default()
    }

    /// If it fails, a guest's access reaches the wrong device, or none.
    #[test]
    fn an_access_reaches_the_device_that_has_its_range() {
        let (low, high) = (probe(), probe());
        let mut bus = Bus::new();
        bus.insert(0x20, 0x10, "high", high.clone()).unwrap();
        bus.insert(0x10, 0x10, "low", low.clone()).unwrap();
        assert!(bus.write(0x1f, &[1]));
        assert!(bus.write(0x20, &[2]));
        assert!(!bus.write(0x30, &[3]) && !bus.write(0x0f, &[3]));
        assert_eq!(low.lock().unwrap().0, [(0xf, vec![1])]);
        assert_eq!(high.lock().unwrap().0, [(0, vec![2])]);
    }

    /// If it fails, one access spans two devices and the second is read past its range.
    #[test]
    fn an_access_over_the_end_of_a_range_reaches_nobody() {
        let mut bus = Bus::new();
        bus.insert(0x10, 0x10, "low", probe()).unwrap();
        let mut data = [0; 4];
        assert!(!bus.read(0x1e, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.read(u64::MAX, &mut data));
    }

    /// If it fails, two devices fight over an address.
    #[test]
    fn ranges_that_overlap_or_have_no_end_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x10, 0x10, "a", probe()).unwrap();
        for (base, len) in [(0x0, 0x11), (0x1f, 1), (0x18, 2), (0x0, 0x100)] {
            let result = bus.insert(base, len, "b", probe());
            assert!(
                matches!(result, Err(BusError::Overlap { .. })),
                "{base:#x}+{len:#x}"
            );
        }
        assert!(matches!(
            bus.insert(1, 0, "b", probe()),
            Err(BusError::Range { .. })
        ));
        assert!(matches!(
            bus.insert(u64::MAX, 2, "b", probe()),
            Err(BusError::Range { .. })
        ));
        bus.insert(0x20, 1, "b", probe()).unwrap();
    }

    /// Answers with its own number, and with where it was asked.
    struct Named(u8);

    impl BusDevice for Named {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            let end = offset + data.len() as u64;
            data.fill(self.0);
            if let [_, second, ..] = data {
                *second = u8::try_from(end).unwrap();
            }
        }
        fn write(&mut self, _offset: u64, _data: &[u8]) {}
    }

    proptest! {
        /// If it fails, an access reaches a device that does not have all of its bytes, or devices
        /// share an address.
        #[test]
        fn each_address_has_at_most_one_device(
            ranges in proptest::collection::vec((0..64usize, 0..20usize), 0..12),
        ) {
            let mut bus = Bus::new();
            // Which device has an address, and where its range starts.
            let mut owners = [None; 96];
            for (number, (base, len)) in (0..).zip(ranges) {
                let device = Arc::new(Mutex::new(Named(number)));
                let result = bus.insert(base as u64, len as u64, "named", device);
                let range = &mut owners[base..base + len];
                let is_free = range.iter().all(Option::is_none);
                prop_assert_eq!(result.is_ok(), len > 0 && is_free, "{}+{}", base, len);
                if result.is_ok() {
                    range.fill(Some((number, base)));
                }
            }
            for (address, len) in (0..88).flat_map(|at| (1..=8).map(move |len| (at, len))) {
                let mut data = vec![0; len];
                let is_answered = bus.read(address as u64, &mut data);
                let owner = owners[address];
                let is_one = owners[address..address + len].iter().all(|other| *other == owner);
                let owner = owner.filter(|_| is_one);
                prop_assert_eq!(is_answered, owner.is_some(), "{}+{}", address, len);
                prop_assert_eq!(data[0], owner.map_or(0xff, |(number, _)| number));
                if let (Some((_, start)), Some(end)) = (owner, data.get(1)) {
                    prop_assert_eq!(usize::from(*end), address + len - start);
                }
            }
        }
    }
}
