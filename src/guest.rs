//! The default guest: what `cofferdam boot` boots when nothing is named, and what lies beside it.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{DiskConfig, RootConfig, VmConfig};

/// Names the directory of the default guest, before all other places.
const VARIABLE: &str = "COFFERDAM_GUEST";
const KERNEL: &str = "vmlinux";
const ROOTFS: &str = "rootfs.ext4";

/// The default guest is nowhere.
#[derive(Debug, thiserror::Error)]
#[error(
    "no kernel is named and no default guest is there (looked in {}); 'make setup' in the source \
     tree builds one, or name a kernel with --kernel and a root file system with --rootfs",
    places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub struct NoGuest {
    places: Vec<PathBuf>,
}

/// Fills in the default guest's kernel, if none is named, and its root file system, if there is
/// nothing else that the guest could start from.
pub fn complete(config: &mut VmConfig) -> Result<(), NoGuest> {
    if config.boot.kernel.is_some() {
        return Ok(());
    }
    let places = places();
    let Some(place) = places.iter().find(|place| place.join(KERNEL).exists()) else {
        return Err(NoGuest { places });
    };
    config.boot.kernel = Some(place.join(KERNEL));
    if config.rootfs.is_none() && config.boot.initrd.is_none() {
        let path = place.join(ROOTFS);
        // Read-only, so that any number of VMs may run from it.
        config.rootfs = Some(RootConfig::Disk(DiskConfig {
            path,
            ro: true,
            ..DiskConfig::default()
        }));
    }
    Ok(())
}

/// A file of the default guest's, by its name, if there is one.
pub fn find(name: &str) -> Option<PathBuf> {
    let mut files = places().into_iter().map(|place| place.join(name));
    files.find(|file| file.exists())
}

/// Where a default guest may lie: the variable, beside the program, the user's data, the system's.
fn places() -> Vec<PathBuf> {
    if let Some(place) = env::var_os(VARIABLE) {
        return vec![place.into()];
    }
    let beside = |exe: io::Result<PathBuf>| -> Option<PathBuf> {
        Some(exe.ok()?.parent()?.parent()?.join("share/cofferdam"))
    };
    let data = env::var_os("XDG_DATA_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from);
    let data = data.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".local/share")));
    let places = [
        beside(env::current_exe()),
        data.map(|dir| dir.join("cofferdam")),
        Some("/usr/local/share/cofferdam".into()),
        Some("/usr/share/cofferdam".into()),
    ];
    places.into_iter().flatten().collect()
}
