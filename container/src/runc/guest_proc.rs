//! What is at /proc in the mount namespace of the process that stands for a container: the guest's
//! processes, by the guest's numbers. `podman top` goes there and reads.
//!
//! It is a file system of ours (FUSE) with the few files that such tools look at, made of what the agent
//! says when somebody looks. Nobody can write to it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::text::visible;
use cofferdam_agent_protocol::Client;
use cofferdam_agent_protocol::api::ProcessInfo;
use nix::mount::{MsFlags, mount};
use rustix::process::{getegid, geteuid};

use super::control;
use super::store::Container;
use crate::shim::container as of_container;

/// How long one answer of the agent's serves: who looks opens many files.
const FRESH: Duration = Duration::from_secs(1);
/// Of a request, in bytes: the kernel asks for no smaller buffer.
const BUFFER: usize = 64 << 10;
/// What the kernel has as the name of a program, in bytes.
const NAME: usize = 15;
/// The kernel's, in hertz.
const TICKS: i64 = 100;
const SECOND: i64 = 1_000_000_000;

/// A thread that will serve it, with the host's files in reach, as soon as it is mounted.
#[derive(Debug)]
pub(super) struct Server {
    device: Arc<File>,
    mounted: Sender<()>,
}

impl Server {
    /// `None`: this host has no FUSE.
    pub(super) fn start(container: Container) -> Option<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = Arc::new(device.ok()?);
        let (mounted, is_mounted) = channel();
        let theirs = Arc::clone(&device);
        let proc = Proc {
            container,
            agent: None,
            asked: None,
            processes: Vec::new(),
            boot: boot_time(),
        };
        let thread = thread::Builder::new().name("proc".into());
        let work = move || {
            if is_mounted.recv().is_ok() {
                proc.serve(&theirs);
            }
        };
        thread.spawn(work).ok()?;
        Some(Self { device, mounted })
    }

    /// Mounts it at /proc, if the container has a directory there and no link to elsewhere.
    pub(super) fn mount(self) -> io::Result<()> {
        if !std::fs::symlink_metadata("/proc")?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let options = format!(
            "fd={},rootmode=40555,user_id={},group_id={}",
            self.device.as_raw_fd(),
            geteuid().as_raw(),
            getegid().as_raw()
        );
        let flags =
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
        let (source, kind) = (Some("cofferdam"), Some("fuse"));
        mount(source, "/proc", kind, flags, Some(options.as_str()))?;
        // The thread waits for as long as we are there.
        let _ = self.mounted.send(());
        Ok(())
    }
}

/// When the host started, in seconds since 1970.
fn boot_time() -> i64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let time = text.lines().find_map(|line| line.strip_prefix("btime "));
    time.and_then(|time| time.trim().parse().ok()).unwrap_or(0)
}

/// What the kernel asks.
struct Request<'a> {
    operation: u32,
    unique: u64,
    node: Option<Node>,
    body: &'a [u8],
}

/// A number in what the kernel writes.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_ne_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_ne_bytes)
}

/// Of a request's header, in bytes.
const HEADER: usize = 40;

impl<'a> Request<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        Some(Self {
            operation: word(bytes, 4)?,
            unique: long(bytes, 8)?,
            node: Node::of(long(bytes, 16)?),
            body: bytes.get(HEADER..)?,
        })
    }
}

// Operations, as in linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const READLINK: u32 = 5;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// Nothing of it is kept in the host's page cache.
const DIRECT_IO: u32 = 1;

/// A directory, file or link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Root,
    Stat,
    Uptime,
    Process(u32),
    StatOf(u32),
    StatusOf(u32),
    ArgumentsOf(u32),
    NamespacesOf(u32),
    PidNamespaceOf(u32),
}

impl Node {
    fn number(self) -> u64 {
        let of = |pid: u32, kind: u64| u64::from(pid) << 8 | kind;
        match self {
            Self::Root => 1,
            Self::Stat => 2,
            Self::Uptime => 3,
            Self::Process(pid) => of(pid, 0x10),
            Self::StatOf(pid) => of(pid, 0x11),
            Self::StatusOf(pid) => of(pid, 0x12),
            Self::ArgumentsOf(pid) => of(pid, 0x13),
            Self::NamespacesOf(pid) => of(pid, 0x14),
            Self::PidNamespaceOf(pid) => of(pid, 0x15),
        }
    }

