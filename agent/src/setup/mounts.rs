//! A container's view of the file system: made in its own mount namespace, after its root has become
//! the root, so that every path is looked up as the container does. What the guest has stays in reach
//! as the working directory until all is mounted.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, fchdir, pivot_root};

use crate::error::{Context, Error, Result};
use crate::setup::options::{Options, propagation};
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

/// The guest's own root while a container's is already the root.
#[derive(Debug)]
pub struct Outside(OwnedFd);

/// Makes `rootfs`, a mount, the root of this mount namespace. The working directory is the guest's.
pub fn enter(spec: &Spec, rootfs: &str) -> Result<Outside> {
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
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let old = open("/", directory, Mode::empty()).context(|| "open the guest's root".into())?;
    // One of this namespace's own: what came with it cannot be moved from within a user namespace.
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(rootfs), rootfs, NONE, bind, NONE)
        .context(|| format!("mount {rootfs} on itself"))?;
    chdir(rootfs).context(|| format!("enter the container's root {rootfs}"))?;
    pivot_root(".", ".").context(|| format!("make {rootfs} the container's root"))?;
    fchdir(&old).context(|| "return to the guest's root".into())?;
    Ok(Outside(old))
}

impl Outside {
    /// Makes the guest's root the working directory.
    pub fn visit(&self) -> Result<()> {
        fchdir(&self.0).context(|| "return to the guest's root".into())
    }

    /// Lets go of the guest's file systems.
    pub fn leave(self) -> Result<()> {
        self.visit()?;
        umount2(".", MntFlags::MNT_DETACH).context(|| "let go of the guest's root".into())?;
        chdir("/").context(|| "enter the container's root".into())
    }

    /// Makes all mounts of the configuration, in its order.
    pub fn mount_all(&self, spec: &Spec) -> Result<()> {
        let is_mapped = spec.has_user_namespace();
        for item in &spec.mounts {
            let what = || format!("mount on {}", item.destination);
            if !item.destination.starts_with('/') || Path::new(&item.destination) == Path::new("/")
            {
                let why = "the destination is no absolute path below the root";
                return Err(Error::invalid(what(), why));
            }
            if item.uid_mappings.is_some() || item.gid_mappings.is_some() {
                return Err(Error::invalid(
                    what(),
                    "mounts with mapped IDs are not supported",
                ));
            }
            if is_mapped && item.kind.as_deref() == Some("sysfs") {
                let mut bind = item.clone();
                bind.kind = Some("bind".into());
                bind.source = Some(SYSFS.into());
                self.mount_one(&bind)?;
            } else {
                self.mount_one(item)?;
            }
        }
        Ok(())
    }

    fn mount_one(&self, item: &Mount) -> Result<()> {
        let options = Options::parse(item.options.as_deref().unwrap_or_default());
        let target = item.destination.as_str();
        let kind = item.kind.as_deref().unwrap_or("none");
        if kind == "bind" || options.bind.is_some() {
            self.bind(item, &options)?;
        } else {
            make_directory(target)?;
            mount_new(
                item,
                &options,
                if kind == "cgroup" { "cgroup2" } else { kind },
            )?;
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

    fn bind(&self, item: &Mount, options: &Options) -> Result<()> {
        let target = item.destination.as_str();
        let source = item.source.as_deref().unwrap_or_default();
        let refuse = || {
            Error::invalid(
                format!("source of the mount on {target}"),
                "no absolute path",
            )
        };
        // Below the working directory.
        let below = source.strip_prefix('/').ok_or_else(refuse)?;
        let below = if below.is_empty() { "." } else { below };
        self.visit()?;
        let about = fs::metadata(below).context(|| format!("find {source} for {target}"))?;
        if about.is_dir() {
            make_directory(target)?;
        } else {
            make_file(target)?;
        }
        let recursive = match options.bind {
            Some(true) | None => MsFlags::MS_REC,
            Some(false) => MsFlags::empty(),
        };
        mount(
            Some(below),
            target,
            NONE,
            MsFlags::MS_BIND | recursive,
            NONE,
        )
        .context(|| format!("mount {source} on {target}"))?;
        if options.set.is_empty() && options.clear.is_empty() {
            return Ok(());
        }
        let flags = options.flags_of_bind(flags_of(target)?);
        mount(
            NONE,
            target,
            NONE,
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags,
            NONE,
        )
        .context(|| format!("set the options of the mount on {target}"))
    }
}

fn mount_new(item: &Mount, options: &Options, kind: &str) -> Result<()> {
    let target = item.destination.as_str();
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

/// A directory to mount on.
fn make_directory(path: &str) -> Result<()> {
    fs::create_dir_all(path).context(|| format!("make the directory {path}"))
}

/// A file to mount on.
pub fn make_file(path: &str) -> Result<()> {
    if Path::new(path).exists() {
        return Ok(());
    }
    if let Some(parent) = Path::new(path).parent() {
        make_directory(&parent.to_string_lossy())?;
    }
    let file = File::options().create(true).append(true).open(path);
    file.context(|| format!("make the file {path}"))?
        .set_permissions(fs::Permissions::from_mode(0o644))
        .context(|| format!("set the mode of {path}"))
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
