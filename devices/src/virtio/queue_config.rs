//! A queue as the driver sets it up through a transport's registers.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::ring::Ring;
use crate::GuestMemory;

/// What the driver wrote about one queue. All of it is the guest's word until [`Self::ring`].
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueConfig {
    /// Entries at most: the device's word.
    pub(super) max_size: u16,
    /// Entries.
    pub(super) size: u32,
    /// Address of the descriptor table.
    pub(super) descriptors: u64,
    /// Address of the available ring, the driver's area.
    pub(super) driver: u64,
    /// Address of the used ring, the device's area.
    pub(super) device: u64,
    /// The driver said that it is done, and what it wrote makes a ring.
    pub(super) is_ready: bool,
}

impl QueueConfig {
    /// A queue that nobody has set up.
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: 0,
            descriptors: 0,
            driver: 0,
            device: 0,
            is_ready: false,
        }
    }

    /// The ring that this makes; `None` if the size is no power of two or too large, or if a part
    /// of the ring is misaligned or not in guest memory (virtio 1.2, section 2.7).
    pub(super) fn ring(&self, mem: &GuestMemory, event_idx: bool) -> Option<Ring> {
        let mut ring = Queue::new(self.max_size).ok()?;
        // These, unlike virtio-queue's other setters, log nothing: the guest writes as it likes.
        ring.try_set_size(u16::try_from(self.size).ok()?).ok()?;
        ring.try_set_desc_table_address(GuestAddress(self.descriptors))
            .ok()?;
        ring.try_set_avail_ring_address(GuestAddress(self.driver))
            .ok()?;
        ring.try_set_used_ring_address(GuestAddress(self.device))
            .ok()?;
        ring.set_event_idx(event_idx);
        Ring::find(&ring, mem)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEM: u64 = 0x10000;

    fn config() -> QueueConfig {
        QueueConfig {
            size: 16,
            descriptors: 0x1000,
            driver: 0x2000,
            device: 0x3000,
            ..QueueConfig::new(16)
        }
    }

    fn makes_a_ring(config: QueueConfig) -> bool {
        let range = (GuestAddress(0), usize::try_from(MEM).unwrap());
        let mem = GuestMemory::from_ranges(&[range]).unwrap();
        config.ring(&mem, false).is_some()
    }

    /// If it fails, a device works with a ring outside guest memory, or with none of a proper size.
    #[test]
    fn only_a_whole_ring_in_guest_memory_is_a_ring() {
        assert!(makes_a_ring(config()));
        for size in [0, 3, 32, 0x1_0000, u32::MAX] {
            assert!(!makes_a_ring(QueueConfig { size, ..config() }), "{size}");
        }
        for bad in [MEM, MEM - 16, 0x1001, u64::MAX, u64::MAX - 0xf] {
            for part in 0..3 {
                let mut config = config();
                match part {
                    0 => config.descriptors = bad,
                    1 => config.driver = bad,
                    _ => config.device = bad,
                }
                assert!(!makes_a_ring(config), "part {part} at {bad:#x}");
            }
        }
    }

    /// The address `good`, or one where something begins or ends, or near it, or any.
    fn address(good: u64) -> impl Strategy<Value = u64> {
        let border = prop_oneof![
            Just(0),
            Just(MEM),
            Just(1 << 32),
            Just(u64::MAX),
            0..MEM,
            any::<u64>()
        ];
        let near = prop_oneof![-0x20i64..0x20, -0x400i64..0x20];
        let align = prop_oneof![Just(1), Just(2), Just(4), Just(16)];
        let wild = (border, near, align).prop_map(|(border, near, align)| {
            let address = border.wrapping_add_signed(near);
            address - address % align
        });
        prop_oneof![Just(good), wild]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// If it fails, a part of a ring reaches past guest memory, or a good driver is refused.
        #[test]
        fn each_part_of_a_ring_lies_in_guest_memory(
            size in prop_oneof![(0..6u32).prop_map(|n| 1 << n), 0..40u32, Just(0x1_0010), any::<u32>()],
            parts in [0x1000, 0x2000, 0x3000].map(address),
        ) {
            let [descriptors, driver, device] = parts;
            let config = QueueConfig { size, descriptors, driver, device, ..config() };
            let fits = |address: u64, align: u64, len: u64| {
                address.is_multiple_of(align)
                    && u128::from(address) + u128::from(len) <= u128::from(MEM)
            };
            let entries = u64::from(size);
            let is_ring = matches!(size, 1 | 2 | 4 | 8 | 16)
                && fits(descriptors, 16, 16 * entries)
                && fits(driver, 2, 6 + 2 * entries)
                && fits(device, 4, 6 + 8 * entries);
            prop_assert_eq!(makes_a_ring(config), is_ring);
        }
    }
}
