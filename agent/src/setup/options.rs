//! Mount options of the runtime specification, as flags and data of mount(2).

use nix::mount::MsFlags;

use crate::spec::Mount;

/// What the options of one mount say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Flags of the mount.
    pub set: Vec<MsFlags>,
    /// What a bind does not take over from its source.
    pub clear: Vec<MsFlags>,
    /// It is a bind, with what is mounted below if the flag is set.
    pub bind: Option<bool>,
    /// Propagation, to be set afterwards.
    pub propagation: Vec<MsFlags>,
    /// Attributes for all mounts below as well: MOUNT_ATTR_* to set, to clear.
    pub recursive: (u64, u64),
    /// What the directory has is copied into the tmpfs.
    pub copy_up: bool,
    /// All else, which is the file system's.
    pub data: Vec<String>,
}

const FLAGS: &[(&str, MsFlags)] = &[
    ("dirsync", MsFlags::MS_DIRSYNC),
    ("iversion", MsFlags::MS_I_VERSION),
    ("lazytime", MsFlags::MS_LAZYTIME),
    ("mand", MsFlags::MS_MANDLOCK),
    ("noatime", MsFlags::MS_NOATIME),
    ("nodev", MsFlags::MS_NODEV),
    ("nodiratime", MsFlags::MS_NODIRATIME),
    ("noexec", MsFlags::MS_NOEXEC),
    ("nosuid", MsFlags::MS_NOSUID),
    ("nosymfollow", NOSYMFOLLOW),
    ("relatime", MsFlags::MS_RELATIME),
    ("ro", MsFlags::MS_RDONLY),
    ("silent", MsFlags::MS_SILENT),
    ("strictatime", MsFlags::MS_STRICTATIME),
    ("sync", MsFlags::MS_SYNCHRONOUS),
];

const CLEARED: &[(&str, MsFlags)] = &[
    ("async", MsFlags::MS_SYNCHRONOUS),
    ("atime", MsFlags::MS_NOATIME),
    ("dev", MsFlags::MS_NODEV),
    ("diratime", MsFlags::MS_NODIRATIME),
    ("exec", MsFlags::MS_NOEXEC),
    ("loud", MsFlags::MS_SILENT),
    ("noiversion", MsFlags::MS_I_VERSION),
    ("nolazytime", MsFlags::MS_LAZYTIME),
    ("nomand", MsFlags::MS_MANDLOCK),
    ("norelatime", MsFlags::MS_RELATIME),
    ("nostrictatime", MsFlags::MS_STRICTATIME),
    ("rw", MsFlags::MS_RDONLY),
    ("suid", MsFlags::MS_NOSUID),
    ("symfollow", NOSYMFOLLOW),
];

/// MS_NOSYMFOLLOW, which nix does not name.
const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

const PROPAGATION: &[(&str, MsFlags)] = &[
    ("private", MsFlags::MS_PRIVATE),
    ("shared", MsFlags::MS_SHARED),
    ("slave", MsFlags::MS_SLAVE),
    ("unbindable", MsFlags::MS_UNBINDABLE),
];

