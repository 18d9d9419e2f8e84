//! Identifiers and names.

use rustix::rand::{GetRandomFlags, getrandom};

const FIRST: [&str; 32] = [
    "able", "brave", "bright", "brisk", "calm", "clear", "deep", "dry", "eager", "fair", "fast",
    "firm", "fresh", "gentle", "grand", "keen", "light", "lucid", "merry", "neat", "noble",
    "prime", "quick", "quiet", "sharp", "sound", "stable", "stout", "swift", "tidy", "warm",
    "wise",
];
const SECOND: [&str; 32] = [
    "anchor",
    "beacon",
    "bollard",
    "bridge",
    "buoy",
    "caisson",
    "canal",
    "channel",
    "compass",
    "crane",
    "dam",
    "delta",
    "dock",
    "dredger",
    "ferry",
    "harbour",
    "jetty",
    "keel",
    "levee",
    "lighthouse",
    "lock",
    "mooring",
    "pier",
    "pile",
    "pontoon",
    "quay",
    "reef",
    "river",
    "sluice",
    "tide",
    "weir",
    "wharf",
];

/// Whether a text can be the name of a container or volume: it is safe as the name of a file, too.
pub fn is_name(text: &str) -> bool {
    let is_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let first = text.chars().next();
    first.is_some_and(|c| c.is_ascii_alphanumeric()) && text.len() <= 200 && text.chars().all(is_ok)
}

/// Whether a text is an identifier: 64 hexadecimal digits.
pub fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A new identifier: 64 hexadecimal digits.
pub fn new_id() -> String {
    random::<32>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A new name, that is not taken.
pub fn new_name(is_taken: impl Fn(&str) -> bool) -> String {
    let mut name = String::new();
    for attempt in 0_u32.. {
        let [a, b] = random::<2>();
        name = format!(
            "{}_{}",
            FIRST[usize::from(a) % 32],
            SECOND[usize::from(b) % 32]
        );
        if attempt > 8 {
            name = format!("{name}{attempt}");
        }
        if !is_taken(&name) {
            break;
        }
    }
    name
}

/// Random bytes; zeros only from a kernel that has none, which none of ours is.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // A few bytes are given whole or not at all.
    let _ = getrandom(&mut bytes, GetRandomFlags::empty());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a name leads out of the directory of containers, or good ones are refused.
    #[test]
    fn names_are_files() {
        for name in ["a", "A-1_b.c", "0"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "-a", "a b", "é", &"a".repeat(201)] {
            assert!(!is_name(name), "{name}");
        }
    }

    /// If it fails, containers without a name collide.
    #[test]
    fn new_names_are_free() {
        let mut asked = 0;
        let name = new_name(|_| false);
        assert!(is_name(&name));
        let counting = std::cell::RefCell::new(&mut asked);
        let name = new_name(|_| {
            **counting.borrow_mut() += 1;
            **counting.borrow() < 20
        });
        assert!(is_name(&name) && asked == 20);
        assert!(is_name(&new_id()) && is_id(&new_id()) && new_id() != new_id());
        assert!(!is_id(&name) && !is_id(&"A".repeat(64)));
    }
}