    fn of(number: u64) -> Option<Self> {
        let pid = u32::try_from(number >> 8).ok()?;
        Some(match number & 0xff {
            1 => Self::Root,
            2 => Self::Stat,
            3 => Self::Uptime,
            0x10 => Self::Process(pid),
            0x11 => Self::StatOf(pid),
            0x12 => Self::StatusOf(pid),
            0x13 => Self::ArgumentsOf(pid),
            0x14 => Self::NamespacesOf(pid),
            0x15 => Self::PidNamespaceOf(pid),
            _ => return None,
        })
    }

    /// What it is in a directory; a process may be gone.
    fn child(self, name: &str) -> Option<Self> {
        Some(match (self, name) {
            (Self::Root, "stat") => Self::Stat,
            (Self::Root, "uptime") => Self::Uptime,
            (Self::Root, pid) => Self::Process(pid.parse().ok()?),
            (Self::Process(pid), "stat") => Self::StatOf(pid),
            (Self::Process(pid), "status") => Self::StatusOf(pid),
            (Self::Process(pid), "cmdline") => Self::ArgumentsOf(pid),
            (Self::Process(pid), "ns") => Self::NamespacesOf(pid),
            (Self::NamespacesOf(pid), "pid") => Self::PidNamespaceOf(pid),
            _ => return None,
        })
    }

    fn pid(self) -> Option<u32> {
        match self {
            Self::Root | Self::Stat | Self::Uptime => None,
            Self::Process(pid)
            | Self::StatOf(pid)
            | Self::StatusOf(pid)
            | Self::ArgumentsOf(pid)
            | Self::NamespacesOf(pid)
            | Self::PidNamespaceOf(pid) => Some(pid),
        }
    }

    /// Type and rights.
    fn mode(self) -> u32 {
        match self {
            Self::Root | Self::Process(_) | Self::NamespacesOf(_) => 0o040_555,
            Self::PidNamespaceOf(_) => 0o120_777,
            _ => 0o100_444,
        }
    }

    fn attributes(self) -> Vec<u8> {
        let mut all = Vec::with_capacity(88);
        // Size, blocks and times are 0.
        all.extend(self.number().to_ne_bytes());
        all.extend([0; 40 + 12]);
        for value in [self.mode(), 1, 0, 0, 0, 4096, 0] {
            all.extend(value.to_ne_bytes());
        }
        all
    }
}

/// The file system.
struct Proc {
    container: Container,
    agent: Option<Client>,
    asked: Option<Instant>,
    processes: Vec<ProcessInfo>,
    /// The host's start: what is there is as of its clock.
    boot: i64,
}

type Answer = Result<Vec<u8>, i32>;

