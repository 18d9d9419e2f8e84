//! What is shared, as the command line has it.

use std::path::PathBuf;
use std::str::FromStr;

/// A directory that the guest gets to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The directory.
    pub path: PathBuf,
    /// Its name in the root of what the guest mounts; without one it is that root.
    pub name: Option<String>,
    /// The guest may not write.
    pub ro: bool,
}

/// What the guest may leave on the host beside files and directories, in all that is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Rights {
    /// Keep set-user-ID and set-group-ID bits and file capabilities that the guest gives to programs.
    /// Warning: whoever on the host can reach such a program becomes the user whose it is
    #[arg(long)]
    pub suid: bool,
    /// Let the guest make device nodes. Warning: they are the host's devices for whoever on the host
    /// can reach them
    #[arg(long)]
    pub dev: bool,
}

/// The text is no directory's options.
#[derive(Debug, thiserror::Error)]
#[error("expected [name=NAME,][ro,]path=DIR")]
pub struct ShareError;

impl Share {
    /// The directory of the root that it is in, if it is in one, and its name there.
    pub fn place(&self) -> Option<(Option<&str>, &str)> {
        let name = self.name.as_deref()?;
        Some(match name.split_once('/') {
            Some((holder, name)) => (Some(holder), name),
            None => (None, name),
        })
    }
}

impl FromStr for Share {
    type Err = ShareError;

    /// Reads a directory's options; the path is the last and may have commas in it.
    fn from_str(text: &str) -> Result<Self, ShareError> {
        let (mut ro, mut name, mut rest) = (false, None, text);
        loop {
            if let Some(path) = rest.strip_prefix("path=") {
                return Ok(Self {
                    path: PathBuf::from(path),
                    name,
                    ro,
                });
            }
            let (option, others) = rest.split_once(',').ok_or(ShareError)?;
            match option.split_once('=') {
                None if option == "ro" => ro = true,
                Some(("name", text)) => name = Some(text.to_owned()),
                _ => return Err(ShareError),
            }
            rest = others;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a directory with a comma in its name is not shared, or one that should be
    /// read-only is writable.
    #[test]
    fn options_come_before_the_path() {
        let share = |path: &str, name: Option<&str>, ro| Share {
            path: path.into(),
            name: name.map(str::to_owned),
            ro,
        };
        let read = |text: &str| text.parse::<Share>().unwrap();
        assert_eq!(read("path=/a,ro"), share("/a,ro", None, false));
        assert_eq!(read("ro,path=/a"), share("/a", None, true));
        assert_eq!(read("name=n,ro,path=/a=b"), share("/a=b", Some("n"), true));
        for text in ["", "ro", "/a", "rw,path=/a", "tag=t,path=/a"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }
}