/// By name: attributes to set, to clear.
const RECURSIVE: &[(&str, u64, u64)] = &[
    ("rro", libc::MOUNT_ATTR_RDONLY, 0),
    ("rrw", 0, libc::MOUNT_ATTR_RDONLY),
    ("rnosuid", libc::MOUNT_ATTR_NOSUID, 0),
    ("rsuid", 0, libc::MOUNT_ATTR_NOSUID),
    ("rnodev", libc::MOUNT_ATTR_NODEV, 0),
    ("rdev", 0, libc::MOUNT_ATTR_NODEV),
    ("rnoexec", libc::MOUNT_ATTR_NOEXEC, 0),
    ("rexec", 0, libc::MOUNT_ATTR_NOEXEC),
    ("rnodiratime", libc::MOUNT_ATTR_NODIRATIME, 0),
    ("rdiratime", 0, libc::MOUNT_ATTR_NODIRATIME),
    ("rrelatime", 0, libc::MOUNT_ATTR__ATIME),
    (
        "rnoatime",
        libc::MOUNT_ATTR_NOATIME,
        libc::MOUNT_ATTR__ATIME,
    ),
    (
        "rstrictatime",
        libc::MOUNT_ATTR_STRICTATIME,
        libc::MOUNT_ATTR__ATIME,
    ),
    ("ratime", 0, libc::MOUNT_ATTR__ATIME),
    ("rnorelatime", 0, libc::MOUNT_ATTR__ATIME),
    ("rnostrictatime", 0, libc::MOUNT_ATTR__ATIME),
    ("rnosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("rsymfollow", 0, libc::MOUNT_ATTR_NOSYMFOLLOW),
];

/// The flags of a propagation by its name, with or without `r` for all that is mounted below.
pub fn propagation(name: &str) -> Option<MsFlags> {
    let one = |name: &str| PROPAGATION.iter().find(|(known, _)| *known == name);
    if let Some((_, flag)) = one(name) {
        return Some(*flag);
    }
    let (_, flag) = one(name.strip_prefix('r')?)?;
    Some(*flag | MsFlags::MS_REC)
}

impl Options {
    /// Those of a mount of the configuration.
    pub fn of(item: &Mount) -> Self {
        Self::parse(item.options.as_deref().unwrap_or_default())
    }

    /// Reads them.
    fn parse(options: &[String]) -> Self {
        let mut all = Self::default();
        for option in options {
            let find = |table: &[(&str, MsFlags)]| {
                table
                    .iter()
                    .find(|(name, _)| name == option)
                    .map(|(_, flag)| *flag)
            };
            match option.as_str() {
                "bind" => all.bind = Some(all.bind.unwrap_or(false)),
                "rbind" => all.bind = Some(true),
                "tmpcopyup" => all.copy_up = true,
                // Of engines, for themselves.
                "defaults" | "auto" | "noauto" | "user" | "nofail" | "_netdev" | "" => {}
                _ => {
                    if let Some(flag) = find(FLAGS) {
                        all.clear.retain(|other| *other != flag);
                        all.set.push(flag);
                    } else if let Some(flag) = find(CLEARED) {
                        all.set.retain(|other| *other != flag);
                        all.clear.push(flag);
                    } else if let Some(flags) = propagation(option) {
                        all.propagation.push(flags);
                    } else if let Some((_, set, clear)) =
                        RECURSIVE.iter().find(|(name, ..)| name == option)
                    {
                        all.recursive.0 = (all.recursive.0 & !clear) | set;
                        all.recursive.1 = (all.recursive.1 & !set) | clear;
                    } else {
                        all.data.push(option.clone());
                    }
                }
            }
        }
        all
    }

    /// The flags for a new mount.
    pub fn flags(&self) -> MsFlags {
        self.set.iter().copied().collect()
    }

    /// The flags of a bind of something that has `current`.
    pub fn flags_of_bind(&self, current: MsFlags) -> MsFlags {
        let mut cleared: MsFlags = self.clear.iter().copied().collect();
        // What the host gave read-only stays so.
        cleared.remove(MsFlags::MS_RDONLY);
        (current - cleared) | self.flags()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Options {
        Options::parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    /// If it fails, a mount has other flags than were asked for.
    #[test]
    fn options_become_flags_and_data() {
        let all = parse("nosuid,noexec,exec,ro,size=64m,rw,ro,mode=755,rslave,rbind,bind");
        assert_eq!(all.flags(), MsFlags::MS_NOSUID | MsFlags::MS_RDONLY);
        assert_eq!(all.data, ["size=64m", "mode=755"]);
        assert_eq!(all.bind, Some(true));
        assert_eq!(all.propagation, [MsFlags::MS_SLAVE | MsFlags::MS_REC]);
        assert_eq!(
            propagation("rprivate"),
            Some(MsFlags::MS_PRIVATE | MsFlags::MS_REC)
        );
        assert_eq!(propagation("rx"), None);
    }

    /// If it fails, a read-only volume becomes writable by a second mount of it.
    #[test]
    fn a_bind_keeps_what_its_source_forbids() {
        let now = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
        assert_eq!(
            parse("rw,suid,nodev").flags_of_bind(now),
            MsFlags::MS_RDONLY | MsFlags::MS_NODEV
        );
    }

    /// If it fails, attributes for whole trees are mixed up.
    #[test]
    fn recursive_attributes() {
        assert_eq!(parse("rro").recursive, (libc::MOUNT_ATTR_RDONLY, 0));
        assert_eq!(
            parse("rnoatime").recursive,
            (libc::MOUNT_ATTR_NOATIME, libc::MOUNT_ATTR__ATIME)
        );
        assert_eq!(parse("rrw").recursive, (0, libc::MOUNT_ATTR_RDONLY));
    }
}
