//! A tap: an Ethernet interface of the host whose other end is a file descriptor.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_ulong};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::backend::read_into;
use crate::virtio::{Buffers, Chain};

/// Bytes of the header before each frame: `virtio_net_hdr_v1` (virtio 1.2, section 5.1.6).
pub(super) const HEADER: usize = 12;

const DEVICE: &str = "/dev/net/tun";
/// Longest name of an interface, in bytes, without its end.
const NAME_MAX: usize = 15;
/// What a tap must be for us: Ethernet frames, behind the header above, and nothing else.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// Sends and receives UDP in segments; the kernel wants both or none.
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;
const TSO: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
// Numbers that the libc crate lacks.
const SIOCGIFFLAGS: c_ulong = 0x8913;
const SIOCSIFFLAGS: c_ulong = 0x8914;
const SIOCSIFMTU: c_ulong = 0x8922;
const TUNSETQUEUE: c_ulong = 0x4004_54d9;
const IFF_ATTACH_QUEUE: c_int = 0x200;
const IFF_DETACH_QUEUE: c_int = 0x400;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not a name that an interface can have.
    #[error("{0:?} is no name for a tap: 1 to {NAME_MAX} bytes without / : or spaces")]
    Name(String),
    /// The tun driver is missing or not for us.
    #[error("cannot open {DEVICE}: load the module (modprobe tun), or get access to the device")]
    Device(#[source] io::Error),
    /// There is no interface of that name.
    #[error(
        "no tap {0}: make it with `ip tuntap add {0} mode tap user $USER && ip link set {0} up`"
    )]
    Missing(String),
    /// There is one, where a new one was asked for.
    #[error("there is an interface {0} already: name another for the new tap, or attach to it")]
    Exists(String),
    /// Another process has it.
    #[error("tap {0} is in use by another process: end it, or make a tap of its own for this VM")]
    Busy(String),
    /// It belongs to somebody else, or making one takes a privilege.
    #[error(
        "no permission for tap {0}: make it with `ip tuntap add {0} mode tap user $USER`, \
         or run with CAP_NET_ADMIN"
    )]
    Permission(String),
    /// An interface of another kind.
    #[error("{0} is not a tap that we can use: a tun, a multi-queue tap, or no tap at all")]
    Kind(String),
    /// A tap of one queue, where several are asked for.
    #[error(
        "{0} is not a tap of several queues: make it with \
         `ip tuntap add {0} mode tap multi_queue user $USER`"
    )]
    Queues(String),
    /// An inherited descriptor that is not a tap, or one of the wrong flags.
    #[error("file descriptor {0} is not a tap opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Inherited(i32),
    /// Something else.
    #[error("cannot {action} tap {name}")]
    Io {
        /// The tap.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// `struct ifreq` as the ioctls here use it.
#[derive(Debug)]
#[repr(C)]
struct Request {
    name: [u8; NAME_MAX + 1],
    /// Flags (16 bits) or MTU (32 bits), the rest zeros.
    value: [u8; 24],
}

impl Request {
    fn new(name: &str) -> Result<Self, TapError> {
        let is_bad = |byte: u8| matches!(byte, 0 | b'/' | b':') || byte.is_ascii_whitespace();
        if !(1..=NAME_MAX).contains(&name.len()) || name.bytes().any(is_bad) {
            return Err(TapError::Name(name.to_owned()));
        }
        let mut request = Self {
            name: [0; NAME_MAX + 1],
            value: [0; 24],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        Ok(request)
    }

    fn with_value(mut self, value: c_int) -> Self {
        self.value[..4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn flags(&self) -> c_int {
        c_int::from(u16::from_ne_bytes([self.value[0], self.value[1]]))
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|&byte| byte == 0);
        String::from_utf8_lossy(&self.name[..end.unwrap_or(NAME_MAX)]).into_owned()
    }

    /// An ioctl that reads, and may overwrite, a `struct ifreq`.
    fn ioctl(&mut self, fd: &impl AsRawFd, number: c_ulong) -> io::Result<()> {
        // SAFETY: `self` is laid out and sized as a `struct ifreq`, which is all that the ioctls of
        // this file which take a request read and write.
        result(unsafe { ioctl_with_mut_ref(fd, number, self) })
    }
}

fn result(code: c_int) -> io::Result<()> {
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An open tap, non-blocking, each frame behind a virtio-net header of 12 bytes. One that this
/// process made goes with it; one that was there stays.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    /// The TUN_F_* that the kernel knows.
    offloads: u32,
    /// One of several queues of its interface.
    is_multi_queue: bool,
    #[cfg(any(test, fuzzing))]
    is_fake: bool,
}

impl Tap {
    /// Makes a new tap and brings it up. `pattern` is a name, or one with `%d` for the first free
    /// number. `mtu` is in bytes; the kernel's default is 1500. Needs CAP_NET_ADMIN.
    pub fn create(pattern: &str, mtu: Option<u16>) -> Result<Self, TapError> {
        if exists(pattern)? {
            return Err(TapError::Exists(pattern.to_owned()));
        }
        let tap = Self::open(pattern, FLAGS)?;
        tap.bring_up(mtu)?;
        Ok(tap)
    }

    /// As [`Self::create`], with several queues: one `Tap` for each.
    pub fn create_queues(
        pattern: &str,
        mtu: Option<u16>,
        queues: u16,
    ) -> Result<Vec<Self>, TapError> {
        if exists(pattern)? {
            return Err(TapError::Exists(pattern.to_owned()));
        }
        let first = Self::open(pattern, FLAGS | libc::IFF_MULTI_QUEUE)?;
        let name = first.name.clone();
        let mut taps = vec![first];
        for _ in 1..queues {
            taps.push(Self::open(&name, FLAGS | libc::IFF_MULTI_QUEUE)?);
        }
        taps[0].bring_up(mtu)?;
        Ok(taps)
    }

    /// Attaches to the tap `name`, which an administrator made with `multi_queue`: one `Tap` for
    /// each of `queues` queues.
    pub fn attach_queues(name: &str, queues: u16) -> Result<Vec<Self>, TapError> {
        if !exists(name)? {
            return Err(TapError::Missing(name.to_owned()));
        }
        let open = |_| match Self::open(name, FLAGS | libc::IFF_MULTI_QUEUE) {
            Err(TapError::Kind(name)) => Err(TapError::Queues(name)),
            tap => tap,
        };
        (0..queues).map(open).collect()
    }

    /// Attaches to the tap `name`, which an administrator made.
    pub fn attach(name: &str) -> Result<Self, TapError> {
        // Without this the kernel would make one, if it lets us.
        if !exists(name)? {
            return Err(TapError::Missing(name.to_owned()));
        }
        Self::open(name, FLAGS)
    }

    /// Takes over a tap (or macvtap) that whoever started us has opened.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, TapError> {
        let number = fd.as_raw_fd();
        let mut request = Request {
            name: [0; NAME_MAX + 1],
            value: [0; 24],
        };
        let is_tap = request.ioctl(&fd, libc::TUNGETIFF).is_ok();
        if !is_tap || request.flags() & (FLAGS | libc::IFF_TUN) != FLAGS {
            return Err(TapError::Inherited(number));
        }
        let name = request.name();
        fcntl_getfl(&fd)
            .and_then(|flags| fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
            .and_then(|()| fcntl_setfd(&fd, FdFlags::CLOEXEC))
            .map_err(|source| TapError::Io {
                name: name.clone(),
                action: "set the mode of",
                source: source.into(),
            })?;
        Self::set_up(File::from(fd), name)
    }

    fn open(name: &str, flags: c_int) -> Result<Self, TapError> {
        let mut request = Request::new(name)?.with_value(flags);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(TapError::Device)?;
        request
            .ioctl(&file, libc::TUNSETIFF)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EBUSY) => TapError::Busy(name.to_owned()),
                Some(libc::EPERM | libc::EACCES) => TapError::Permission(name.to_owned()),
                Some(libc::EINVAL) => TapError::Kind(name.to_owned()),
                _ => TapError::Io {
                    name: name.to_owned(),
                    action: "attach to",
                    source,
                },
            })?;
        let mut tap = Self::set_up(file, request.name())?;
        tap.is_multi_queue = flags & libc::IFF_MULTI_QUEUE != 0;
        Ok(tap)
    }

    fn set_up(file: File, name: String) -> Result<Self, TapError> {
        let size = c_int::try_from(HEADER).unwrap_or(c_int::MAX);
        // SAFETY: the ioctl reads an int, which lives during the call.
        result(unsafe { ioctl_with_ref(&file, libc::TUNSETVNETHDRSZ, &size) }).map_err(
            |source| TapError::Io {
                name: name.clone(),
                action: "set the header size of",
                source,
            },
        )?;
        let mut tap = Self {
            file,
            name,
            offloads: 0,
            is_multi_queue: false,
            #[cfg(any(test, fuzzing))]
            is_fake: false,
        };
        tap.offloads = tap.probe_offloads();
        Ok(tap)
    }

    /// The most of checksums, TSO and USO that the kernel knows. Leaves them all off.
    fn probe_offloads(&self) -> u32 {
        let all = [libc::TUN_F_CSUM | TSO | USO, libc::TUN_F_CSUM | TSO];
        let known = all
            .into_iter()
            .find(|&offloads| self.ioctl_offload(offloads).is_ok());
        let _ = self.ioctl_offload(0);
        known.unwrap_or(0)
    }

    /// Brings an interface up that we have just made.
    fn bring_up(&self, mtu: Option<u16>) -> Result<(), TapError> {
        let failed = |action| {
            move |source| TapError::Io {
                name: self.name.clone(),
                action,
                source,
            }
        };
        if let Some(mtu) = mtu {
            let mut request = Request::new(&self.name)?.with_value(mtu.into());
            control_socket()
                .and_then(|socket| request.ioctl(&socket, SIOCSIFMTU))
                .map_err(failed("set the MTU of"))?;
        }
        set_state(Request::new(&self.name)?, true).map_err(failed("bring up"))
    }

    /// The interface's name on the host.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The TUN_F_* that the kernel knows.
    pub(super) fn offloads(&self) -> u32 {
        self.offloads
    }

    /// Says what the reader of this tap can take: `offloads` is a set of TUN_F_*.
    pub(super) fn set_offloads(&self, mut offloads: u32) -> io::Result<()> {
        if offloads & USO != USO {
            offloads &= !USO;
        }
        self.ioctl_offload(offloads & self.offloads)
    }

    /// Whether the kernel gives this queue of the interface its share of the frames. A tap of one
    /// queue always has all of them.
    pub(super) fn set_attached(&self, is_attached: bool) -> io::Result<()> {
        if !self.is_multi_queue {
            return Ok(());
        }
        let flag = match is_attached {
            true => IFF_ATTACH_QUEUE,
            false => IFF_DETACH_QUEUE,
        };
        let mut request = Request {
            name: [0; NAME_MAX + 1],
            value: [0; 24],
        }
        .with_value(flag);
        match request.ioctl(&self.file, TUNSETQUEUE) {
            // It is so already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }

    fn ioctl_offload(&self, offloads: u32) -> io::Result<()> {
        #[cfg(any(test, fuzzing))]
        if self.is_fake {
            return Ok(());
        }
        // SAFETY: the ioctl takes its argument by value.
        result(unsafe { ioctl_with_val(&self.file, libc::TUNSETOFFLOAD, offloads.into()) })
    }

    /// Reads a frame: see [`Backend::receive`](super::backend::Backend::receive).
    pub(super) fn receive(
        &self,
        chains: &VecDeque<Chain>,
        pieces: &mut Vec<libc::iovec>,
    ) -> io::Result<usize> {
        // A tap cuts a frame that does not fit, silently. A byte of ours at the end tells.
        let mut overflow = [0];
        match read_into(
            self.as_raw_fd(),
            chains,
            0,
            usize::MAX,
            &mut overflow,
            pieces,
        )? {
            // A tap has no empty frames: this is the end of what somebody gave us for one.
            0 => Err(ErrorKind::UnexpectedEof.into()),
            len => Ok(len),
        }
    }

    /// Sends a frame, whole or not at all.
    pub(super) fn send(&self, frame: &mut Buffers) -> io::Result<()> {
        frame.write_to(self.as_fd()).map(|_| ())
    }

    /// Something else that keeps frames apart and can play a tap, with all offloads.
    #[cfg(any(test, fuzzing))]
    pub fn fake(fd: OwnedFd) -> Self {
        Self {
            file: File::from(fd),
            name: "fake".to_owned(),
            offloads: libc::TUN_F_CSUM | TSO | USO,
            is_multi_queue: false,
            is_fake: true,
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Brings an interface of this thread's network namespace up.
pub fn bring_up(name: &str) -> Result<(), TapError> {
    set_state(Request::new(name)?, true).map_err(|source| TapError::Io {
        name: name.to_owned(),
        action: "bring up",
        source,
    })
}

/// Brings the interface that `request` names up, or down.
fn set_state(mut request: Request, is_up: bool) -> io::Result<()> {
    let socket = control_socket()?;
    request.ioctl(&socket, SIOCGIFFLAGS)?;
    let flags = match is_up {
        true => request.flags() | libc::IFF_UP,
        false => request.flags() & !libc::IFF_UP,
    };
    request.with_value(flags).ioctl(&socket, SIOCSIFFLAGS)
}

fn control_socket() -> io::Result<OwnedFd> {
    let kind = (AddressFamily::UNIX, SocketType::DGRAM);
    Ok(socket_with(kind.0, kind.1, SocketFlags::CLOEXEC, None)?)
}

/// Whether there is an interface `name`.
fn exists(name: &str) -> Result<bool, TapError> {
    Request::new(name)?;
    let failed = |source| TapError::Io {
        name: name.to_owned(),
        action: "look for",
        source,
    };
    let socket = control_socket().map_err(failed)?;
    match name_to_index(&socket, name).map_err(io::Error::from) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) || e.kind() == ErrorKind::NotFound => {
            Ok(false)
        }
        Err(e) => Err(failed(e)),
    }
}

/// What an administrator does to a tap.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub(in super::super) fn set_up_or_down(name: &str, is_up: bool) -> io::Result<()> {
        set_state(Request::new(name).map_err(io::Error::other)?, is_up)
    }

    /// False where there is no program to do it with.
    pub(in super::super) fn delete(name: &str) -> bool {
        std::process::Command::new("ip")
            .args(["link", "delete", name])
            .status()
            .is_ok_and(|status| status.success())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that no other test has.
    fn name(tag: char) -> String {
        format!("cf{tag}{}", std::process::id())
    }

    /// A new tap, or a message why there is none here.
    fn created(name: &str) -> Option<Tap> {
        match Tap::create(name, Some(1400)) {
            Ok(tap) => Some(tap),
            Err(e @ (TapError::Device(_) | TapError::Permission(_))) => {
                eprintln!("skipped: {e}");
                None
            }
            Err(e) => panic!("{e:?}"),
        }
    }

    /// If it fails, a tap outlives its VM, two VMs share one, or the user is not told what to do.
    #[test]
    fn a_created_tap_is_ours_alone_and_goes_with_us() {
        let name = name('a');
        let Some(tap) = created(&name) else { return };
        assert_eq!(tap.name(), name);
        assert!(tap.offloads() & libc::TUN_F_TSO4 != 0);
        assert!(matches!(Tap::create(&name, None), Err(TapError::Exists(_))));
        assert!(matches!(Tap::attach(&name), Err(TapError::Busy(_))));
        let mtu = std::fs::read_to_string(format!("/sys/class/net/{name}/mtu"));
        assert!(mtu.is_err() || mtu.unwrap().trim() == "1400");
        tap.set_offloads(tap.offloads()).unwrap();
        tap.set_offloads(libc::TUN_F_CSUM | libc::TUN_F_USO4)
            .unwrap();
        drop(tap);
        assert!(matches!(Tap::attach(&name), Err(TapError::Missing(_))));
    }

    /// If it fails, `%d` is not a number, or an inherited tap cannot be used.
    #[test]
    fn a_tap_is_named_by_a_pattern_and_inherited() {
        let Some(tap) = created("cfp%d") else { return };
        assert!(tap.name().starts_with("cfp") && !tap.name().contains('%'));
        let inherited = Tap::from_fd(tap.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(inherited.name(), tap.name());
    }

    /// If it fails, the user must guess what is wrong with a name or a descriptor.
    #[test]
    fn what_is_not_a_tap_is_refused_by_name() {
        for bad in ["", "a b", "a/b", "sixteen-letters!"] {
            assert!(matches!(Tap::attach(bad), Err(TapError::Name(_))), "{bad}");
        }
        let error = Tap::attach("cf-nowhere").unwrap_err().to_string();
        assert!(error.contains("ip tuntap add cf-nowhere mode tap"));
        let null = File::open("/dev/null").unwrap();
        let error = Tap::from_fd(null.into()).unwrap_err();
        assert!(matches!(error, TapError::Inherited(_)));
        if File::open(DEVICE).is_ok() {
            let error = Tap::attach("lo").unwrap_err();
            assert!(
                matches!(error, TapError::Kind(_) | TapError::Permission(_)),
                "{error}"
            );
        }
    }
}
