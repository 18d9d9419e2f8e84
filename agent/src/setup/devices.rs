//! Device nodes of a container, its links in /dev, and its terminal.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;

use cofferdam_agent_protocol::devices::{self, Node};
use cofferdam_root::RootDir;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::mount::{MsFlags, mount};
use nix::pty::Winsize;
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};

use crate::device_rules::allow_all;
use crate::error::{Context, Error, Result};
use crate::setup::sources::Sources;
use crate::spec::{Device, Spec};

/// What the specification has every container have: path, major, minor.
const DEFAULTS: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Loop devices of a container that may use all devices. The kernel makes one when its node is opened.
const LOOPS: u64 = 64;
const LOOP_CONTROL: &str = "/dev/loop-control";
const LOOP_MAJOR: u64 = 7;

/// The configuration with all devices that the guest has, if its rules allow all. Those that its engine names are
/// of the engine's host, whose kernel may have given the same number to something else. Called in the guest's
/// root.
pub fn with_the_guests(spec: &Spec) -> Result<Spec> {
    let mut spec = spec.clone();
    let resources = spec.linux.resources.as_ref();
    let rules = resources.and_then(|resources| resources.devices.as_deref());
    if !rules.is_some_and(allow_all) {
        return Ok(spec);
    }
    let nodes =
        devices::all(Path::new("/dev")).context(|| "look for the guest's devices".into())?;
    let mut all: Vec<Device> = nodes.into_iter().map(device_of).collect();
    let control = all.iter().find(|one| one.path == LOOP_CONTROL).cloned();
    // Root of a user namespace can have no devices but those that are there, and mounts none.
    if let Some(control) = control.filter(|_| !spec.has_user_namespace()) {
        for number in 0..LOOPS {
            all.push(device_of(Node {
                path: format!("/dev/loop{number}").into(),
                is_block: true,
                number: makedev(LOOP_MAJOR, number),
                mode: control.file_mode.unwrap_or(0o600),
                uid: control.uid.unwrap_or(0),
                gid: control.gid.unwrap_or(0),
            }));
        }
    }
    for device in spec.linux.devices.into_iter().flatten() {
        if all.iter().all(|one| one.path != device.path) {
            all.push(device);
        }
    }
    spec.linux.devices = Some(all);
    Ok(spec)
}

fn device_of(node: Node) -> Device {
    let number = |number: u64| i64::try_from(number).unwrap_or(-1);
    Device {
        kind: if node.is_block { "b" } else { "c" }.into(),
        path: node.path.to_string_lossy().into_owned(),
        major: number(major(node.number)),
        minor: number(minor(node.number)),
        file_mode: Some(node.mode),
        uid: Some(node.uid),
        gid: Some(node.gid),
    }
}

/// Where the devices of a configuration are.
pub fn paths(spec: &Spec) -> impl Iterator<Item = &str> {
    let own = spec.linux.devices.iter().flatten();
    let defaults = DEFAULTS.iter().map(|(path, ..)| *path);
    defaults.chain(own.map(|device| device.path.as_str()))
}

/// Makes the devices and links, unless /dev is one that the engine gives as it shall be.
pub fn make(spec: &Spec, root: &RootDir, sources: &mut Sources) -> Result<()> {
    let given = spec.mounts.iter().any(|mount| {
        let options = mount.options.as_deref().unwrap_or_default();
        let bind = options
            .iter()
            .any(|option| option == "bind" || option == "rbind");
        Path::new(&mount.destination) == Path::new("/dev") && bind
    });
    for device in spec.linux.devices.iter().flatten() {
        make_device(device, root, sources)?;
    }
    if given {
        return Ok(());
    }
    root.make_directory("/dev")
        .context(|| "make the directory /dev".into())?;
    for (path, major, minor) in DEFAULTS {
        let dev = makedev(major, minor);
        make_node(path, (SFlag::S_IFCHR, 0o666, dev), root, sources)?;
    }
    for (path, target) in LINKS {
        let stale = path == "/dev/ptmx" && Path::new("/dev/pts/ptmx").exists();
        if stale {
            let _ = fs::remove_file(path);
        }
        match symlink(target, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.context(|| format!("make the link {path}"))?,
        }
    }
    Ok(())
}

fn make_device(device: &Device, root: &RootDir, sources: &mut Sources) -> Result<()> {
    let path = device.path.as_str();
    let what = || format!("linux.devices {path}");
    let kind = match device.kind.as_str() {
        "c" | "u" => SFlag::S_IFCHR,
        "b" => SFlag::S_IFBLK,
        "p" => SFlag::S_IFIFO,
        other => {
            return Err(Error::invalid(
                what(),
                format!("type {other} is none of c, u, b, p"),
            ));
        }
    };
    if !path.starts_with('/') {
        return Err(Error::invalid(what(), "the path is not absolute"));
    }
    let number = |number: i64| {
        u64::try_from(number).map_err(|_| Error::invalid(what(), "a device number is negative"))
    };
    let dev = match kind {
        SFlag::S_IFIFO => 0,
        _ => makedev(number(device.major)?, number(device.minor)?),
    };
    if let Some(parent) = Path::new(path).parent() {
        root.make_directory(parent)
            .context(|| format!("make the directory of {path}"))?;
    }
    let mode = device.file_mode.unwrap_or(0o666) & 0o7777;
    if !make_node(path, (kind, mode, dev), root, sources)? {
        return Ok(());
    }
    chown(
        path,
        Some(device.uid.unwrap_or(0)),
        Some(device.gid.unwrap_or(0)),
    )
    .context(|| format!("set the owner of {path}"))
}

