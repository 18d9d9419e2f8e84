//! The sandbox: namespaces of its own, the shared directories as the whole file system, and no
//! capability but those that serving them takes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;

use nix::sched::CloneFlags;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsmount, fsopen, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::share::{Rights, Share};

/// Serving files for a guest's users takes these: to own and to open files as they would, and to be
/// them while it makes one.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);
/// To keep set-ID bits when a file is written to, and to give file capabilities.
const SUID: CapabilitySet = CapabilitySet::FSETID.union(CapabilitySet::SETFCAP);
/// To make device nodes.
const DEV: CapabilitySet = CapabilitySet::MKNOD;

/// Private memory and the first pages of programs; in the kernel's core(5), a bit each.
const CORE: &str = "0x31";
/// Descriptors at most, where the host allows so many.
const MAX_FILES: u64 = 1 << 20;
/// Where the new root is mounted until it is the root: a directory that is on every host.
const MOUNT_POINT: &str = "/proc";

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step that the host's kernel refuses.
    #[error("cannot {what}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A directory that cannot be shared.
    #[error("cannot share {path}")]
    Share {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A result of a step says what was tried.
trait Step<T> {
    fn step(self, what: &'static str) -> Result<T, SandboxError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: &'static str) -> Result<T, SandboxError> {
        self.map_err(|error| SandboxError::Step {
            what,
            source: error.into(),
        })
    }
}

/// What a process in the sandbox has from outside.
#[derive(Debug)]
pub struct Sandbox {
    /// Its own `/proc/self/fd`, to open again what it holds: there is no `/proc` inside.
    pub proc_self_fd: fs::File,
    /// Descriptors that it may have.
    pub max_files: u64,
    /// It is root in a user namespace of its own only, and no other user.
    pub is_single_user: bool,
}

/// Puts the process into a sandbox whose root is made of `shares`. It goes on in a child; the parent
/// stays to wait for it, holds nothing, and ends as it ends.
pub fn enter(shares: &[Share], rights: Rights) -> Result<Sandbox, SandboxError> {
    die_with_parent()?;
    leave_guest_out_of_cores()?;
    let max_files = raise_file_limit()?;
    let is_single_user = !rustix::process::geteuid().is_root();
    unshare(is_single_user)?;
    fork()?;
    die_with_parent()?;
    // As a mount of its own, from which no way leads up.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let proc_self_fd = open_tree(CWD, "/proc/self/fd", flags)
        .step("open /proc/self/fd")?
        .into();
    make_root(shares)?;
    drop_privileges(is_single_user, rights)?;
    Ok(Sandbox {
        proc_self_fd,
        max_files,
        is_single_user,
    })
}

/// The process ends with the one that started it, whatever else may keep it.
fn die_with_parent() -> Result<(), SandboxError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step("ask to end with the monitor")
}

/// A core dump has no memory that is shared, which is the guest's.
fn leave_guest_out_of_cores() -> Result<(), SandboxError> {
    match fs::write("/proc/self/coredump_filter", CORE) {
        // A kernel that writes none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.step("leave the guest out of core dumps"),
    }
}

/// As many as a guest may remember files. Root may have more than it was given; others have what they were
/// given.
fn raise_file_limit() -> Result<u64, SandboxError> {
    let files = |count: u64| Rlimit {
        current: Some(count),
        maximum: Some(count),
    };
    if setrlimit(Resource::Nofile, files(MAX_FILES)).is_ok() {
        return Ok(MAX_FILES);
    }
    let given = getrlimit(Resource::Nofile).maximum.unwrap_or(MAX_FILES);
    setrlimit(Resource::Nofile, files(given)).step("raise the limit of open files")?;
    Ok(given)
}

/// Namespaces of its own. Who is not root needs one of users for that, with nobody else in it.
fn unshare(is_single_user: bool) -> Result<(), SandboxError> {
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    if is_single_user {
        namespaces |= CloneFlags::CLONE_NEWUSER;
    }
    nix::sched::unshare(namespaces).step("make namespaces (user namespaces may be off)")?;
    if is_single_user {
        let user = format!("0 {} 1", user.as_raw());
        let group = format!("0 {} 1", group.as_raw());
        fs::write("/proc/self/setgroups", "deny").step("give up supplementary groups")?;
        fs::write("/proc/self/uid_map", user).step("map the user")?;
        fs::write("/proc/self/gid_map", group).step("map the group")?;
    }
    Ok(())
}

/// Goes on in a child, which is the first process of the new PID namespace.
fn fork() -> Result<(), SandboxError> {
    // SAFETY: the process has one thread, so the child may do whatever its parent could.
    let child = match unsafe { nix::unistd::fork() }.step("start a process")? {
        ForkResult::Child => return Ok(()),
        ForkResult::Parent { child } => child,
    };
    // The connection is the child's alone: when the child ends, it hangs up.
    close_all();
    let code = loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => break code,
            Err(nix::errno::Errno::EINTR) => {}
            _ => break 1,
        }
    };
    process::exit(code)
}

