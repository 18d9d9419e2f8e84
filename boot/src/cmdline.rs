//! The kernel command line.

use std::fmt;

use thiserror::Error;

/// A kernel command line with a bound.
///
/// Linux takes what follows a word `--` as arguments for init. Parameters that are appended go
/// before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    kernel: String,
    init: Option<String>,
    max: usize,
}

/// What is wrong with a command line.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CommandLineError {
    /// It is longer than the kernel takes.
    #[error("the kernel command line has {length} bytes, the kernel takes at most {max}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// It has a character that is not printable ASCII.
    #[error("the kernel command line has the character {character:?} at byte {position}")]
    Character {
        /// The character.
        character: char,
        /// Its position in bytes.
        position: usize,
    },
}

impl CommandLine {
    /// Takes what the user asked for. `max` is the bound in bytes without the NUL, see
    /// [`crate::Kernel::command_line_max`].
    ///
    /// # Errors
    /// If it is longer than `max` or has anything but printable ASCII: the kernel takes some bytes
    /// of other scripts for spaces.
    pub fn new(text: &str, max: usize) -> Result<Self, CommandLineError> {
        check_characters(text)?;
        let text = text.trim_matches(' ');
        let separator = words(text).find(|(_, word)| *word == "--");
        let line = match separator {
            Some((position, _)) => Self {
                kernel: text[..position].trim_end_matches(' ').to_owned(),
                init: Some(text[position + 2..].trim_start_matches(' ').to_owned()),
                max,
            },
            None => Self {
                kernel: text.to_owned(),
                init: None,
                max,
            },
        };
        line.check_length()?;
        Ok(line)
    }

    /// Appends parameters for the kernel, before the arguments for init.
    ///
    /// # Errors
    /// As [`Self::new`]; the command line is then as it was.
    pub fn append(&mut self, parameters: &str) -> Result<(), CommandLineError> {
        check_characters(parameters)?;
        let before = self.kernel.len();
        if before > 0 {
            self.kernel.push(' ');
        }
        self.kernel.push_str(parameters);
        self.check_length()
            .inspect_err(|_| self.kernel.truncate(before))
    }

    fn check_length(&self) -> Result<(), CommandLineError> {
        let length = self.to_string().len();
        if length > self.max {
            let max = self.max;
            return Err(CommandLineError::TooLong { length, max });
        }
        Ok(())
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kernel)?;
        match &self.init {
            Some(init) if self.kernel.is_empty() => write!(f, "-- {init}"),
            Some(init) => write!(f, " -- {init}"),
            None => Ok(()),
        }
    }
}

fn check_characters(text: &str) -> Result<(), CommandLineError> {
    match text.char_indices().find(|(_, c)| !matches!(c, ' '..='~')) {
        Some((position, character)) => Err(CommandLineError::Character {
            character,
            position,
        }),
        None => Ok(()),
    }
}

/// The words of a command line with their positions. A space in double quotes ends no word.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut quoted = false;
    let mut position = 0;
    text.split(move |c| {
        quoted ^= c == '"';
        c == ' ' && !quoted
    })
    .map(move |word| {
        let start = position;
        position += word.len() + 1;
        (start, word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> CommandLine {
        CommandLine::new(text, 2047).unwrap()
    }

    /// If this fails, what the monitor adds becomes an argument of the guest's init.
    #[test]
    fn appends_before_init_arguments() {
        for (text, wanted) in [
            ("", "x=1"),
            ("quiet", "quiet x=1"),
            ("quiet -- a b", "quiet x=1 -- a b"),
            ("-- a", "x=1 -- a"),
            ("quiet --", "quiet x=1 -- "),
            ("a=\"b -- c\" d", "a=\"b -- c\" d x=1"),
            ("a=-- b", "a=-- b x=1"),
            ("  a   b  ", "a   b x=1"),
            ("a -- b -- c", "a x=1 -- b -- c"),
        ] {
            let mut line = line(text);
            line.append("x=1").unwrap();
            assert_eq!(line.to_string(), wanted, "{text}");
        }
    }

    /// If this fails, the kernel cuts the command line off without a word.
    #[test]
    fn is_bounded() {
        let mut line = CommandLine::new("12345", 8).unwrap();
        line.append("12").unwrap();
        let error = line.append("3").unwrap_err();
        assert_eq!(error, CommandLineError::TooLong { length: 10, max: 8 });
        assert_eq!(line.to_string(), "12345 12");
        assert!(CommandLine::new("123456789", 8).is_err());
        assert!(CommandLine::new("1234 -- 6", 8).is_err());
    }

    /// If this fails, a command line is cut off at a NUL or split at a character the kernel takes
    /// for a space.
    #[test]
    fn refuses_characters() {
        for (text, character) in [("a\0b", '\0'), ("a\nb", '\n'), ("a\tb", '\t'), ("aàb", 'à')] {
            let position = 1;
            let error = CommandLineError::Character {
                character,
                position,
            };
            assert_eq!(CommandLine::new(text, 100), Err(error));
        }
        assert!(line("a").append("\x7f").is_err());
    }
}
