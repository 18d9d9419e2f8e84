//! A file system whose requests name nothing but entries of directories, and leave no programs that
//! run as their owner unless that was allowed.
//!
//! Kernels send names without slashes, and resolve `..` and links themselves; virtiofsd takes their
//! word for it and hands names to the host's kernel as they come. What confines those is the
//! sandbox's root; here is the second wall: one name is one step.
//!
//! File capabilities and device nodes are a matter of the sandbox: without the right to them the process
//! has no capability that they take. Set-ID bits take none, so they are taken out here. As where the host
//! itself takes a bit that somebody may not set, that is no error.

use std::ffi::CStr;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Gid;
use rustix::thread::set_thread_res_gid;
use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::soft_idmap::Id;

use crate::holders::Holders;

/// Refuses names that are paths, takes set-ID bits out of modes, and passes all else on.
pub struct Checked<F> {
    pub fs: Arc<F>,
    /// Directories of the root that hold one share each.
    pub holders: Holders,
    /// Set-ID bits are kept.
    pub set_id: bool,
}

impl<F> Checked<F> {
    /// The mode that a file may have.
    fn mode(&self, mode: u32) -> u32 {
        match self.set_id {
            true => mode,
            false => mode & !(libc::S_ISUID | libc::S_ISGID),
        }
    }
}

impl<F> Clone for Checked<F> {
    fn clone(&self) -> Self {
        Self {
            fs: self.fs.clone(),
            holders: self.holders.clone(),
            set_id: self.set_id,
        }
    }
}

/// The process's group for as long as this lives; without the right to set all set-group-ID bits, those of
/// its group's files can be set.
struct Group;

impl Group {
    fn enter(group: u32) -> Option<Self> {
        let entered = set_thread_res_gid(None::<Gid>, Gid::from_raw(group), None::<Gid>);
        entered.is_ok().then_some(Self)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It is the process's real one, to which there is always a way back.
        let _ = set_thread_res_gid(None::<Gid>, Gid::ROOT, None::<Gid>);
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
            self.fs.$name($($argument),*)
        }
    )*};
}

type Opened<H> = (Option<H>, OpenOptions);
type Created<H> = (Entry, Option<H>, OpenOptions);

impl<F: FileSystem<Inode = u64>> FileSystem for Checked<F> {
    type Inode = F::Inode;
    type Handle = F::Handle;
    type DirIter = F::DirIter;

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        check(name)?;
        let mut found = self.fs.lookup(ctx, parent, name)?;
        self.holders.see(parent, name, &mut found);
        Ok(found)
    }

    delegate! {
        fn symlink(
            ctx: Context, target: &CStr, parent: F::Inode, name: &CStr, extensions: Extensions,
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
    }

    fn mknod(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        check(name)?;
        let mode = self.mode(mode);
        self.fs
            .mknod(ctx, parent, name, mode, rdev, umask, extensions)
    }

    fn create(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Created<F::Handle>> {
        check(name)?;
        let mode = self.mode(mode);
        self.fs
            .create(ctx, parent, name, mode, kill_priv, flags, umask, extensions)
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: u64,
        mut attr: SetattrIn,
        handle: Option<F::Handle>,
        valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        let mut group = None;
        if valid.contains(SetattrValid::MODE) && self.mode(attr.mode) != attr.mode {
            let (about, _) = self.fs.getattr(ctx, inode, None)?;
            if about.mode & libc::S_IFMT != libc::S_IFDIR {
                attr.mode = self.mode(attr.mode);
            } else if attr.mode & libc::S_ISGID != 0 {
                // A directory's only says whose what is made in it is.
                group = Group::enter(about.gid.into_inner());
            }
        }
        let done = self.fs.setattr(ctx, inode, attr, handle, valid);
        drop(group);
        done
    }

    // What names nothing. Not `flush`, which the guest would ask for at each close: the trait's answer is
    // that it is not there, and the guest asks no more. What was written is the host's kernel's by then.
    delegate! {
        fn init(capable: FsOptions) -> io::Result<FsOptions>;
        fn destroy();
        fn forget(ctx: Context, inode: F::Inode, count: u64);
        fn batch_forget(ctx: Context, requests: Vec<(F::Inode, u64)>);
        fn getattr(
            ctx: Context, inode: F::Inode, handle: Option<F::Handle>,
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
