use proptest::prelude::*;

use super::*;

/// A number where something ends or wraps, or near it, or any.
fn border(other: u64) -> impl Strategy<Value = u64> {
    let most = u64::MAX / SECTOR_SIZE;
    let places = prop_oneof![
        Just(0),
        Just(other),
        Just(most),
        Just(u64::MAX),
        any::<u64>()
    ];
    (places, -3i64..=3).prop_map(|(place, near)| place.wrapping_add_signed(near))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// If it fails, a request reaches past the disk, or the disk's last sectors cannot be reached.
    #[test]
    fn an_extent_is_whole_sectors_of_the_disk(
        // What a file can have.
        capacity in prop_oneof![0..64u64, 0..=u64::MAX / 2 / SECTOR_SIZE],
        sector in border(64),
        from_end in 0..70u64,
        is_near_end in any::<bool>(),
        len in prop_oneof![
            (0..70u64).prop_map(|sectors| sectors * SECTOR_SIZE),
            border(SECTOR_SIZE),
        ],
    ) {
        let sector = if is_near_end { capacity.saturating_sub(from_end) } else { sector };
        let (wide, unit) = (u128::from(sector), u128::from(SECTOR_SIZE));
        let is_there = len.is_multiple_of(SECTOR_SIZE)
            && wide * unit + u128::from(len) <= u128::from(capacity) * unit;
        let expected = is_there.then(|| u64::try_from(wide * unit).unwrap());
        prop_assert_eq!(extent(capacity, sector, len).ok(), expected);
    }
}
