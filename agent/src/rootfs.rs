//! What is mounted in the guest for a container before it is set up: its root, and the sources of its
//! binds.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::STORAGE;
use cofferdam_agent_protocol::api::{self, Overlay, Share, Storage, Tmpfs};
use cofferdam_changes::{fill, unpack};
use cofferdam_root::RootDir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::error::{Context, Error, Result};
use crate::grow::grow;

/// Where the agent keeps a container's mounts.
const CONTAINERS: &str = "/run/cofferdam/containers";

/// Where shares of the host are mounted, by tag, for as long as the guest runs.
const SHARES: &str = "/run/cofferdam/shares";

/// How long the kernel may take to find a device.
const DEVICE_PATIENCE: Duration = Duration::from_secs(2);

/// What an image's layers are.
const EROFS: &str = "erofs";

const NONE: Option<&str> = None;

/// The mounts of one container, undone when dropped.
#[derive(Debug)]
pub struct Mounts {
    directory: PathBuf,
    /// In the order they were made.
    targets: Vec<PathBuf>,
    /// The root has an overlay's layers, or is what the host prepared.
    is_overlay: bool,
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for target in self.targets.iter().rev() {
            // What is still in use goes when it no longer is. There may be more than one: the kernel
            // mounts a directory of a share by itself if it is another file system on the host.
            while umount2(target, MntFlags::MNT_DETACH).is_ok() {}
            let _ = fs::remove_dir(target).or_else(|_| fs::remove_file(target));
        }
        // Never what is in directories: they are the host's if one of them is mounted still.
        let _ = fs::remove_dir(self.rootfs());
        let _ = fs::remove_dir(self.writable());
        let _ = fs::remove_dir(&self.directory);
    }
}

impl Mounts {
    /// Mounts all of it.
    pub fn new(id: &str, rootfs: &api::Rootfs, storages: &[Storage]) -> Result<Self> {
        let directory = Path::new(CONTAINERS).join(id);
        let mut mounts = Self {
            directory: directory.clone(),
            targets: Vec::new(),
            is_overlay: matches!(rootfs.kind, Some(api::rootfs::Kind::Overlay(_))),
        };
        make_directory(&directory)?;
        let root = mounts.rootfs();
        make_directory(&root)?;
        match &rootfs.kind {
            Some(api::rootfs::Kind::Overlay(overlay)) => mounts.overlay(overlay)?,
            Some(api::rootfs::Kind::Share(share)) => mounts.bind(&resolve(share)?, share, &root)?,
            Some(api::rootfs::Kind::Block(block)) => {
                mounts.image(&block.device, &block.fstype, &root)?;
            }
            _ => return Err(Error::invalid("rootfs", "there is none")),
        }
        for storage in storages {
            mounts.storage(storage)?;
            if !storage.fill_from.is_empty() {
                let place = &storage.fill_from;
                fill(&target_of(storage)?, &root, place, unpack)
                    .context(|| format!("copy the image's {place} to its volume"))?;
            }
            if let Some(source) = storages.iter().find(|one| one.target == storage.copy_of) {
                let (source, target) = (target_of(source)?, target_of(storage)?);
                fill(&target, &source, "/", unpack)
                    .context(|| format!("copy {} to {}", source.display(), target.display()))?;
            }
        }
        Ok(mounts)
    }

    /// Where the container's root is.
    pub fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// It, to find and make things in it.
    pub fn root(&self) -> Result<RootDir> {
        RootDir::open(&self.rootfs()).context(|| "open the container's root".into())
    }

    /// The upper directory of the overlay; none if there is nothing but images.
    pub fn upper(&self) -> Result<Option<PathBuf>> {
        if !self.is_overlay {
            let why = "it is no overlay, so nobody knows what was changed";
            return Err(Error::invalid("the container's root", why));
        }
        let upper = self.writable().join("upper");
        Ok(upper.exists().then_some(upper))
    }

    /// The directory with what an overlay's own directories are in.
    fn writable(&self) -> PathBuf {
        self.directory.join("writable")
    }

    fn mount(
        &mut self,
        source: &Path,
        target: &Path,
        kind: &str,
        flags: MsFlags,
        options: &str,
    ) -> Result<()> {
        mount(Some(source), target, Some(kind), flags, Some(options)).context(|| {
            let (source, target) = (source.display(), target.display());
            format!("mount {source} on {target} as {kind} with options {options:?}")
        })?;
        self.targets.push(target.to_owned());
        Ok(())
    }

