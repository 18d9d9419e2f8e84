//! Text that a guest, an image or a registry chose. A terminal obeys what is in it: it may be told to hide
//! what comes next, to move to another line or to answer as if the user typed. Here it becomes text that
//! is only seen.

use std::fmt::Write;

/// Text in which what a terminal would obey, or what turns the order of letters round, is written as an
/// escape such as `\x1b`. What is without it stays as it is.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        // A String takes all.
        let _ = match letter {
            '\n' => out.write_str("\\n"),
            '\t' => out.write_str("\\t"),
            '\r' => out.write_str("\\r"),
            letter if !is_harmful(letter) => out.write_char(letter),
            letter if letter.is_ascii() => write!(out, "\\x{:02x}", u32::from(letter)),
            letter => write!(out, "\\u{{{:x}}}", u32::from(letter)),
        };
    }
    out
}

/// The same of bytes, those that are no text as escapes, too.
pub fn visible_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(&visible(chunk.valid()));
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// The same of a JSON document, which means the same after it.
pub fn visible_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for letter in json.chars() {
        // Of ASCII, JSON has escaped all but the last.
        let _ = match letter.is_ascii() && letter != '\x7f' || !is_harmful(letter) {
            true => out.write_char(letter),
            false => write!(out, "\\u{:04x}", u32::from(letter)),
        };
    }
    out
}

fn is_harmful(letter: char) -> bool {
    // Beside controls: marks, embeddings, overrides and isolates of direction, and line ends.
    let turns = matches!(
        letter,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    letter.is_control() || turns
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a guest, an image or a registry writes to the user's terminal what it likes.
    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        let title = "\x1b]0;x\x07";
        assert_eq!(visible(title), "\\x1b]0;x\\x07");
        assert_eq!(
            visible("a\r\n\tb\x7f\u{9b}31m"),
            "a\\r\\n\\tb\\x7f\\u{9b}31m"
        );
        assert_eq!(
            visible("a\u{202e}b\u{2066}\u{2028}"),
            "a\\u{202e}b\\u{2066}\\u{2028}"
        );
        assert_eq!(visible_bytes(b"\xc3\xa4\xff\x1b\xc3"), "ä\\xff\\x1b\\xc3");
        for harmless in ["", "plain \\ text", "Füße 漢字 🦀"] {
            assert_eq!(visible(harmless), harmless);
            assert_eq!(visible_bytes(harmless.as_bytes()), harmless);
        }
        for control in (0..0x20).chain(0x7f..0xa0).filter_map(char::from_u32) {
            assert!(!visible(&control.to_string()).contains(char::is_control));
        }
    }

    /// If it fails, programs read something else than what is, or terminals obey JSON.
    #[test]
    fn json_stays_what_it_is() {
        let value = serde_json::json!({"a\u{9b}": ["\x1b\x7f\u{85}\u{202e}", "ä\n", 1]});
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = visible_json(&text);
            assert!(
                !shown.contains(|c: char| is_harmful(c) && c != '\n'),
                "{shown}"
            );
            let read: serde_json::Value = serde_json::from_str(&shown).unwrap();
            assert_eq!(read, value);
        }
    }
}
