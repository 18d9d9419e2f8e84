//! What of a bundle's mounts is the host's: what the guest gets of it is shared with it.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::bundle::{BundleError, file, refuse};
use super::submounts;
use crate::options::Rights;
use crate::vm::storage_path;

/// Something of the host's that is mounted in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
    pub rights: Rights,
}

/// Lets binds come from what the agent mounts, and gives what is to be shared.
pub(super) fn mounts(spec: &mut Spec, dir: &Path) -> Result<Vec<Share>, BundleError> {
    let (mut shares, mut all) = (Vec::new(), Vec::new());
    for mut mount in spec.mounts_mut().take().unwrap_or_default() {
        // As older versions of the specification had it.
        mount.set_destination(Path::new("/").join(mount.destination()));
        let options = mount.options().clone().unwrap_or_default();
        let has = |name: &str| options.iter().any(|option| option == name);
        let is_bind = mount.typ().as_deref() == Some("bind") || has("bind") || has("rbind");
        if !is_bind {
            all.push(mount);
            continue;
        }
        let source = mount.source().clone().unwrap_or_default();
        let source = dir.join(source);
        let source = source.canonicalize().map_err(file("mounts", &source))?;
        if let Some(tmpfs) = shared_memory(&mount, &source) {
            all.push(tmpfs);
            continue;
        }
        let kind = fs::metadata(&source)
            .map_err(file("mounts", &source))?
            .file_type();
        if !kind.is_dir() && !kind.is_file() {
            let what = match kind.is_socket() {
                true => "a socket, whose other end is on another kernel",
                false => "neither a directory nor a regular file",
            };
            return refuse("mounts", format!("{} is {what}", source.display()));
        }
        mount.set_source(Some(storage_path(shares.len())));
        if mount.typ().is_none() {
            mount.set_typ(Some("bind".into()));
        }
        shares.push(Share {
            source: source.clone(),
            target: mount.destination().clone(),
            read_only: has("ro") || has("rro"),
            rights: Rights {
                suid: has("suid") || has("rsuid"),
                dev: has("dev") || has("rdev"),
            },
        });
        let target = mount.destination().clone();
        all.push(mount);
        if !has("rbind") {
            continue;
        }
        let options: Vec<String> = recursive(&options).collect();
        for below in submounts::below(&source).map_err(file("mounts", &source))? {
            let target = target.join(&below);
            all.push(bind(&target, &storage_path(shares.len()), &options));
            shares.push(Share {
                source: source.join(below),
                target,
                read_only: has("rro"),
                rights: Rights {
                    suid: has("rsuid"),
                    dev: has("rdev"),
                },
            });
        }
    }
    spec.set_mounts(Some(all));
    Ok(shares)
}

/// The options of a bind that what is mounted below has, too.
fn recursive(options: &[String]) -> impl Iterator<Item = String> {
    let others = ["ro", "rw", "relatime", "rbind"];
    let of_all = options.iter().filter(|option| option.starts_with('r'));
    of_all
        .filter(move |option| !others.contains(&option.as_str()))
        .cloned()
}

fn bind(target: &Path, source: &Path, options: &[String]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(target.to_owned());
    mount.set_typ(Some("bind".into()));
    mount.set_source(Some(source.to_owned()));
    let bind = std::iter::once("bind".to_owned());
    mount.set_options(Some(bind.chain(options.iter().cloned()).collect()));
    mount
}

/// Shared memory that an engine prepared on the host: in the guest it is the guest's own, of the same
/// size.
fn shared_memory(mount: &Mount, source: &Path) -> Option<Mount> {
    if mount.destination() != Path::new("/dev/shm") {
        return None;
    }
    let about = rustix::fs::statfs(source).ok()?;
    if about.f_type != libc::TMPFS_MAGIC {
        return None;
    }
    let size = about
        .f_blocks
        .saturating_mul(u64::try_from(about.f_bsize).unwrap_or(0));
    let mut tmpfs = Mount::default();
    tmpfs.set_destination("/dev/shm".into());
    tmpfs.set_typ(Some("tmpfs".into()));
    tmpfs.set_source(Some("shm".into()));
    let options = ["nosuid", "nodev", "noexec", "mode=1777"].map(str::to_owned);
    let size = (size > 0).then(|| format!("size={size}"));
    tmpfs.set_options(Some(options.into_iter().chain(size).collect()));
    Some(tmpfs)
}
