//! A file system whose requests name nothing but entries of directories.
//!
//! Kernels send names without slashes, and resolve `..` and links themselves; virtiofsd takes their
//! word for it and hands names to the host's kernel as they come. What confines those is the
//! sandbox's root; here is the second wall: one name is one step.

use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};

/// Refuses names that are paths, and passes all else on.
pub struct Checked<F>(pub Arc<F>);

impl<F> Clone for Checked<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Refuses what is no name of a directory's entry.
pub fn check(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        name if name.contains(&b'/') => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        _ => Ok(()),
    }
}

/// Methods that pass their arguments on, once those listed behind `where` are checked.
macro_rules! delegate {
    ($(
        fn $name:ident $(<$generic:ident: $bound:ident>)? (
            $($argument:ident: $type:ty),* $(,)?
        ) $(-> $result:ty)? $(, where $($checked:ident)+)?;
    )*) => {$(
        fn $name $(<$generic: $bound>)? (&self $(, $argument: $type)*) $(-> $result)? {
            $($(check($checked)?;)+)?
            self.0.$name($($argument),*)
        }
    )*};
}

type Opened<H> = (Option<H>, OpenOptions);
type Created<H> = (Entry, Option<H>, OpenOptions);

impl<F: FileSystem> FileSystem for Checked<F> {
    type Inode = F::Inode;
    type Handle = F::Handle;
    type DirIter = F::DirIter;

    delegate! {
        fn lookup(ctx: Context, parent: F::Inode, name: &CStr) -> io::Result<Entry>, where name;
        fn symlink(
            ctx: Context, target: &CStr, parent: F::Inode, name: &CStr, extensions: Extensions,
        ) -> io::Result<Entry>, where name;
        fn mknod(
            ctx: Context, parent: F::Inode, name: &CStr, mode: u32, rdev: u32, umask: u32,
            extensions: Extensions,
        ) -> io::Result<Entry>, where name;
        fn mkdir(
            ctx: Context, parent: F::Inode, name: &CStr, mode: u32, umask: u32,
            extensions: Extensions,
        ) -> io::Result<Entry>, where name;
        fn unlink(ctx: Context, parent: F::Inode, name: &CStr) -> io::Result<()>, where name;
        fn rmdir(ctx: Context, parent: F::Inode, name: &CStr) -> io::Result<()>, where name;
        fn rename(
            ctx: Context, from: F::Inode, old: &CStr, to: F::Inode, new: &CStr, flags: u32,
        ) -> io::Result<()>, where old new;
        fn link(
            ctx: Context, inode: F::Inode, parent: F::Inode, name: &CStr,
        ) -> io::Result<Entry>, where name;
        fn create(
            ctx: Context, parent: F::Inode, name: &CStr, mode: u32, kill_priv: bool, flags: u32,
            umask: u32, extensions: Extensions,
        ) -> io::Result<Created<F::Handle>>, where name;
    }

    // What names nothing.
    delegate! {
        fn init(capable: FsOptions) -> io::Result<FsOptions>;
        fn destroy();
        fn forget(ctx: Context, inode: F::Inode, count: u64);
        fn batch_forget(ctx: Context, requests: Vec<(F::Inode, u64)>);
        fn getattr(
            ctx: Context, inode: F::Inode, handle: Option<F::Handle>,
        ) -> io::Result<(Attr, Duration)>;
        fn setattr(
            ctx: Context, inode: F::Inode, attr: SetattrIn, handle: Option<F::Handle>,
            valid: SetattrValid,
        ) -> io::Result<(Attr, Duration)>;
        fn readlink(ctx: Context, inode: F::Inode) -> io::Result<Vec<u8>>;
        fn open(
            ctx: Context, inode: F::Inode, kill_priv: bool, flags: u32,
        ) -> io::Result<Opened<F::Handle>>;
        fn read<W: ZeroCopyWriter>(
            ctx: Context, inode: F::Inode, handle: F::Handle, w: W, size: u32, offset: u64,
            lock_owner: Option<u64>, flags: u32,
        ) -> io::Result<usize>;
        fn write<R: ZeroCopyReader>(
            ctx: Context, inode: F::Inode, handle: F::Handle, r: R, size: u32, offset: u64,
            lock_owner: Option<u64>, delayed_write: bool, kill_priv: bool, flags: u32,
        ) -> io::Result<usize>;
        fn flush(
            ctx: Context, inode: F::Inode, handle: F::Handle, lock_owner: u64,
        ) -> io::Result<()>;
        fn fsync(
            ctx: Context, inode: F::Inode, datasync: bool, handle: F::Handle,
        ) -> io::Result<()>;
        fn fallocate(
            ctx: Context, inode: F::Inode, handle: F::Handle, mode: u32, offset: u64, length: u64,
        ) -> io::Result<()>;
        fn release(
            ctx: Context, inode: F::Inode, flags: u32, handle: F::Handle, flush: bool,
            flock_release: bool, lock_owner: Option<u64>,
        ) -> io::Result<()>;
        fn statfs(ctx: Context, inode: F::Inode) -> io::Result<libc::statvfs64>;
        fn setxattr(
            ctx: Context, inode: F::Inode, name: &CStr, value: &[u8], flags: u32,
            extra_flags: SetxattrFlags,
        ) -> io::Result<()>;
        fn getxattr(
            ctx: Context, inode: F::Inode, name: &CStr, size: u32,
        ) -> io::Result<GetxattrReply>;
        fn listxattr(ctx: Context, inode: F::Inode, size: u32) -> io::Result<ListxattrReply>;
        fn removexattr(ctx: Context, inode: F::Inode, name: &CStr) -> io::Result<()>;
        fn opendir(
            ctx: Context, inode: F::Inode, flags: u32,
        ) -> io::Result<Opened<F::Handle>>;
        fn readdir(
            ctx: Context, inode: F::Inode, handle: F::Handle, size: u32, offset: u64,
        ) -> io::Result<F::DirIter>;
        fn fsyncdir(
            ctx: Context, inode: F::Inode, datasync: bool, handle: F::Handle,
        ) -> io::Result<()>;
        fn releasedir(
            ctx: Context, inode: F::Inode, flags: u32, handle: F::Handle,
        ) -> io::Result<()>;
        fn access(ctx: Context, inode: F::Inode, mask: u32) -> io::Result<()>;
        fn lseek(
            ctx: Context, inode: F::Inode, handle: F::Handle, offset: u64, whence: u32,
        ) -> io::Result<u64>;
        fn copyfilerange(
            ctx: Context, inode_in: F::Inode, handle_in: F::Handle, offset_in: u64,
            inode_out: F::Inode, handle_out: F::Handle, offset_out: u64, len: u64, flags: u64,
        ) -> io::Result<usize>;
        fn syncfs(ctx: Context, inode: F::Inode) -> io::Result<()>;
    }
}

/// Nobody migrates it: what the trait does by itself, which is to refuse.
impl<F> SerializableFileSystem for Checked<F> {}
