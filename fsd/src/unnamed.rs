//! Files without a name, which a guest makes by O_TMPFILE: a file system of its own beside the one that has
//! all names, with numbers that the other never gives.
//!
//! It knows each file by its descriptor. A file that gets a name has it, and a number, in the other file
//! system; here it stays for as long as the guest knows it from before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{
    AtFlags, FallocateFlags, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, Uid, chownat, fallocate, fchmod, ftruncate, futimens, openat, seek,
};
use rustix::io::Errno;
use virtiofsd::filesystem::{
    Context, Entry, FileSystem, GetxattrReply, ListxattrReply, OpenOptions, SerializableFileSystem,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::read_dir::ReadDir;
use virtiofsd::soft_idmap::Id;

/// Numbers from here on are of files without a name; the other file system counts from 1.
const FIRST: u64 = 1 << 63;
/// What of a mode such a file may have: programs that run as their owner have a name.
const MODE: u32 = 0o777;

/// Whether a number is that of a file without a name.
pub fn has(inode: u64) -> bool {
    inode >= FIRST
}

/// All of them; clones have the same.
#[derive(Clone, Debug)]
pub struct Unnamed {
    known: Arc<Mutex<Known>>,
    /// As many at most: each is a descriptor.
    most: usize,
    /// All files belong to the one user whom the process has.
    is_single_user: bool,
    timeout: Duration,
}

#[derive(Debug, Default)]
struct Known {
    made: u64,
    files: BTreeMap<u64, Arc<File>>,
}

impl Unnamed {
    /// None yet.
    pub fn new(most: usize, is_single_user: bool, timeout: Duration) -> Self {
        Self {
            known: Arc::default(),
            most,
            is_single_user,
            timeout,
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        self.known().files.clear();
    }

    /// The file of a number.
    pub fn file(&self, inode: u64) -> io::Result<Arc<File>> {
        let known = self.known();
        known.files.get(&inode).cloned().ok_or(Errno::BADF.into())
    }

    /// Makes one in a directory, for the user who asks.
    pub fn make(&self, ctx: Context, directory: &File, mode: u32, flags: u32) -> io::Result<Entry> {
        if self.known().files.len() >= self.most {
            return Err(Errno::NFILE.into());
        }
        let mut how = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        how |= OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let file = File::from(openat(directory, ".", how, Mode::empty())?);
        // Of a directory with a set-group-ID bit it has got the group already.
        let is_given = directory.metadata()?.mode() & libc::S_ISGID != 0;
        let gid = (!is_given).then(|| ctx.gid.into_inner());
        self.give(&file, Some(ctx.uid.into_inner()), gid)?;
        fchmod(&file, Mode::from_raw_mode(mode & MODE))?;
        let attr = attr_of(&file)?;
        let mut known = self.known();
        known.made += 1;
        let inode = FIRST + known.made;
        known.files.insert(inode, Arc::new(file));
        Ok(Entry {
            inode,
            generation: 0,
            attr,
            attr_timeout: self.timeout,
            entry_timeout: self.timeout,
        })
    }

    fn give(&self, file: &File, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        if self.is_single_user {
            return Ok(());
        }
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        Ok(chownat(file, "", uid, gid, AtFlags::EMPTY_PATH)?)
    }
}

fn attr_of(file: &File) -> io::Result<Attr> {
    let about = file.metadata()?;
    let seconds = |time: i64| u64::from_ne_bytes(time.to_ne_bytes());
    let part = |nanoseconds: i64| u32::try_from(nanoseconds).unwrap_or(0);
    Ok(Attr {
        ino: about.ino(),
        size: about.size(),
        blocks: about.blocks(),
        atime: seconds(about.atime()),
        mtime: seconds(about.mtime()),
        ctime: seconds(about.ctime()),
        atimensec: part(about.atime_nsec()),
        mtimensec: part(about.mtime_nsec()),
        ctimensec: part(about.ctime_nsec()),
        mode: about.mode(),
        nlink: u32::try_from(about.nlink()).unwrap_or(u32::MAX),
        uid: about.uid().into(),
        gid: about.gid().into(),
        rdev: 0,
        blksize: u32::try_from(about.blksize()).unwrap_or(u32::MAX),
        flags: 0,
    })
}

/// One of the times of a file, by what the guest said of it.
fn time(valid: SetattrValid, (now, set): (SetattrValid, SetattrValid), at: (u64, u32)) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    if valid.contains(now) {
        special(UTIME_NOW)
    } else if valid.contains(set) {
        Timespec {
            tv_sec: i64::from_ne_bytes(at.0.to_ne_bytes()),
            tv_nsec: at.1.into(),
        }
    } else {
        special(UTIME_OMIT)
    }
}

impl FileSystem for Unnamed {
    type Inode = u64;
    type Handle = u64;
    type DirIter = ReadDir<Vec<u8>>;

    // Once given, a number has no other uses: the guest forgets it once and for all.
    fn forget(&self, _: Context, inode: u64, _: u64) {
        self.known().files.remove(&inode);
    }

    fn getattr(&self, _: Context, inode: u64, _: Option<u64>) -> io::Result<(Attr, Duration)> {
        let attr = attr_of(&*self.file(inode)?)?;
        Ok((attr, self.timeout))
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: u64,
        attr: SetattrIn,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        let file = self.file(inode)?;
        if valid.contains(SetattrValid::MODE) {
            fchmod(&*file, Mode::from_raw_mode(attr.mode & MODE))?;
        }
        let uid = valid.contains(SetattrValid::UID);
        let gid = valid.contains(SetattrValid::GID);
        if uid || gid {
            let uid = uid.then(|| attr.uid.into_inner());
            self.give(&file, uid, gid.then(|| attr.gid.into_inner()))?;
        }
        if valid.contains(SetattrValid::SIZE) {
            ftruncate(&*file, attr.size)?;
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let accessed = (SetattrValid::ATIME_NOW, SetattrValid::ATIME);
            let changed = (SetattrValid::MTIME_NOW, SetattrValid::MTIME);
            let times = Timestamps {
                last_access: time(valid, accessed, (attr.atime, attr.atimensec)),
                last_modification: time(valid, changed, (attr.mtime, attr.mtimensec)),
            };
            futimens(&*file, &times)?;
        }
        self.getattr(ctx, inode, handle)
    }

    fn open(
        &self,
        _: Context,
        inode: u64,
        _: bool,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let file = self.file(inode)?;
        if OFlags::from_bits_retain(flags).contains(OFlags::TRUNC) {
            ftruncate(&*file, 0)?;
        }
        Ok((None, OpenOptions::empty()))
    }

    fn release(
        &self,
        _: Context,
        _: u64,
        _: u32,
        _: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        _: Context,
        inode: u64,
        _: u64,
        mut to: W,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        to.read_from_file_at(&*self.file(inode)?, size as usize, offset, None)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        _: Context,
        inode: u64,
        _: u64,
        mut from: R,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: bool,
        _: bool,
        _: u32,
    ) -> io::Result<usize> {
        // Nobody but the guest writes to it, which knows where it ends.
        from.write_to_file_at(&*self.file(inode)?, size as usize, offset, None)
    }

    fn flush(&self, _: Context, _: u64, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn fsync(&self, _: Context, inode: u64, datasync: bool, _: u64) -> io::Result<()> {
        let file = self.file(inode)?;
        match datasync {
            true => file.sync_data(),
            false => file.sync_all(),
        }
    }

    fn fallocate(
        &self,
        _: Context,
        inode: u64,
        _: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let mode = FallocateFlags::from_bits_retain(mode);
        Ok(fallocate(&*self.file(inode)?, mode, offset, length)?)
    }

    fn lseek(&self, _: Context, inode: u64, _: u64, offset: u64, whence: u32) -> io::Result<u64> {
        // The rest is the guest's own affair.
        let to = match libc::c_int::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(seek(&*self.file(inode)?, to)?)
    }

    fn access(&self, _: Context, _: u64, _: u32) -> io::Result<()> {
        Ok(())
    }

    // Attributes come with a name.
    fn getxattr(
        &self,
        _: Context,
        _: u64,
        _: &std::ffi::CStr,
        _: u32,
    ) -> io::Result<GetxattrReply> {
        Err(Errno::NODATA.into())
    }

    fn listxattr(&self, _: Context, _: u64, size: u32) -> io::Result<ListxattrReply> {
        Ok(match size {
            0 => ListxattrReply::Count(0),
            _ => ListxattrReply::Names(Vec::new()),
        })
    }

    fn setxattr(
        &self,
        _: Context,
        _: u64,
        _: &std::ffi::CStr,
        _: &[u8],
        _: u32,
        _: SetxattrFlags,
    ) -> io::Result<()> {
        Err(Errno::OPNOTSUPP.into())
    }

    fn removexattr(&self, _: Context, _: u64, _: &std::ffi::CStr) -> io::Result<()> {
        Err(Errno::NODATA.into())
    }

    // The guest's kernel copies by itself then.
    fn copyfilerange(
        &self,
        _: Context,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
        _: u64,
    ) -> io::Result<usize> {
        Err(Errno::XDEV.into())
    }
}

/// Nobody migrates it: what the trait does by itself, which is to refuse.
impl SerializableFileSystem for Unnamed {}
