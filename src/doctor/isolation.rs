//! What the jail is made of: cgroups, namespaces, seccomp, Landlock.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::ptr;

use super::Finding;

/// What limits of a VM need.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// Mends a host that mounts version 1 of cgroups, or none.
const ONLY_V2: &str = "add systemd.unified_cgroup_hierarchy=1 to the kernel command line";
/// Mends a user's tree that has some of the controllers only.
const DELEGATE: &str =
    "sudo systemctl edit user@.service, [Service] Delegate=cpu cpuset io memory pids";
/// Of `linux/landlock.h`: ask for the ABI version instead of making a rule set.
const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
/// Exit status of the child that got a user namespace without any right in it. Above every errno.
const POWERLESS: libc::c_int = 200;

/// Whether cgroup v2 is mounted, has the controllers, and this user may use its own cgroup.
pub fn cgroup() -> Finding {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let mounts = read(Path::new("/proc/self/mountinfo"));
    let Some(dir) = own_cgroup(&mounts, &read(Path::new("/proc/self/cgroup"))) else {
        return Finding::missing("not mounted").mended_by(ONLY_V2);
    };
    let controllers = read(&dir.join("cgroup.controllers"));
    let writable = ["cgroup.procs", "cgroup.subtree_control"]
        .iter()
        .try_for_each(|file| {
            OpenOptions::new()
                .write(true)
                .open(dir.join(file))
                .map(drop)
        });
    judge_cgroup(&dir, &controllers, mounts.contains(" - cgroup "), writable)
}

/// The directory of this process's cgroup in the version 2 tree, from the texts of
/// `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn own_cgroup(mounts: &str, cgroups: &str) -> Option<PathBuf> {
    let mount = mounts.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        source
            .starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4))?
    })?;
    let own = cgroups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    let own = own.trim_end_matches('/');
    Some(if own.is_empty() {
        PathBuf::from(mount)
    } else {
        Path::new(mount).join(own)
    })
}

fn judge_cgroup(dir: &Path, controllers: &str, hybrid: bool, writable: io::Result<()>) -> Finding {
    let dir = dir.display();
    let lacking: Vec<_> = CONTROLLERS
        .into_iter()
        .filter(|wanted| !controllers.split_whitespace().any(|found| found == *wanted))
        .collect();
    match writable {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Finding::limited(format!("{dir} is not this user's"))
                .mended_by("systemd-run --user --scope -p Delegate=yes $SHELL")
        }
        Err(error) => Finding::limited(format!("{dir} cannot be written: {error}")),
        Ok(()) if lacking.is_empty() => {
            Finding::ok(format!("{dir}, writable, with {}", CONTROLLERS.join(", ")))
        }
        Ok(()) => Finding::limited(format!("{dir} lacks {}", lacking.join(", ")))
            .mended_by(if hybrid { ONLY_V2 } else { DELEGATE }),
    }
}

/// Whether this user can make a user namespace and has rights in it: tried in a child.
pub fn user_namespaces() -> Finding {
    match unshare_in_child() {
        Ok(status) => judge_unshare(status, |name| {
            fs::read_to_string(format!("/proc/sys/{name}"))
                .ok()
                .map(|text| text.trim().to_owned())
        }),
        Err(error) => Finding::limited(format!("not tried: {error}")),
    }
}

/// Tries in a child process. Returns 0, the errno of what failed, or [`POWERLESS`].
fn unshare_in_child() -> io::Result<libc::c_int> {
    // SAFETY: between fork and _exit the child makes only system calls: it takes no lock and
    // allocates nothing, whatever other threads of the parent were about.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: unshare and _exit take no pointers; the child never returns from here.
            unsafe {
                let status = if libc::unshare(libc::CLONE_NEWUSER) != 0 {
                    *libc::__errno_location()
                } else if libc::unshare(libc::CLONE_NEWNS) != 0 {
                    POWERLESS
                } else {
                    0
                };
                libc::_exit(status)
            }
        }
        _ => {}
    }
    let mut status = 0;
    // SAFETY: waitpid writes one int to `status`, which outlives the call.
    while unsafe { libc::waitpid(child, &mut status, 0) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if libc::WIFEXITED(status) {
        Ok(libc::WEXITSTATUS(status))
    } else {
        Err(io::Error::other("the child that tried was killed"))
    }
}

fn judge_unshare(status: libc::c_int, sysctl: impl Fn(&str) -> Option<String>) -> Finding {
    let off = |name: &str| sysctl(name).as_deref() == Some("0");
    match status {
        0 => Finding::ok("can be made"),
        POWERLESS => {
            let finding = Finding::limited("can be made, but give no rights (AppArmor)");
            finding.mended_by("sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
        }
        libc::EPERM if off("kernel/unprivileged_userns_clone") => {
            let finding = Finding::missing("only for root");
            finding.mended_by("sudo sysctl -w kernel.unprivileged_userns_clone=1")
        }
        libc::ENOSPC if off("user/max_user_namespaces") => {
            let finding = Finding::missing("turned off");
            finding.mended_by("sudo sysctl -w user.max_user_namespaces=15000")
        }
        errno => Finding::missing(format!("refused: {}", io::Error::from_raw_os_error(errno))),
    }
}

/// Whether seccomp filters can kill the process and return errors.
pub fn seccomp() -> Finding {
    let actions = [
        ("kill", libc::SECCOMP_RET_KILL_PROCESS),
        ("errno", libc::SECCOMP_RET_ERRNO),
        ("log", libc::SECCOMP_RET_LOG),
    ];
    let mut lacking = Vec::new();
    for (name, action) in actions {
        // SAFETY: SECCOMP_GET_ACTION_AVAIL reads one u32 from the pointer, which outlives the
        // call, and changes nothing.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_GET_ACTION_AVAIL,
                0,
                ptr::from_ref(&action),
            )
        };
        if result == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOSYS) => {
                return Finding::missing("the kernel has none, or a filter here forbids it");
            }
            Some(libc::EOPNOTSUPP) => lacking.push(name),
            _ => return Finding::limited(format!("not tried: {error}")),
        }
    }
    if lacking.is_empty() {
        Finding::ok("filters, with kill, errno and log")
    } else {
        Finding::limited(format!("filters, without {}", lacking.join(", ")))
    }
}