    /// One of the images below an overlay, or the whole root.
    fn image(&mut self, name: &str, kind: &str, target: &Path) -> Result<()> {
        let device = device(name)?;
        make_directory(target)?;
        let direct = device.to_string_lossy().starts_with("/dev/pmem");
        let options = if direct { "dax=always" } else { "" };
        self.mount(&device, target, kind, MsFlags::MS_RDONLY, options)
    }

    fn overlay(&mut self, overlay: &Overlay) -> Result<()> {
        let root = self.rootfs();
        if overlay.lower.is_empty() {
            return Err(Error::invalid("rootfs.overlay.lower", "there is none"));
        }
        if let ([image], None) = (overlay.lower.as_slice(), &overlay.upper) {
            return self.image(image, EROFS, &root);
        }
        let mut lower = Vec::new();
        for (number, image) in overlay.lower.iter().enumerate() {
            let target = self.directory.join(format!("lower{number}"));
            self.image(image, EROFS, &target)?;
            lower.push(target.display().to_string());
        }
        let mut options = format!("lowerdir={}", lower.join(":"));
        let mut flags = MsFlags::empty();
        if let Some(upper) = &overlay.upper {
            let top = self.writable();
            make_directory(&top)?;
            match upper {
                api::overlay::Upper::Tmpfs(tmpfs) => self.tmpfs(tmpfs, &top, flags)?,
                api::overlay::Upper::Disk(name) => {
                    // What is not written stays a hole in the host's file.
                    let options = "noinit_itable";
                    self.mount(&device(name)?, &top, "ext4", MsFlags::MS_NOATIME, options)?;
                }
                _ => return Err(Error::invalid("rootfs.overlay.upper", "of an unknown kind")),
            }
            let (upper, work) = (top.join("upper"), top.join("work"));
            make_upper(&upper, Path::new(lower.first().map_or("/", |first| first)))?;
            make_directory(&work)?;
            options = format!(
                "{options},upperdir={},workdir={}",
                upper.display(),
                work.display()
            );
        } else {
            flags = MsFlags::MS_RDONLY;
        }
        self.mount(Path::new("overlay"), &root, "overlay", flags, &options)
    }

    fn tmpfs(&mut self, tmpfs: &Tmpfs, target: &Path, flags: MsFlags) -> Result<()> {
        let mode = if tmpfs.mode == 0 {
            0o755
        } else {
            tmpfs.mode & 0o7777
        };
        let mut options = format!("mode={mode:o}");
        if tmpfs.size != 0 {
            options = format!("{options},size={}", tmpfs.size);
        }
        self.mount(Path::new("tmpfs"), target, "tmpfs", flags, &options)
    }

    fn bind(&mut self, source: &File, share: &Share, target: &Path) -> Result<()> {
        let from = format!("/proc/self/fd/{}", source.as_raw_fd());
        mount(Some(from.as_str()), target, NONE, MsFlags::MS_BIND, NONE)
            .context(|| format!("mount {} of share {}", share.path, share.tag))?;
        self.targets.push(target.to_owned());
        Ok(())
    }

    fn storage(&mut self, storage: &Storage) -> Result<()> {
        let target = target_of(storage)?;
        let flags = if storage.readonly {
            MsFlags::MS_RDONLY
        } else {
            MsFlags::empty()
        };
        match &storage.kind {
            Some(api::storage::Kind::Share(share)) => {
                let source = resolve(share)?;
                let about = source
                    .metadata()
                    .context(|| format!("look at {}", share.path))?;
                if about.is_dir() {
                    make_directory(&target)?;
                } else {
                    target.parent().map_or(Ok(()), make_directory)?;
                    File::create(&target).context(|| format!("make {}", target.display()))?;
                }
                self.bind(&source, share, &target)?;
                if storage.readonly {
                    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
                    mount(NONE, &target, NONE, flags, NONE)
                        .context(|| format!("make {} read-only", target.display()))?;
                }
                Ok(())
            }
            Some(api::storage::Kind::Block(block)) => {
                make_directory(&target)?;
                let device = device(&block.device)?;
                self.mount(&device, &target, &block.fstype, flags, &block.options)?;
                match block.fstype.as_str() {
                    "ext4" if !storage.readonly => grow(&device, &target),
                    _ => Ok(()),
                }
            }
            Some(api::storage::Kind::Tmpfs(tmpfs)) => {
                make_directory(&target)?;
                self.tmpfs(tmpfs, &target, flags)
            }
            _ => Err(Error::invalid(
                format!("storage {}", storage.target),
                "of an unknown kind",
            )),
        }
    }
}