/// Gives `false` if it is not made, but there.
fn make_node(
    path: &str,
    (kind, mode, dev): (SFlag, u32, libc::dev_t),
    root: &RootDir,
    sources: &mut Sources,
) -> Result<bool> {
    match mknod(path, kind, Mode::from_bits_truncate(mode), dev) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        // In a user namespace: the guest's own.
        Err(error @ Errno::EPERM) => {
            let doing = || format!("mount the guest's device {path}");
            let device = sources.device(path).ok_or(error).context(doing)?;
            root.make_file(path).context(doing)?;
            device.attach(path).context(doing)?;
            Ok(false)
        }
        Err(error) => Err(error).context(|| format!("make the device {path}")),
    }
}

/// A pseudo-terminal of the container's own.
#[derive(Debug)]
pub struct Terminal {
    /// The agent's end.
    pub master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    /// Makes one of `size` (rows, columns); its owner is `uid`.
    pub fn new(size: Option<(u16, u16)>, uid: u32) -> Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = open("/dev/ptmx", flags, Mode::empty()).context(|| {
            "open /dev/ptmx for a terminal (is a devpts mounted on /dev/pts?)".into()
        })?;
        let unlock: libc::c_int = 0;
        // SAFETY: the kernel reads an int that outlives the call.
        check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })
            .context(|| "unlock the terminal".into())?;
        // SAFETY: this one takes flags and no pointer.
        let slave =
            check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits()) })
                .context(|| "open the terminal".into())?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        if let Some(size) = size {
            resize(&master, size)?;
        }
        std::os::unix::fs::fchown(&slave, Some(uid), None)
            .context(|| "give the terminal to its user".into())?;
        Ok(Self { master, slave })
    }

    /// Makes it the one on /dev/console.
    pub fn be_console(&self, root: &RootDir) -> Result<()> {
        root.make_file("/dev/console")
            .context(|| "make the file /dev/console".into())?;
        let mut number: libc::c_uint = 0;
        // SAFETY: the kernel writes an unsigned int, which outlives the call.
        check(unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCGPTN, &raw mut number) })
            .context(|| "ask for the terminal's number".into())?;
        let path = format!("/dev/pts/{number}");
        mount(
            Some(path.as_str()),
            "/dev/console",
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .context(|| format!("mount {path} on /dev/console"))
    }

    /// Makes it this session's, and the standard streams. Gives the master.
    pub fn control(self) -> Result<OwnedFd> {
        // SAFETY: this one takes a number and no pointer.
        check(unsafe { libc::ioctl(self.slave.as_raw_fd(), libc::TIOCSCTTY, 0) })
            .context(|| "make the terminal the session's".into())?;
        be_stdio([self.slave.as_fd(), self.slave.as_fd(), self.slave.as_fd()])?;
        Ok(self.master)
    }
}

/// Makes the descriptors standard input, output and error.
pub fn be_stdio(fds: [std::os::fd::BorrowedFd<'_>; 3]) -> Result<()> {
    let doing = || "set the standard streams".to_owned();
    nix::unistd::dup2_stdin(fds[0]).context(doing)?;
    nix::unistd::dup2_stdout(fds[1]).context(doing)?;
    nix::unistd::dup2_stderr(fds[2]).context(doing)
}

/// Beyond the numbers that a process is given descriptors at.
const BEYOND: RawFd = 128;

/// A copy of a descriptor at a number that no process is given; exec closes it.
pub fn out_of_the_way(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(BEYOND))?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Puts the descriptors behind the first three where the process will find them, and gives the three.
pub fn place(fds: Vec<OwnedFd>, numbers: &[u32]) -> Result<Vec<OwnedFd>> {
    let doing = || format!("make {numbers:?} the process's descriptors");
    // One may lie where another is to be.
    let copies: io::Result<Vec<_>> = fds.iter().map(|fd| out_of_the_way(fd.as_fd())).collect();
    let mut standard = copies.context(doing)?;
    drop(fds);
    let others = standard.split_off(standard.len().min(3));
    for (fd, number) in others.iter().zip(numbers) {
        let number = RawFd::try_from(*number)
            .ok()
            .filter(|number| (3..BEYOND).contains(number));
        let bad = || {
            Error::invalid(
                "streams",
                format!("descriptors are from 3 to {}", BEYOND - 1),
            )
        };
        let number = number.ok_or_else(bad)?;
        // SAFETY: nothing in this process has a descriptor of such a number: it began with the standard ones
        // alone, and what it has opened since is out of the way. It stays open until exec, and beyond.
        check(unsafe { libc::dup2(fd.as_raw_fd(), number) }).context(doing)?;
    }
    Ok(standard)
}

/// Sets the rows and columns of a terminal.
pub fn resize(master: &OwnedFd, (rows, columns): (u16, u16)) -> Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel reads the size, which outlives the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
        .context(|| "set the terminal's size".into())?;
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
