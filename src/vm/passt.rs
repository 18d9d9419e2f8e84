//! passt, a process that gives the guest a network without any privilege: it speaks Ethernet over a
//! socket with us, and ordinary sockets of its own with the rest of the world.

use std::io::{self, ErrorKind, PipeReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cofferdam_devices::virtio::net::Stream;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, fchmod};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::config::{Publish, Transport};

/// What is looked for in PATH.
const PROGRAM: &str = "passt";
/// Time that it has to set itself up. It needs some 20 ms, unless the host is very busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a line of its messages at most.
const MAX_LINE: usize = 1024;
/// Lines of its messages that reach the log: a guest can cause some.
const MAX_LINES: u32 = 100;

/// Why there is no passt.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It is not installed.
    #[error("net: there is no program {PROGRAM} in PATH: install the package {PROGRAM}")]
    Missing,
    /// A port of the host that is to lead to the guest cannot be had.
    #[error("net: cannot publish {publish} on the host")]
    Port {
        /// What was asked for.
        publish: Publish,
        /// Why not.
        source: io::Error,
    },
    /// It ended before it was ready.
    #[error("net: {PROGRAM} ended at its start ({status}); it said: {said}")]
    Ended {
        /// Its exit status.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
    /// It does not get ready.
    #[error("net: {PROGRAM} does not get ready; it said: {0}")]
    Silent(String),
    /// Something else.
    #[error("net: cannot {action} {PROGRAM}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A passt that runs. Ends it when dropped; it also ends by itself when our end of its socket is
/// closed, in whatever way we end.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    /// Readable once it has ended.
    pidfd: OwnedFd,
    messages: Messages,
}

impl Passt {
    /// Starts passt and waits until it is ready. Returns it with the stream that its frames come
    /// from. The guest is told to send packets of up to `mtu` bytes.
    pub fn start(publish: &[Publish], mtu: u16) -> Result<(Self, Stream), PasstError> {
        publish.iter().try_for_each(probe)?;
        let failed = |action| move |source: io::Error| PasstError::Io { action, source };
        let kind = (AddressFamily::UNIX, SocketType::STREAM);
        let (ours, theirs) = socketpair(kind.0, kind.1, SocketFlags::CLOEXEC, None)
            .map_err(|e| failed("make a socket for")(e.into()))?;
        let stream = Stream::new(ours, PROGRAM).map_err(failed("make a socket for"))?;
        let (ready, said_ready) = io::pipe().map_err(failed("make a pipe for"))?;
        let (messages, stderr) = io::pipe().map_err(failed("make a pipe for"))?;
        // It opens the pipe by its name, and where we are root as another user.
        fchmod(&said_ready, Mode::from_raw_mode(0o622))
            .map_err(|e| failed("make a pipe for")(e.into()))?;
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments(publish, mtu))
            .stdin(Stdio::from(theirs))
            .stdout(said_ready)
            .stderr(stderr)
            // What is typed on our terminal is not for it.
            .process_group(0);
        let child = command.spawn().map_err(|source| match source.kind() {
            ErrorKind::NotFound => PasstError::Missing,
            _ => failed("start")(source),
        })?;
        // Our copies of its ends of the pipes go, so that they end when it does.
        drop(command);
        let mut passt = Self::new(child, messages).map_err(failed("watch"))?;
        passt.wait_until_ready(ready)?;
        Ok((passt, stream))
    }

    fn new(mut child: Child, messages: PipeReader) -> io::Result<Self> {
        let watch = || {
            ioctl_fionbio(&messages, true)?;
            pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        };
        match watch() {
            Ok(pidfd) => Ok(Self {
                child,
                pidfd,
                messages: Messages::new(messages),
            }),
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                Err(error.into())
            }
        }
    }

    /// Waits until it has written its process id, which it does when all else is done.
    fn wait_until_ready(&mut self, mut ready: PipeReader) -> Result<(), PasstError> {
        let deadline = Instant::now() + PATIENCE;
        while !wait(&[&ready, &self.messages.pipe], deadline)?[0] {
            if Instant::now() >= deadline {
                return Err(PasstError::Silent(self.messages.last()));
            }
            if !self.messages.pass_on() {
                wait(&[&ready], deadline)?;
            }
        }
        if let Ok(1..) = ready.read(&mut [0; 16]) {
            return Ok(());
        }
        // It may have more to say, and to do, before it is gone.
        wait(&[&self.pidfd], deadline)?;
        self.messages.pass_on();
        match self.child.try_wait() {
            Ok(Some(status)) => Err(PasstError::Ended {
                status,
                said: self.messages.last(),
            }),
            _ => Err(PasstError::Silent(self.messages.last())),
        }
    }

    /// It has ended though nobody asked it to.
    fn ended(&mut self, ops: &mut EventOps) {
        let Ok(Some(status)) = self.child.try_wait() else {
            return;
        };
        self.messages.pass_on();
        let said = self.messages.last();
        log::warn!("{PROGRAM} ended ({status}): the guest's link is down; it said: {said}");
        let watched = Events::new(&self.pidfd, EventSet::IN);
        let _ = ops.remove(watched);
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // It has nothing to finish. Where it has ended already, both say so.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl MutEventSubscriber for Passt {
    fn init(&mut self, ops: &mut EventOps) {
        let messages = Events::new(&self.messages.pipe, EventSet::IN);
        let end = Events::new(&self.pidfd, EventSet::IN);
        if let Err(error) = ops.add(messages).and_then(|()| ops.add(end)) {
            log::error!("{PROGRAM} cannot be watched: {error}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.pidfd.as_raw_fd() {
            self.ended(ops);
        } else if !self.messages.pass_on() {
            let _ = ops.remove(Events::new(&self.messages.pipe, EventSet::IN));
        }
    }
}

/// What passt writes to its standard error, line by line.
#[derive(Debug)]
struct Messages {
    /// Never waits.
    pipe: PipeReader,
    /// The line that has not ended yet.
    line: Vec<u8>,
    last: String,
    /// Lines that may still be logged.
    left: u32,
}

impl Messages {
    fn new(pipe: PipeReader) -> Self {
        Self {
            pipe,
            line: Vec::new(),
            last: String::new(),
            left: MAX_LINES,
        }
    }

    /// Logs what there is to read, up to a bound; false if that was all there will ever be.
    fn pass_on(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let count = match self.pipe.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        };
        for &byte in buffer.iter().take(count) {
            match byte {
                b'\n' => self.end_line(),
                byte if self.line.len() < MAX_LINE => self.line.push(byte),
                _ => {}
            }
        }
        true
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        // It speaks to the system log, too, and of that where there is none.
        if line.trim().is_empty() || line.ends_with("to syslog") {
            return;
        }
        self.last = line.trim().to_owned();
        if self.left > 0 {
            self.left -= 1;
            log::info!("{PROGRAM}: {}", self.last.escape_debug());
        }
    }

    /// The last line.
    fn last(&self) -> String {
        match self.last.is_empty() {
            true => "nothing".into(),
            false => self.last.clone(),
        }
    }
}