/// Where a storage goes: below [`STORAGE`], and nowhere else.
fn target_of(storage: &Storage) -> Result<PathBuf> {
    let refuse = || {
        Error::invalid(
            format!("storage target {}", storage.target),
            format!("not below {STORAGE}"),
        )
    };
    let below = Path::new(&storage.target)
        .strip_prefix(STORAGE)
        .map_err(|_| refuse())?;
    let mut steps = below.components().peekable();
    if steps.peek().is_none() || !steps.all(|step| matches!(step, Component::Normal(_))) {
        return Err(refuse());
    }
    Ok(Path::new(STORAGE).join(below))
}

/// The directory of an overlay's own files, with the attributes that the root has in the image.
fn make_upper(upper: &Path, lower: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    if upper.exists() {
        return Ok(());
    }
    make_directory(upper)?;
    let like = || -> std::io::Result<()> {
        let about = fs::metadata(lower)?;
        chown(upper, Some(about.uid()), Some(about.gid()))?;
        fs::set_permissions(upper, fs::Permissions::from_mode(about.mode() & 0o7777))
    };
    like().context(|| format!("make {} as the image's root is", upper.display()))
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context(|| format!("make the directory {}", path.display()))
}

/// What of a share is meant. Links in it lead nowhere else.
fn resolve(share: &Share) -> Result<File> {
    let bad = share.tag.is_empty() || share.tag.contains('/') || share.tag.starts_with('.');
    if bad {
        return Err(Error::invalid(
            format!("share {:?}", share.tag),
            "no name of one",
        ));
    }
    let top = Path::new(SHARES).join(&share.tag);
    if !top.exists() {
        make_directory(&top)?;
        let mounted = mount(
            Some(share.tag.as_str()),
            &top,
            Some("virtiofs"),
            MsFlags::empty(),
            NONE,
        );
        if mounted.is_err() {
            let _ = fs::remove_dir(&top);
        }
        mounted.context(|| format!("mount the share {}", share.tag))?;
    }
    let directory = File::open(&top).context(|| format!("open the share {}", share.tag))?;
    let path = Path::new(&share.path);
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let find = |flags: OFlag| {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&directory, path, how)
    };
    // Who asks for a directory gets the file system that the host has there, not what that covers.
    let found = match find(OFlag::O_DIRECTORY) {
        Err(Errno::ENOTDIR) => find(OFlag::empty()),
        found => found,
    };
    found
        .map(File::from)
        .context(|| format!("find {} in share {}", share.path, share.tag))
}

/// The path of a block device, by its path or serial number.
fn device(name: &str) -> Result<PathBuf> {
    let missing = |error: Errno| -> Result<PathBuf> {
        Err(error).context(|| format!("find the device {name}"))
    };
    let until = Instant::now() + DEVICE_PATIENCE;
    loop {
        if let Some(serial) = name.strip_prefix("serial=") {
            if let Some(path) = by_serial(serial) {
                return Ok(path);
            }
        } else if !name.starts_with("/dev/") || name.contains("..") {
            return Err(Error::invalid(
                format!("device {name:?}"),
                "no path below /dev",
            ));
        } else if Path::new(name).exists() {
            return Ok(name.into());
        }
        if Instant::now() > until {
            return missing(Errno::ENODEV);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn by_serial(serial: &str) -> Option<PathBuf> {
    fs::read_dir("/sys/block")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let found = fs::read_to_string(entry.path().join("serial")).ok()?;
            (found.trim_end() == serial).then(|| Path::new("/dev").join(entry.file_name()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a storage is mounted over something of the guest's.
    #[test]
    fn storages_are_below_their_directory() {
        let target = |text: &str| {
            let mut storage = Storage::new();
            storage.target = text.to_owned();
            target_of(&storage)
        };
        let good = format!("{STORAGE}/a/b");
        assert_eq!(target(&good).unwrap(), Path::new(&good));
        for bad in [
            "",
            "/etc",
            STORAGE,
            &format!("{STORAGE}/../x"),
            "run/cofferdam/storage/x",
        ] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