impl Proc {
    /// Answers the kernel until it is unmounted.
    fn serve(mut self, mut device: &File) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match device.read(&mut buffer) {
                Ok(length) => length,
                // A request that was given up.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) => {
                    continue;
                }
                Err(_) => return,
            };
            let Some(request) = buffer.get(..length).and_then(Request::read) else {
                return;
            };
            if let Some(answer) = self.answer(&request) {
                // Who asked may be gone meanwhile.
                let _ = device.write(&response(request.unique, answer));
            }
        }
    }

    /// `None`: no answer is expected.
    fn answer(&mut self, request: &Request) -> Option<Answer> {
        Some(match request.operation {
            FORGET | BATCH_FORGET | INTERRUPT => return None,
            INIT => Ok(init()),
            RELEASE | RELEASEDIR => Ok(Vec::new()),
            operation => request
                .node
                .ok_or(libc::ENOENT)
                .and_then(|node| self.about(node, operation, request.body)),
        })
    }

    fn about(&mut self, node: Node, operation: u32, body: &[u8]) -> Answer {
        match operation {
            LOOKUP => {
                let name = body.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = std::str::from_utf8(name).map_err(|_| libc::ENOENT)?;
                let child = node.child(name).ok_or(libc::ENOENT)?;
                self.check(child)?;
                // Neither name nor attributes are kept: what is there may be gone.
                let mut entry = child.number().to_ne_bytes().to_vec();
                entry.extend([0; 32]);
                entry.extend(child.attributes());
                Ok(entry)
            }
            GETATTR => Ok([[0; 16].as_slice(), &node.attributes()].concat()),
            OPEN | OPENDIR => {
                self.check(node)?;
                let mut opened = vec![0; 8];
                opened.extend(DIRECT_IO.to_ne_bytes());
                opened.extend([0; 4]);
                Ok(opened)
            }
            READLINK if matches!(node, Node::PidNamespaceOf(_)) => Ok(b"pid:[1]".to_vec()),
            READ | READDIR => {
                let offset = long(body, 8).ok_or(libc::EINVAL)?;
                let offset = usize::try_from(offset).map_err(|_| libc::EINVAL)?;
                let size = word(body, 16).ok_or(libc::EINVAL)?;
                let size = usize::try_from(size).map_err(|_| libc::EINVAL)?;
                if operation == READDIR {
                    return Ok(entries(&self.names(node)?, offset, size));
                }
                let text = self.text(node)?;
                let rest = text.as_bytes().get(offset..).unwrap_or_default();
                Ok(rest.get(..size).unwrap_or(rest).to_vec())
            }
            _ => Err(libc::ENOSYS),
        }
    }

    /// Asks the agent, if its last answer is an old one.
    fn refresh(&mut self) -> Result<(), i32> {
        if self.asked.is_some_and(|asked| asked.elapsed() < FRESH) {
            return Ok(());
        }
        // It is as with processes that are gone when the guest is.
        if self.agent.is_none() {
            self.agent = Some(control::agent(&self.container).map_err(|_| libc::EIO)?);
        }
        let agent = self.agent.as_ref().ok_or(libc::EIO)?;
        let all = agent.pids(of_container(&self.container.record.id));
        self.processes = all.map_err(|_| libc::EIO)?.processes;
        self.asked = Some(Instant::now());
        Ok(())
    }

    fn check(&mut self, node: Node) -> Result<(), i32> {
        match node.pid() {
            None => Ok(()),
            Some(pid) => self.process(pid).map(drop),
        }
    }

    fn process(&mut self, pid: u32) -> Result<&ProcessInfo, i32> {
        self.refresh()?;
        let found = self.processes.iter().find(|process| process.pid == pid);
        found.ok_or(libc::ENOENT)
    }

    /// What is in a directory.
    fn names(&mut self, node: Node) -> Result<Vec<(String, Node)>, i32> {
        let names: Vec<String> = match node {
            Node::Root => {
                self.refresh()?;
                let pids = self.processes.iter().map(|process| process.pid.to_string());
                ["stat", "uptime"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain(pids)
                    .collect()
            }
            Node::Process(_) => ["stat", "status", "cmdline", "ns"]
                .map(str::to_owned)
                .to_vec(),
            Node::NamespacesOf(_) => vec!["pid".to_owned()],
            _ => return Err(libc::ENOTDIR),
        };
        let child = |name: String| node.child(&name).map(|child| (name, child));
        Ok(names.into_iter().filter_map(child).collect())
    }

    /// What is in a file.
    fn text(&mut self, node: Node) -> Result<String, i32> {
        let boot = self.boot;
        Ok(match node {
            Node::Stat => format!("btime {boot}\n"),
            Node::Uptime => std::fs::read_to_string("/proc/uptime").map_err(|_| libc::EIO)?,
            Node::StatOf(pid) => stat(self.process(pid)?, boot),
            Node::StatusOf(pid) => status(self.process(pid)?),
            Node::ArgumentsOf(pid) => arguments(self.process(pid)?),
            _ => return Err(libc::EISDIR),
        })
    }
}

/// The program's name as the kernel would have it, without what confuses who reads it.
fn name(process: &ProcessInfo) -> String {
    let program = process.command.first().map_or("", String::as_str);
    let program = program.rsplit('/').next().unwrap_or_default();
    let is_plain = |letter: &char| letter.is_ascii_graphic() && !"()[]".contains(*letter);
    program.chars().filter(is_plain).take(NAME).collect()
}

fn state(process: &ProcessInfo) -> char {
    let state = process.state.chars().next();
    state.filter(char::is_ascii_alphabetic).unwrap_or('S')
}

fn stat(process: &ProcessInfo, boot: i64) -> String {
    let ticks = process.cpu_us / 10_000;
    let started = process
        .started_unix_ns
        .saturating_sub(boot.saturating_mul(SECOND));
    let started = (started / (SECOND / TICKS)).max(0);
    let (pid, name, state, ppid) = (process.pid, name(process), state(process), process.ppid);
    // Up to the CPU's time, the number of threads and the start; the others are 0.
    let zeros = |count| vec!["0"; count].join(" ");
    format!(
        "{pid} ({name}) {state} {ppid} {pid} {pid} 0 -1 {} {ticks} 0 0 0 20 0 1 0 {started} {}\n",
        zeros(5),
        zeros(30)
    )
}

fn status(process: &ProcessInfo) -> String {
    let (pid, uid) = (process.pid, process.uid);
    format!(
        "Name:\t{}\nState:\t{}\nTgid:\t{pid}\nPid:\t{pid}\nPPid:\t{}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n\
         Gid:\t0\t0\t0\t0\nThreads:\t1\n",
        name(process),
        state(process),
        process.ppid
    )
}

