//! The memory map.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::GuestMemory;
use crate::layout::{ACPI_TABLES, ACPI_TABLES_SIZE, HIGH_MEMORY, MP_TABLE};

/// What a range of the memory map is. Values are those of E820 and of PVH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Memory to use.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables: to be used once they are read.
    Acpi = 3,
}

/// A range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: E820Kind,
}

/// Ends of the ranges of low memory, and what they are. The rest of base memory above the MP table
/// stays reserved up to 1 MiB, as on any PC, except for the ACPI tables.
const LOW_RANGES: [(u64, E820Kind); 5] = [
    (MP_TABLE.0, E820Kind::Ram),
    (ACPI_TABLES.0, E820Kind::Reserved),
    (ACPI_TABLES.0 + ACPI_TABLES_SIZE, E820Kind::Acpi),
    (HIGH_MEMORY.0, E820Kind::Reserved),
    (u64::MAX, E820Kind::Ram),
];

/// The memory map of `mem`: sorted, without overlaps, covering all RAM and nothing else.
#[must_use]
pub fn e820(mem: &GuestMemory) -> Vec<E820Entry> {
    let mut entries: Vec<E820Entry> = Vec::new();
    for region in mem.iter() {
        let mut start = region.start_addr().0;
        let region_end = start + region.len();
        for (end, kind) in LOW_RANGES {
            let end = end.min(region_end);
            if start >= end {
                continue;
            }
            match entries.last_mut() {
                Some(last) if last.kind == kind && last.start + last.size == start => {
                    last.size += end - start;
                }
                _ => entries.push(E820Entry {
                    start,
                    size: end - start,
                    kind,
                }),
            }
            start = end;
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn map(regions: &[(u64, u64)]) -> Vec<E820Entry> {
        let ranges: Vec<_> = regions
            .iter()
            .map(|(start, size)| (GuestAddress(*start), *size as usize))
            .collect();
        e820(&GuestMemory::from_ranges(&ranges).unwrap())
    }

    /// If this fails, the kernel overwrites tables before it has read them, or misses memory.
    #[test]
    fn low_and_high_memory() {
        use E820Kind::{Acpi, Ram, Reserved};
        let entries = map(&[(0, 3 * GIB), (4 * GIB, GIB)]);
        let wanted = [
            (0, 0x9_fc00, Ram),
            (0x9_fc00, 0xe_0000, Reserved),
            (0xe_0000, 0xf_0000, Acpi),
            (0xf_0000, 0x10_0000, Reserved),
            (0x10_0000, 3 * GIB, Ram),
            (4 * GIB, 5 * GIB, Ram),
        ]
        .map(|(start, end, kind)| E820Entry {
            start,
            size: end - start,
            kind,
        });
        assert_eq!(entries, wanted);
    }

    /// If this fails, a guest whose memory is in pieces gets a longer map than needed.
    #[test]
    fn adjacent_regions_are_one_range() {
        let whole = map(&[(0, GIB)]);
        assert_eq!(map(&[(0, GIB / 2), (GIB / 2, GIB / 2)]), whole);
        assert_eq!(map(&[(0, 0x8_0000), (0x8_0000, GIB - 0x8_0000)]), whole);
    }

    proptest! {
        /// If this fails, some guest's memory map has overlaps or gaps, or promises memory that
        /// is not there.
        #[test]
        fn covers_ram_and_nothing_else(
            sizes in prop::collection::vec((0_u64..0x200, 1_u64..0x400), 1..8),
            first in 0_u64..0x180,
        ) {
            let mut at = first * 0x1000;
            let mut regions = Vec::new();
            for (gap, size) in sizes {
                at += gap * 0x1000;
                regions.push((at, size * 0x1000));
                at += size * 0x1000;
            }
            let entries = map(&regions);
            for pair in entries.windows(2) {
                prop_assert!(pair[0].start + pair[0].size <= pair[1].start);
            }
            let total: u64 = entries.iter().map(|entry| entry.size).sum();
            prop_assert_eq!(total, regions.iter().map(|region| region.1).sum::<u64>());
            for (start, size) in regions {
                for page in (start..start + size).step_by(0x1000) {
                    let inside = |entry: &&E820Entry| {
                        entry.start <= page && page < entry.start + entry.size
                    };
                    prop_assert_eq!(entries.iter().filter(inside).count(), 1);
                }
            }
        }
    }
}
