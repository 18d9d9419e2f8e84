//! A container's view of the file system: made in its own mount namespace, after its root has become
//! the only one that is in reach, so that every path is looked up as the container does.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, symlink};
use std::path::Path;

use cofferdam_root::RootDir;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, fchdir, pivot_root};
use rustix::fs::OFlags;

use crate::error::{Context, Error, Result};
use crate::setup::options::{Options, propagation};
use crate::setup::sources::{Sources, Tree};
use crate::spec::{Mount, Spec};

const NONE: Option<&str> = None;

/// A sysfs that has nothing mounted in it, for containers with a user namespace.
const SYSFS: &str = "/run/cofferdam/sysfs";

/// Makes what root of a container's user namespace may not: only who owns the network namespace, which is
/// the guest's, mounts a sysfs.
pub fn prepare(spec: &Spec) -> Result<()> {
    let mut kinds = spec.linux.namespaces.iter().flatten();
    if kinds.all(|one| one.kind != "user") || Path::new(SYSFS).exists() {
        return Ok(());
    }
    fs::create_dir_all(SYSFS).context(|| format!("make the directory {SYSFS}"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("sysfs"), SYSFS, Some("sysfs"), flags, NONE)
        .context(|| format!("mount sysfs on {SYSFS}"))
}

/// Makes `rootfs`, a mount, the root of this mount namespace, and lets go of the guest's. Gives what was
/// taken of that for the mounts of the configuration.
pub fn enter(spec: &Spec, rootfs: &str) -> Result<Sources> {
    // What is mounted here never shows in the guest. The other way round is up to the engine.
    let flags = match spec.linux.rootfs_propagation.as_deref() {
        Some(name) => propagation(name)
            .ok_or_else(|| Error::invalid("linux.rootfsPropagation", format!("{name} is none")))?,
        None => MsFlags::MS_PRIVATE,
    };
    let first = if flags.contains(MsFlags::MS_PRIVATE) || flags.contains(MsFlags::MS_UNBINDABLE) {
        MsFlags::MS_PRIVATE
    } else {
        MsFlags::MS_SLAVE
    };
    mount(NONE, "/", NONE, first | MsFlags::MS_REC, NONE)
        .context(|| "detach the container's mounts from the guest's".into())?;
    let sources = Sources::take(spec, SYSFS)?;
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let old = open("/", directory, Mode::empty()).context(|| "open the guest's root".into())?;
    // One of this namespace's own: what came with it cannot be moved from within a user namespace.
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(rootfs), rootfs, NONE, bind, NONE)
        .context(|| format!("mount {rootfs} on itself"))?;
    chdir(rootfs).context(|| format!("enter the container's root {rootfs}"))?;
    pivot_root(".", ".").context(|| format!("make {rootfs} the container's root"))?;
    // It lies on the new root now: whatever leads up to that, by `..`, would end in the old one.
    fchdir(&old).context(|| "return to the guest's root".into())?;
    umount2(".", MntFlags::MNT_DETACH).context(|| "let go of the guest's root".into())?;
    chdir("/").context(|| "enter the container's root".into())?;
    Ok(sources)
}

/// Makes all mounts of the configuration, in its order.
pub fn mount_all(spec: &Spec, root: &RootDir, sources: &mut Sources) -> Result<()> {
    for (number, item) in spec.mounts.iter().enumerate() {
        let what = || format!("mount on {}", item.destination);
        if !item.destination.starts_with('/') || Path::new(&item.destination) == Path::new("/") {
            let why = "the destination is no absolute path below the root";
            return Err(Error::invalid(what(), why));
        }
        if item.uid_mappings.is_some() || item.gid_mappings.is_some() {
            let why = "mounts with mapped IDs are not supported";
            return Err(Error::invalid(what(), why));
        }
        mount_one(item, root, sources.mount(number))?;
    }
    Ok(())
}

/// Mounts `source`, or something new, where the destination leads; that has no links in it then.
fn mount_one(item: &Mount, root: &RootDir, source: Option<Tree>) -> Result<()> {
    let options = Options::of(item);
    let kind = item.kind.as_deref().unwrap_or("none");
    let destination = item.destination.as_str();
    if matches!(kind, "proc" | "sysfs") {
        ordinary(kind, root, destination)?;
    }
    let is_directory = source.as_ref().is_none_or(|tree| tree.is_directory);
    let place = match is_directory {
        true => root.make_directory(destination),
        false => root.make_file(destination),
    };
    let place = place.context(|| format!("make {destination} to mount on"))?;
    let target = place.to_str().ok_or_else(|| {
        let what = format!("mount on {destination}");
        Error::invalid(what, "it leads to a path that is not UTF-8")
    })?;
    match source {
        Some(tree) => attach(tree, target, &options)?,
        None => mount_new(
            item,
            target,
            &options,
            if kind == "cgroup" { "cgroup2" } else { kind },
        )?,
    }
    for flags in &options.propagation {
        mount(NONE, target, NONE, *flags, NONE)
            .context(|| format!("set the propagation of {target}"))?;
    }
    if options.recursive != (0, 0) {
        set_attributes(target, options.recursive)?;
    }
    Ok(())
}

/// Refuses to mount what the kernel makes where a link leads; in runc's words.
fn ordinary(kind: &str, root: &RootDir, destination: &str) -> Result<()> {
    let found = root.find(destination, OFlags::PATH | OFlags::NOFOLLOW);
    let about = found.and_then(|found| File::from(found).metadata());
    if about.is_ok_and(|about| !about.is_dir()) {
        let why = format!("filesystem {kind:?} must be mounted on ordinary directory");
        return Err(Error::invalid(format!("mount on {destination}"), why));
    }
    Ok(())
}