/// Whether Landlock is on, and which version of it.
pub fn landlock() -> Finding {
    // SAFETY: with this flag the call takes no attribute (null, length 0) and only returns the ABI
    // version (linux/landlock.h).
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<libc::c_void>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    if version < 0 {
        judge_no_landlock(&io::Error::last_os_error())
    } else {
        judge_landlock(version)
    }
}

fn judge_landlock(version: libc::c_long) -> Finding {
    // Network rules came with ABI 4, limits on signals and abstract sockets with 6.
    match version {
        ..4 => Finding::limited(format!("ABI {version}: files only, no network rules")),
        4.. => Finding::ok(format!("ABI {version}")),
    }
}

fn judge_no_landlock(error: &io::Error) -> Finding {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            let finding = Finding::missing("in the kernel, but not turned on at boot");
            finding.mended_by("add landlock to lsm= on the kernel command line")
        }
        Some(libc::ENOSYS) => Finding::missing("not in this kernel"),
        _ => Finding::missing(format!("refused: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    /// If this fails, the doctor looks at the wrong directory and misjudges delegation.
    #[test]
    fn the_own_cgroup_is_below_the_v2_mount() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      38 31 0:38 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            own_cgroup(mounts, "4:memory:/x\n0::/user.slice/me\n").unwrap(),
            PathBuf::from("/sys/fs/cgroup/unified/user.slice/me")
        );
        assert_eq!(
            own_cgroup(mounts, "0::/\n").unwrap().as_os_str(),
            "/sys/fs/cgroup/unified"
        );
        assert_eq!(own_cgroup("", "0::/\n"), None);
        assert_eq!(own_cgroup("no separator - cgroup2 x\n", "0::/\n"), None);
    }

    /// If this fails, limits are promised that the host cannot set.
    #[test]
    fn a_cgroup_needs_controllers_and_permission() {
        let all = "cpuset cpu io memory pids\n";
        let dir = Path::new("/c");
        assert_eq!(judge_cgroup(dir, all, false, Ok(())).state, State::Ok);
        let hybrid = judge_cgroup(dir, "", true, Ok(()));
        assert_eq!(hybrid.detail, "/c lacks cpu, io, memory, pids");
        assert_eq!(hybrid.mend.as_deref(), Some(ONLY_V2));
        assert_eq!(
            judge_cgroup(dir, "cpu", false, Ok(())).mend.as_deref(),
            Some(DELEGATE)
        );
        let refused = |code| judge_cgroup(dir, all, false, Err(io::Error::from_raw_os_error(code)));
        assert_eq!(refused(libc::EACCES).state, State::Limited);
        assert!(refused(libc::EACCES).mend.unwrap().contains("Delegate=yes"));
        assert_eq!(refused(libc::EROFS).mend, None);
    }

    /// If this fails, the command offered does not lift the restriction that is there.
    #[test]
    fn each_restriction_of_user_namespaces_has_its_command() {
        let none = |_: &str| None;
        let zero = |_: &str| Some("0".to_owned());
        assert_eq!(judge_unshare(0, none).state, State::Ok);
        assert!(
            judge_unshare(POWERLESS, none)
                .mend
                .unwrap()
                .contains("apparmor")
        );
        assert!(
            judge_unshare(libc::EPERM, zero)
                .mend
                .unwrap()
                .contains("userns_clone=1")
        );
        assert!(
            judge_unshare(libc::ENOSPC, zero)
                .mend
                .unwrap()
                .contains("max_user_namespaces")
        );
        assert_eq!(judge_unshare(libc::EPERM, none).mend, None);
    }

    /// If this fails, an old or absent Landlock is called good.
    #[test]
    fn landlock_versions_are_told_apart() {
        assert_eq!(judge_landlock(3).state, State::Limited);
        assert_eq!(judge_landlock(6).state, State::Ok);
        let off = judge_no_landlock(&io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        assert!(off.mend.is_some());
        let absent = judge_no_landlock(&io::Error::from_raw_os_error(libc::ENOSYS));
        assert_eq!((absent.state, absent.mend), (State::Missing, None));
    }

    /// If this fails, trying leaves the doctor itself in another namespace, or hangs.
    #[test]
    fn trying_a_namespace_changes_only_the_child() {
        let before = fs::read_link("/proc/self/ns/user").unwrap();
        unshare_in_child().unwrap();
        assert_eq!(fs::read_link("/proc/self/ns/user").unwrap(), before);
    }
}
