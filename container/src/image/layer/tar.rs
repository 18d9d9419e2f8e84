//! Reads a layer's tar: POSIX, PAX and GNU long names; extended attributes as `SCHILY.xattr.`.
//!
//! The `tar` crate knows the header's fields. Its iterator is not used: it takes PAX records apart at
//! line ends, which binary attributes such as `security.capability` may contain, and reads names of any
//! length into memory.

use std::collections::BTreeMap;
use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: u64 = 512;
/// More than this in all the headers before an entry is an attack: Linux allows names of 4 KiB and
/// attributes of 64 KiB.
const MAX_EXTENSIONS: u64 = 1 << 20;
/// Linux takes no longer path, and follows no link to one.
const MAX_PATH: usize = 4096;

/// What a tar says about a file; its content follows in the stream.
#[derive(Debug, Default)]
pub struct Entry {
    /// As it is in the archive: not normalized, perhaps hostile.
    pub path: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with set-id and sticky bits.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Modified: seconds since 1970.
    pub mtime: i64,
    /// Modified: nanoseconds on top.
    pub mtime_nsec: u32,
    /// Bytes of content.
    pub size: u64,
    /// Extended attributes: values by whole names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    #[default]
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of a file that came before.
    HardLink,
    /// A character device: major, minor.
    Character(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A tar being read.
#[derive(Debug)]
pub struct Archive<R> {
    stream: R,
    /// Content of the entry at hand that has not been read.
    left: u64,
    padding: u64,
}

#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<R: Read> Archive<R> {
    /// A tar that begins where `stream` is.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry, or nothing at the end. What was not read of the last one is skipped.
    pub fn entry(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        let mut extended = 0;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return match extended {
                    0 => Ok(None),
                    _ => Err(invalid("the archive ends after an extended header")),
                };
            };
            let (kind, size) = (header.entry_type(), header.entry_size()?);
            let is_extension = matches!(
                kind,
                EntryType::GNULongName
                    | EntryType::GNULongLink
                    | EntryType::XHeader
                    | EntryType::XGlobalHeader
            );
            if !is_extension {
                return Ok(Some(self.begin(&header, kind, extensions)?));
            }
            extended = extension_size(extended, size)?;
            match kind {
                EntryType::GNULongName => extensions.path = Some(self.name(size)?),
                EntryType::GNULongLink => extensions.link = Some(self.name(size)?),
                EntryType::XHeader => extensions.parse(&self.extension(size)?)?,
                // Global headers carry comments, such as git's.
                _ => drop(self.extension(size)?),
            }
        }
    }

    /// What is behind the archive's end, to its last byte: it counts for the digest.
    pub fn drain(&mut self) -> io::Result<()> {
        io::copy(&mut self.stream, &mut io::sink()).map(drop)
    }

    fn begin(
        &mut self,
        header: &Header,
        kind: EntryType,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        let mut path = extensions
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extensions
            .link
            .or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
            .unwrap_or_default();
        if path.len() > MAX_PATH || link.len() > MAX_PATH {
            return Err(invalid(format!(
                "a path or a link of more than {MAX_PATH} bytes, which Linux does not take"
            )));
        }
        let kind = kind_of(header, kind, &path)?;
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let size = match kind {
            Kind::File => extensions.size.unwrap_or(header.entry_size()?),
            // Links may carry the size of what they point to, without its content.
            _ => 0,
        };
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        let old = header.as_old();
        let (mtime, mtime_nsec) = match extensions.mtime {
            Some(time) => time,
            // Base-256 times before 1970 come as two's complement.
            None => (header.mtime().unwrap_or(0).cast_signed(), 0),
        };
        Ok(Entry {
            link,
            path,
            kind,
            mode: (or_zero(&old.mode, header.mode())? & 0o7777) as u16,
            uid: extensions
                .uid
                .map_or_else(|| id(or_zero(&old.uid, header.uid())?), Ok)?,
            gid: extensions
                .gid
                .map_or_else(|| id(or_zero(&old.gid, header.gid())?), Ok)?,
            mtime,
            mtime_nsec,
            size,
            xattrs: extensions.xattrs,
        })
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let mut filled = 0;
        while filled < bytes.len() {
            match self.stream.read(&mut bytes[filled..]) {
                // Some tars lack the two empty blocks at the end.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                u32::from(if (148..156).contains(&at) {
                    b' '
                } else {
                    *byte
                })
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(invalid("a header's checksum is wrong: this is no tar"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        let mut data = Vec::new();
        self.by_ref().read_to_end(&mut data)?;
        match data.len() as u64 == size {
            true => Ok(data),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn name(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let mut name = self.extension(size)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn skip(&mut self) -> io::Result<()> {
        let wanted = self
            .left
            .checked_add(self.padding)
            .ok_or_else(|| invalid("an entry larger than any file"))?;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.stream.by_ref().take(wanted), &mut io::sink())?;
        match skipped == wanted {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The content of the entry at hand.
impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.by_ref().take(self.left).read(buffer)?;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Extensions {
    /// Takes what PAX records say: `LENGTH KEY=VALUE\n`, the length with all of that.
    fn parse(&mut self, mut records: &[u8]) -> io::Result<()> {
        while !records.is_empty() && records[0] != 0 {
            let (key, value, rest) = record(records)
                .ok_or_else(|| invalid("a PAX header that does not follow the format"))?;
            records = rest;
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number(value)?),
                b"uid" => self.uid = Some(id(number(value)?)?),
                b"gid" => self.gid = Some(id(number(value)?)?),
                b"mtime" => self.mtime = Some(time(value)?),
                _ if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.insert(name.to_vec(), value.to_vec());
                    }
                }
            }
        }
        Ok(())
    }
}

/// What all headers before an entry have by now, with one more of `size` bytes.
fn extension_size(before: u64, size: u64) -> io::Result<u64> {
    let all = before.saturating_add(size).saturating_add(BLOCK);
    match all <= MAX_EXTENSIONS {
        true => Ok(all),
        false => Err(invalid(format!(
            "extended headers of {all} bytes before one entry; at most {MAX_EXTENSIONS} are taken"
        ))),
    }
}

fn kind_of(header: &Header, kind: EntryType, path: &[u8]) -> io::Result<Kind> {
    let device = || -> io::Result<(u32, u32)> {
        Ok((
            header.device_major()?.unwrap_or(0),
            header.device_minor()?.unwrap_or(0),
        ))
    };
    Ok(match kind {
        // Old tars have directories only by the slash at the name's end.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Char => device().map(|(major, minor)| Kind::Character(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| Kind::Block(major, minor))?,
        EntryType::Fifo => Kind::Fifo,
        EntryType::GNUSparse => return Err(sparse()),
        other => {
            return Err(invalid(format!(
                "{:?} has the unknown type {:?}",
                String::from_utf8_lossy(path),
                char::from(other.as_byte())
            )));
        }
    })
}

/// A header's number; an empty field is 0, as tar(1) and Go have it.
fn or_zero<T: Default>(field: &[u8], number: io::Result<T>) -> io::Result<T> {
    match field.iter().all(|byte| matches!(byte, 0 | b' ')) {
        true => Ok(T::default()),
        false => number,
    }
}

fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let body = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &records[length..]))
}

fn number(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("a PAX header with a number that is none"))
}

fn id(number: u64) -> io::Result<u32> {
    u32::try_from(number).map_err(|_| invalid(format!("user or group {number} is beyond 32 bits")))
}

/// Decimal seconds with a fraction, perhaps negative, rounded down to nanoseconds.
fn time(text: &[u8]) -> io::Result<(i64, u32)> {
    let wrong = || invalid("a PAX header with a time that is none");
    let text = std::str::from_utf8(text).map_err(|_| wrong())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| wrong())?;
    if nanoseconds > 0 && whole.starts_with('-') {
        return Ok((seconds.saturating_sub(1), 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

fn sparse() -> io::Error {
    invalid(
        "a sparse file in tar's GNU form, which no image builder writes; repack without --sparse",
    )
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
