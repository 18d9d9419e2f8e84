//! Device nodes: opened by trying, and what is in the way where that fails.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::Finding;
use super::procfs::{self, CAP_NET_ADMIN};

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
}

/// Why `path` cannot be opened, and the command that mends it; `module` is the kernel module that
/// brings the device.
pub fn obstacle(path: &Path, module: &str, error: &io::Error) -> Finding {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => Finding::missing(format!("{shown} is not there"))
            .mended_by(format!("sudo modprobe {module}")),
        io::ErrorKind::PermissionDenied => {
            let finding = Finding::missing(format!("no permission to open {shown}"));
            finding.mended_by(permission_mend(path))
        }
        // The node is there, the driver behind it not.
        _ if [Some(libc::ENODEV), Some(libc::ENXIO)].contains(&error.raw_os_error()) => {
            Finding::missing(format!("nothing answers at {shown}"))
                .mended_by(format!("sudo modprobe {module}"))
        }
        _ => Finding::missing(format!("cannot open {shown}: {error}")),
    }
}

/// The command that lets this user open the device: joining its group where that has access.
fn permission_mend(path: &Path) -> String {
    let group = fs::metadata(path)
        .ok()
        .filter(|meta| meta.mode() & 0o060 == 0o060 && meta.gid() != 0)
        .and_then(|meta| group_name(&fs::read_to_string("/etc/group").ok()?, meta.gid()));
    match group {
        Some(group) => format!("sudo usermod -aG {group} $USER && exec newgrp {group}"),
        None => format!("sudo setfacl -m u:$USER:rw {}", path.display()),
    }
}

/// The name of a group in the text of `/etc/group`.
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

/// Whether a device of the kernel's vhost can be opened.
pub fn vhost(path: &'static str, module: &str) -> Finding {
    match open(Path::new(path)) {
        Ok(_) => Finding::ok(path),
        Err(error) => obstacle(Path::new(path), module, &error),
    }
}

/// Whether taps can be opened, carry the vnet header, and can be made by this user.
pub fn tun(path: &Path) -> Finding {
    let file = match open(path) {
        Ok(file) => file,
        Err(error) => return obstacle(path, "tun", &error),
    };
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int to the place it is given, which outlives the
    // call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETFEATURES, &mut features) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Finding::missing(format!("{} is no tun device: {error}", path.display()));
    }
    judge_tun(path, features, procfs::has_capability(CAP_NET_ADMIN))
}

fn judge_tun(path: &Path, features: libc::c_uint, may_create: bool) -> Finding {
    let shown = path.display();
    if features & libc::IFF_VNET_HDR.cast_unsigned() == 0 {
        return Finding::limited(format!("{shown}, without the vnet header: no offloads"));
    }
    if !may_create {
        return Finding::limited(format!("{shown}, but only root makes taps"))
            .mended_by("sudo ip tuntap add tap0 mode tap user $USER vnet_hdr");
    }
    Finding::ok(format!("{shown}, with the vnet header"))
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    /// If this fails, the user is sent the wrong way: to load a module where a permission is
    /// missing, or the other way round.
    #[test]
    fn each_obstacle_has_its_own_command() {
        let path = Path::new("/dev/null");
        let finding = |code| obstacle(path, "kvm_amd", &io::Error::from_raw_os_error(code));
        for code in [libc::ENOENT, libc::ENODEV, libc::ENXIO] {
            assert_eq!(
                finding(code).mend.as_deref(),
                Some("sudo modprobe kvm_amd"),
                "{code}"
            );
        }
        // /dev/null belongs to root's group: joining that is no way.
        let denied = finding(libc::EACCES);
        assert!(denied.detail.contains("no permission"), "{denied:?}");
        assert_eq!(
            denied.mend.as_deref(),
            Some("sudo setfacl -m u:$USER:rw /dev/null")
        );
        assert_eq!(finding(libc::EBUSY).mend, None);
    }

    /// If this fails, the group offered is not the device's.
    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nkvm:x:104:me\nbroken\n";
        assert_eq!(group_name(groups, 104).as_deref(), Some("kvm"));
        assert_eq!(group_name(groups, 5), None);
    }

    /// If this fails, networking is called good where taps lack offloads or cannot be made.
    #[test]
    fn taps_need_the_vnet_header_and_the_right_to_make_them() {
        let path = Path::new("/dev/net/tun");
        assert_eq!(judge_tun(path, 0x4000, true).state, State::Ok);
        assert!(
            judge_tun(path, 0x4000, false)
                .mend
                .unwrap()
                .contains("ip tuntap")
        );
        assert_eq!(judge_tun(path, 0, true).state, State::Limited);
        assert_eq!(tun(Path::new("/dev/null")).state, State::Missing);
        assert_eq!(tun(Path::new("/nonexistent")).state, State::Missing);
    }
}