fn attach(tree: Tree, target: &str, options: &Options) -> Result<()> {
    let doing = || format!("mount on {target}");
    let is_directory = fs::metadata(target).context(doing)?.is_dir();
    if is_directory != tree.is_directory {
        let why = match is_directory {
            true => "it is a directory, and what is to be mounted is a file",
            false => "it is a file, and what is to be mounted is a directory",
        };
        return Err(Error::invalid(doing(), why));
    }
    tree.attach(target).context(doing)?;
    if options.set.is_empty() && options.clear.is_empty() {
        return Ok(());
    }
    let flags = options.flags_of_bind(flags_of(target)?) | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(NONE, target, NONE, flags, NONE)
        .context(|| format!("set the options of the mount on {target}"))
}

fn mount_new(item: &Mount, target: &str, options: &Options, kind: &str) -> Result<()> {
    let source = item.source.as_deref().unwrap_or(kind);
    let data = options.data.join(",");
    // What was there is in reach by its descriptor when it is covered.
    let covered = if options.copy_up && kind == "tmpfs" {
        Some(File::open(target).context(|| format!("open {target}"))?)
    } else {
        None
    };
    // Copied into before it is read-only.
    let mut flags = options.flags();
    let late = covered.is_some() && flags.contains(MsFlags::MS_RDONLY);
    if late {
        flags.remove(MsFlags::MS_RDONLY);
    }
    mount(Some(source), target, Some(kind), flags, Some(data.as_str()))
        .context(|| format!("mount {kind} on {target} with options {data:?}"))?;
    if let Some(covered) = covered {
        fchdir(&covered).context(|| format!("enter what {target} was"))?;
        copy_tree(Path::new("."), Path::new(target))
            .context(|| format!("copy what {target} has into its tmpfs"))?;
    }
    if late {
        set_attributes(target, (libc::MOUNT_ATTR_RDONLY, 0))?;
    }
    Ok(())
}

/// What the mount at `target` has, of the flags that a bind can change.
fn flags_of(target: &str) -> Result<MsFlags> {
    let about = statvfs(target)
        .context(|| format!("look at the mount on {target}"))?
        .flags();
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    let set = pairs.iter().filter(|(theirs, _)| about.contains(*theirs));
    Ok(set.map(|(_, ours)| *ours).collect())
}

/// Sets and clears MOUNT_ATTR_* of a mount and all below it.
fn set_attributes(target: &str, (set, clear): (u64, u64)) -> Result<()> {
    let bad = || {
        Error::invalid(
            format!("mount on {target}"),
            "there is a zero byte in its path",
        )
    };
    let path = CString::new(target).map_err(|_| bad())?;
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: path and attributes outlive the call, and the size is that of the attributes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
        .context(|| format!("set the attributes of the mount on {target}"))
}

/// Copies what directories, files and links there are, with owners and modes.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let about = fs::metadata(from)?;
    chown(to, Some(about.uid()), Some(about.gid()))?;
    fs::set_permissions(to, about.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir(&to)?;
            copy_tree(&from, &to)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_file() {
            fs::copy(&from, &to)?;
            let about = entry.metadata()?;
            chown(&to, Some(about.uid()), Some(about.gid()))?;
            fs::set_permissions(&to, about.permissions())?;
        }
    }
    Ok(())
}

/// What is done when all is mounted: what must not be seen, what must not be written, the root.
pub fn restrict(spec: &Spec) -> Result<()> {
    for path in spec.linux.readonly_paths.iter().flatten() {
        absolute("linux.readonlyPaths", path)?;
        make_read_only(path)?;
    }
    for path in spec.linux.masked_paths.iter().flatten() {
        absolute("linux.maskedPaths", path)?;
        mask(path)?;
    }
    if let Some(flags) = spec
        .linux
        .rootfs_propagation
        .as_deref()
        .and_then(propagation)
    {
        mount(NONE, "/", NONE, flags, NONE).context(|| "set the propagation of the root".into())?;
    }
    if spec.root.readonly {
        let flags = flags_of("/")? | MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(NONE, "/", NONE, flags, NONE).context(|| "make the root read-only".into())?;
    }
    Ok(())
}

fn absolute(field: &str, path: &str) -> Result<()> {
    if path.starts_with('/') {
        return Ok(());
    }
    Err(Error::invalid(field, format!("{path} is not absolute")))
}

/// Whether a path that need not be there is not there.
fn is_missing(error: nix::Error) -> bool {
    matches!(error, nix::Error::ENOENT | nix::Error::ENOTDIR)
}

fn make_read_only(path: &str) -> Result<()> {
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    match mount(Some(path), path, NONE, bind, NONE) {
        Err(error) if is_missing(error) => return Ok(()),
        result => result.context(|| format!("mount {path} on itself"))?,
    }
    let flags = flags_of(path)? | MsFlags::MS_RDONLY | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(NONE, path, NONE, flags, NONE).context(|| format!("make {path} read-only"))
}

fn mask(path: &str) -> Result<()> {
    let null = "/dev/null";
    if !fs::metadata(null).is_ok_and(|about| about.file_type().is_char_device()) {
        return Err(Error::invalid(
            "linux.maskedPaths",
            "the container has no device /dev/null",
        ));
    }
    match mount(Some(null), path, NONE, MsFlags::MS_BIND, NONE) {
        Err(nix::Error::ENOTDIR) => {
            let result = mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, NONE);
            match result {
                Err(error) if is_missing(error) => Ok(()),
                result => result.context(|| format!("mask {path}")),
            }
        }
        Err(error) if is_missing(error) => Ok(()),
        result => result.context(|| format!("mask {path}")),
    }
}
