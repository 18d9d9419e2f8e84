//! Logs that do not grow for ever: a full file gets the number 1 behind its name, that with the number
//! 1 gets 2, and so on; the oldest is given up.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::json;
use crate::options::LogLimit;

/// A log that is written to.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    limit: LogLimit,
    file: File,
    length: u64,
}

/// The file of a log that was full so many times since.
pub fn older(path: &Path, number: u32) -> PathBuf {
    match number {
        0 => path.to_owned(),
        number => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            name.into()
        }
    }
}

impl LogFile {
    /// Goes on where the log ended.
    pub fn open(path: &Path, limit: LogLimit) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            limit,
            file,
            length,
        })
    }

    /// Begins anew.
    pub fn create(path: &Path, limit: LogLimit) -> io::Result<Self> {
        for number in 0..limit.files {
            match fs::remove_file(older(path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Self::open(path, limit)
    }

    /// Writes a part that stays in one piece.
    pub fn write(&mut self, part: &[u8]) -> io::Result<()> {
        let after = self.length + part.len() as u64;
        if self.length > 0 && self.limit.size.is_some_and(|size| after > size) {
            self.turn()?;
        }
        self.file.write_all(part)?;
        self.length += part.len() as u64;
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        for number in (1..self.limit.files).rev() {
            match fs::rename(older(&self.path, number - 1), older(&self.path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.limit.files < 2 {
            fs::remove_file(&self.path)?;
        }
        *self = Self::open(&self.path, self.limit)?;
        Ok(())
    }
}

/// The lines of a log, each a JSON document, the oldest first, and those that come.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    id: (u64, u64),
    /// Of a line that is not whole yet.
    begun: Vec<u8>,
}

impl Lines {
    /// `None`: there is no log.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let mut oldest = None;
        for number in 0.. {
            match File::open(older(path, number)) {
                Ok(file) => oldest = Some(file),
                // While a file gets its number, nothing has its name for a moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        oldest.map(|file| Self::at(path, file)).transpose()
    }

    /// None of those that there are.
    pub fn at_end(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(io::SeekFrom::End(0))?;
        Self::at(path, file)
    }

    fn at(path: &Path, file: File) -> io::Result<Self> {
        let about = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            id: (about.dev(), about.ino()),
            file: BufReader::new(file),
            begun: Vec::new(),
        })
    }

    /// The next that there is now. One that is no JSON (the host crashed while it was written) is
    /// left out.
    pub fn next_line<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            self.file.read_until(b'\n', &mut self.begun)?;
            if !self.begun.ends_with(b"\n") {
                let Some(newer) = self.newer()? else {
                    return Ok(None);
                };
                // What was written between the two looks was the last.
                if self.file.read_until(b'\n', &mut self.begun)? == 0 {
                    *self = Self::at(&self.path, newer)?;
                }
                continue;
            }
            let line = std::mem::take(&mut self.begun);
            if let Ok(value) = json::from_slice(&line) {
                return Ok(Some(value));
            }
        }
    }

    /// The file that came behind ours; the oldest that there is if ours was given up.
    fn newer(&self) -> io::Result<Option<File>> {
        let mut newer = None;
        for number in 0.. {
            let file = match File::open(older(&self.path, number)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                other => other?,
            };
            let about = file.metadata()?;
            if (about.dev(), about.ino()) == self.id {
                break;
            }
            newer = Some(file);
        }
        Ok(newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let name = format!("cofferdam-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn all(lines: &mut Lines) -> Vec<u32> {
        std::iter::from_fn(|| lines.next_line().unwrap()).collect()
    }

    /// If it fails, a container that prints without end fills the host's disk, or what it printed last
    /// is lost.
    #[test]
    fn a_log_has_so_many_files_of_such_a_size() {
        let dir = Dir::new("ring");
        let path = dir.0.join("log");
        let limit = |size, files| LogLimit { size, files };
        let sizes = || {
            let files = fs::read_dir(&dir.0).unwrap();
            let mut sizes: Vec<_> = files
                .map(|f| f.unwrap())
                .map(|f| {
                    (
                        f.file_name().into_string().unwrap(),
                        f.metadata().unwrap().len(),
                    )
                })
                .collect();
            sizes.sort();
            sizes
        };
        let mut log = LogFile::open(&path, limit(Some(10), 3)).unwrap();
        for number in 0..9 {
            log.write(format!("{number}abc").as_bytes()).unwrap();
        }
        let named = |name: &str, size| (name.to_owned(), size);
        assert_eq!(
            sizes(),
            [named("log", 4), named("log.1", 8), named("log.2", 8)]
        );
        // More than a file takes is in one by itself; who opens it again goes on.
        let mut log = LogFile::open(&path, limit(Some(10), 3)).unwrap();
        log.write(&[b'x'; 50]).unwrap();
        assert_eq!(
            sizes(),
            [named("log", 50), named("log.1", 4), named("log.2", 8)]
        );
        let mut log = LogFile::create(&path, limit(Some(10), 3)).unwrap();
        log.write(b"new").unwrap();
        assert_eq!(sizes(), [named("log", 3)]);
        let mut log = LogFile::open(&path, limit(Some(4), 1)).unwrap();
        log.write(b"er").unwrap();
        assert_eq!(sizes(), [named("log", 2)]);
        let mut log = LogFile::open(&path, limit(None, 1)).unwrap();
        log.write(&[0; 1000]).unwrap();
        assert_eq!(sizes(), [named("log", 1002)]);
    }

    /// If it fails, `logs` leaves lines out, or who follows sees no more once a file is full.
    #[test]
    fn lines_are_read_across_files() {
        let dir = Dir::new("lines");
        let path = dir.0.join("log");
        assert!(Lines::open(&path).unwrap().is_none());
        let limit = LogLimit {
            size: Some(8),
            files: 3,
        };
        let mut log = LogFile::open(&path, limit).unwrap();
        let mut write = |numbers: std::ops::Range<u32>| {
            for number in numbers {
                log.write(format!("{number}\n").as_bytes()).unwrap();
            }
        };
        write(100..104);
        let mut early = Lines::open(&path).unwrap().unwrap();
        assert_eq!(all(&mut early), [100, 101, 102, 103]);
        write(104..107);
        assert_eq!(all(&mut early), [104, 105, 106]);
        assert!(all(&mut early).is_empty());
        // Faster than who follows: he goes on with the oldest that there is.
        write(107..115);
        let kept = [110, 111, 112, 113, 114];
        assert_eq!(all(&mut early), [&[107], &kept[..]].concat());
        let mut late = Lines::open(&path).unwrap().unwrap();
        assert_eq!(all(&mut late), kept);
        fs::write(&path, "{\nnot whole\n7").unwrap();
        assert!(all(&mut late).is_empty());
    }
}
