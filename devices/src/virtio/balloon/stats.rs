//! What a guest says of its memory (virtio 1.2, section 5.5.6.4).

use std::fmt;

use crate::virtio::Buffers;

/// Bytes of an entry: tag (16 bits) and value (64 bits), packed.
const ENTRY: usize = 10;
/// Entries that are looked at; a driver has ten to send.
const MAX_ENTRIES: usize = 64;
/// What the tags mean, from 0 on, and whether the value is in bytes.
const TAGS: [(&str, bool); 10] = [
    ("swapped in", true),
    ("swapped out", true),
    ("major faults", false),
    ("minor faults", false),
    ("free", true),
    ("total", true),
    ("available", true),
    ("caches", true),
    ("huge pages allocated", false),
    ("huge page failures", false),
];

/// A guest's statistics: the value of each tag, where there is one. Any number may be a lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStats([Option<u64>; TAGS.len()]);

impl BalloonStats {
    /// Reads what a driver sent. Unknown tags, and a rest that is no entry, are ignored; of a tag
    /// that comes twice the last value counts.
    pub(super) fn read(buffers: &mut Buffers) -> Self {
        let mut stats = Self::default();
        for _ in 0..MAX_ENTRIES {
            let mut entry = [0; ENTRY];
            if buffers.read(&mut entry) < ENTRY {
                break;
            }
            let [a, b, value @ ..] = entry;
            let tag = usize::from(u16::from_le_bytes([a, b]));
            if let Some(slot) = stats.0.get_mut(tag) {
                *slot = Some(u64::from_le_bytes(value));
            }
        }
        stats
    }

    /// Bytes that nobody uses.
    pub fn free(&self) -> Option<u64> {
        self.0[4]
    }

    /// Bytes that a new program could have.
    pub fn available(&self) -> Option<u64> {
        self.0[6]
    }
}

impl fmt::Display for BalloonStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.0.iter().zip(TAGS);
        let known = known.filter_map(|(value, tag)| Some((((*value)?), tag)));
        for (i, (value, (name, is_bytes))) in known.enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            match is_bytes {
                true => write!(f, "{separator}{name} {}K", value / 1024)?,
                false => write!(f, "{separator}{name} {value}")?,
            }
        }
        Ok(())
    }
}