/// Closes all descriptors but the standard ones. For a process that has opened none yet, or will
/// use none any more.
pub(crate) fn close_all() {
    // SAFETY: as said, nobody in this process uses a descriptor that is closed here.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}

/// Makes the shared directories the file system of the process, and forgets the host's.
fn make_root(shares: &[Share]) -> Result<(), SandboxError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).step("keep its mounts to itself")?;
    let trees = shares
        .iter()
        .map(|share| {
            tree(share).map_err(|source| SandboxError::Share {
                path: share.path.clone(),
                source,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let root = match (shares, &trees[..]) {
        ([Share { name: None, .. }], [tree]) => {
            attach(tree.as_fd(), CWD, Path::new(MOUNT_POINT)).step("mount the directory")?;
            tree
        }
        _ => &root_of(shares, &trees).step("mount the directories")?,
    };
    rustix::process::fchdir(root).step("enter the new root")?;
    change_root(root.as_fd())?;
    rustix::process::chdir("/").step("enter the new root")
}

/// Makes the working directory, where `root` is mounted, the root, and forgets the one before. An
/// initramfs cannot be forgotten: on a host that has nothing else it is covered, and the process
/// locked in above it, since it keeps neither a way down nor what it takes to change the root again.
fn change_root(root: BorrowedFd<'_>) -> Result<(), SandboxError> {
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH).step("forget the host's files"),
        Err(Errno::INVAL) => {
            attach(root, CWD, Path::new("/")).step("cover the host's files")?;
            rustix::process::chroot(".").step("change the root")
        }
        Err(error) => Err(error).step("change the root"),
    }
}

/// The mounts at and below a directory, to be mounted elsewhere: without devices, set-user-ID
/// programs or programs at all, since nobody here runs any.
fn tree(share: &Share) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, &share.path, flags)?;
    // A single file can only be somewhere in a root, not the root.
    if !is_dir(&tree)? && (share.name.is_none() || !kind_of(&tree)?.is_file()) {
        return Err(Errno::NOTDIR.into());
    }
    let mut attributes = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    if share.ro {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    set_attributes(tree.as_fd(), attributes, libc::AT_RECURSIVE)?;
    Ok(tree)
}

fn kind_of(tree: &OwnedFd) -> io::Result<fs::FileType> {
    Ok(fs::File::from(tree.try_clone()?).metadata()?.file_type())
}

fn is_dir(tree: &OwnedFd) -> io::Result<bool> {
    Ok(kind_of(tree)?.is_dir())
}

/// A read-only directory of the directories, and of single files.
fn root_of(shares: &[Share], trees: &[OwnedFd]) -> io::Result<OwnedFd> {
    let root = empty()?;
    attach(root.as_fd(), CWD, Path::new(MOUNT_POINT))?;
    for (share, tree) in shares.iter().zip(trees) {
        let (holder, name) = share.place().ok_or(Errno::INVAL)?;
        let Some(holder) = holder else {
            put(tree, root.as_fd(), name)?;
            continue;
        };
        rustix::fs::mkdirat(&root, holder, Mode::from_raw_mode(0o755))?;
        let inner = empty()?;
        attach(inner.as_fd(), root.as_fd(), Path::new(holder))?;
        put(tree, inner.as_fd(), name)?;
        set_attributes(inner.as_fd(), libc::MOUNT_ATTR_RDONLY, 0)?;
    }
    set_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY, 0)?;
    Ok(root)
}

/// A file system with nothing in it, mounted nowhere yet.
fn empty() -> io::Result<OwnedFd> {
    let kind = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(kind.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(
        kind.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Mounts a directory or file in another directory.
fn put(tree: &OwnedFd, directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    if is_dir(tree)? {
        rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755))?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))?;
    }
    attach(tree.as_fd(), directory, Path::new(name))
}

fn attach(tree: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(tree, "", to, path, flags)?)
}

/// Adds attributes to a mount: `AT_RECURSIVE` in `flags` means those below it too.
fn set_attributes(mount: BorrowedFd<'_>, set: u64, flags: libc::c_int) -> io::Result<()> {
    /// `struct mount_attr` of the kernel's first version.
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attributes = MountAttr {
        set,
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: the path is a string that ends in a zero, and the structure is of the size said; the
    // kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags | libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Keeps the capabilities that it needs, for good.
fn drop_privileges(is_single_user: bool, rights: Rights) -> Result<(), SandboxError> {
    if !is_single_user {
        // In a user namespace of its own it has given them up already, and may not.
        nix::unistd::setgroups(&[]).step("give up supplementary groups")?;
    }
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // The kernel knows no more.
            Err(Errno::INVAL) => break,
            result => result.step("give up capabilities for good")?,
        }
    }
    rustix::thread::set_no_new_privs(true).step("give up new privileges")?;
    let mut capabilities = CAPABILITIES;
    capabilities.set(SUID, rights.suid);
    capabilities.set(DEV, rights.dev);
    let sets = CapabilitySets {
        effective: capabilities,
        permitted: capabilities,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None::<Pid>, sets).step("give up capabilities")
}