/// Its arguments. What a terminal would obey is not in them.
fn arguments(process: &ProcessInfo) -> String {
    let words = process.command.iter().map(|word| visible(word) + "\0");
    words.collect()
}

/// The version of FUSE that we speak, and that nothing is written at once.
fn init() -> Vec<u8> {
    let mut answer = Vec::with_capacity(64);
    for value in [7u32, 31, 0, 0, 0, 4096, 1] {
        answer.extend(value.to_ne_bytes());
    }
    answer.resize(64, 0);
    answer
}

/// Entries of a directory from the one at `offset`, as many as fit.
fn entries(names: &[(String, Node)], offset: usize, size: usize) -> Vec<u8> {
    let mut all = Vec::new();
    for (at, (name, node)) in names.iter().enumerate().skip(offset) {
        let mut entry = node.number().to_ne_bytes().to_vec();
        let next = u64::try_from(at + 1).unwrap_or(u64::MAX);
        entry.extend(next.to_ne_bytes());
        entry.extend(u32::try_from(name.len()).unwrap_or(0).to_ne_bytes());
        entry.extend((node.mode() >> 12).to_ne_bytes());
        entry.extend(name.as_bytes());
        entry.resize(entry.len().next_multiple_of(8), 0);
        if all.len() + entry.len() > size {
            break;
        }
        all.extend(entry);
    }
    all
}

fn response(unique: u64, answer: Answer) -> Vec<u8> {
    let (error, body) = match answer {
        Ok(body) => (0, body),
        Err(error) => (-error, Vec::new()),
    };
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut all = length.to_ne_bytes().to_vec();
    all.extend(error.to_ne_bytes());
    all.extend(unique.to_ne_bytes());
    all.extend(body);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(words: &[&str]) -> ProcessInfo {
        let mut process = ProcessInfo::new();
        (process.pid, process.ppid, process.uid) = (7, 1, 1000);
        process.command = words.iter().map(|&word| word.to_owned()).collect();
        process.cpu_us = 1_230_000;
        process.started_unix_ns = 105 * SECOND;
        process.state = "R".into();
        process
    }

    /// If it fails, `podman top` shows other figures than the guest's.
    #[test]
    fn files_are_as_the_kernels() {
        let process = process(&["/bin/a) b", "c"]);
        let text = stat(&process, 100);
        assert!(
            text.starts_with("7 (ab) R 1 7 7 0 -1 0 0 0 0 0 123 0 "),
            "{text}"
        );
        let fields: Vec<&str> = text.split_whitespace().collect();
        assert_eq!((fields.len(), fields[21]), (52, "500"));
        assert!(status(&process).contains("\nUid:\t1000\t1000\t"));
        assert_eq!(arguments(&process), "/bin/a) b\0c\0");
    }

    /// If it fails, a container has who looks at its processes obey it.
    #[test]
    fn names_do_no_harm() {
        let process = process(&["\x1b[2J\n(x) Z 1", "\x1b]0;x\x07"]);
        assert_eq!(name(&process), "2JxZ1");
        assert!(arguments(&process).starts_with("\\x1b[2J\\n(x) Z 1\0\\x1b]0;x"));
        let mut odd = process.clone();
        odd.state = "\n".into();
        assert_eq!(state(&odd), 'S');
        odd.command.clear();
        assert_eq!((name(&odd).as_str(), arguments(&odd).as_str()), ("", ""));
        odd.started_unix_ns = i64::MIN;
        assert!(stat(&odd, i64::MAX).contains(" 0 0 "));
    }

    /// If it fails, the kernel takes one file for another, or reads a directory without end.
    #[test]
    fn directories_end() {
        let nodes = [
            Node::Root,
            Node::Stat,
            Node::Uptime,
            Node::Process(u32::MAX),
            Node::StatOf(1),
            Node::StatusOf(1),
            Node::ArgumentsOf(1),
            Node::NamespacesOf(1),
            Node::PidNamespaceOf(1),
        ];
        for node in nodes {
            assert_eq!(Node::of(node.number()), Some(node));
            assert_eq!(node.attributes().len(), 88);
        }
        let names = [
            ("1".to_owned(), Node::Process(1)),
            ("long name".to_owned(), Node::Stat),
        ];
        let both = entries(&names, 0, 4096);
        assert_eq!(both.len(), 32 + 40);
        assert_eq!(entries(&names, 0, 40).len(), 32);
        assert_eq!(entries(&names, 1, 4096), both[32..]);
        assert!(entries(&names, 2, 4096).is_empty());
        assert_eq!(response(1, Err(libc::ENOENT)).len(), 16);
        assert_eq!(init().len(), 64);
    }
}