/// Waits until one of `fds` is readable or at its end, and says which are.
fn wait<const N: usize>(fds: &[&dyn AsFd; N], deadline: Instant) -> Result<[bool; N], PasstError> {
    let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
    let left = deadline.saturating_duration_since(Instant::now());
    match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(fds.map(|fd| !fd.revents().is_empty())),
        Err(e) => Err(PasstError::Io {
            action: "wait for",
            source: e.into(),
        }),
    }
}

fn arguments(publish: &[Publish], mtu: u16) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--foreground",
        "--stderr",
        // The socket.
        "--fd",
        "0",
        // The pipe that is to say when it is ready.
        "--pid",
        "/proc/self/fd/1",
    ]
    .map(str::to_owned)
    .into();
    arguments.extend(["--mtu".into(), mtu.to_string()]);
    for port in publish {
        let option = match port.transport {
            Transport::Tcp => "--tcp-ports",
            Transport::Udp => "--udp-ports",
        };
        let address = port.address.map(|address| format!("{address}/"));
        let address = address.unwrap_or_default();
        let ports = format!("{address}{}:{}", port.host, port.guest);
        arguments.extend([option.into(), ports]);
    }
    arguments
}

/// Whether a port of the host can be had. passt is content with IPv6 where IPv4's is taken.
fn probe(publish: &Publish) -> Result<(), PasstError> {
    let address = publish.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let address = SocketAddr::new(address, publish.host);
    match publish.transport {
        Transport::Tcp => TcpListener::bind(address).map(drop),
        Transport::Udp => UdpSocket::bind(address).map(drop),
    }
    .map_err(|source| PasstError::Port {
        publish: *publish,
        source,
    })
}
