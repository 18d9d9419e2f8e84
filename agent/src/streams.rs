//! The byte streams between processes and the host: connections that wait for their process, and
//! threads that copy.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::api;
use cofferdam_agent_protocol::stream::{Greeting, Name};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};

use crate::error::{Context, Error, Result};

/// How long a process waits for its streams; far longer than it needs, since hosts may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that nobody claims; beyond that the oldest goes.
const MAX_WAITING: usize = 256;

/// Descriptors of a process's beyond the standard ones: what one message between processes carries is bounded.
pub const MAX_DESCRIPTORS: usize = 64;

/// Of a thread that copies, in bytes.
pub const STACK: usize = 128 << 10;

/// What is copied at once, in bytes.
const BUFFER: usize = 32 << 10;

/// Connections that wait for who they are for.
#[derive(Debug, Default)]
pub struct Waiting {
    connections: Mutex<Vec<(Greeting, File)>>,
    arrived: Condvar,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Vec<(Greeting, File)>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection has said what it is.
    pub fn add(&self, greeting: Greeting, connection: File) {
        let mut all = self.lock();
        if all.len() >= MAX_WAITING {
            all.remove(0);
        }
        all.push((greeting, connection));
        self.arrived.notify_all();
    }

    /// Those of a token are of no use any more.
    pub fn forget(&self, token: &str) {
        self.lock().retain(|(greeting, _)| greeting.token != token);
    }

    /// The connections of `token` with these names, as soon as all are there.
    pub fn take(&self, token: &str, names: &[Name]) -> Result<Vec<File>> {
        let until = Instant::now() + PATIENCE;
        let mut all = self.lock();
        loop {
            let position = |all: &[(Greeting, File)], name: Name| {
                all.iter()
                    .position(|(it, _)| it.name == name && it.token == token)
            };
            let missing = names.iter().find(|name| position(&all, **name).is_none());
            let Some(missing) = missing else {
                let take = |name: &Name| position(&all, *name).map(|at| all.remove(at).1);
                return Ok(names.iter().filter_map(take).collect());
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = format!("the stream {missing} of {token}");
                let why = format!("was not connected within {PATIENCE:?}");
                return Err(Error::State { what, why });
            }
            let result = self.arrived.wait_timeout(all, left);
            all = result.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The names of the streams that were announced.
pub fn names_of(streams: &api::Streams, terminal: bool) -> Result<Vec<Name>> {
    if streams.stderr && terminal {
        return Err(Error::invalid("streams.stderr", "a terminal has none"));
    }
    let all = [
        (streams.stdin, Name::Stdin),
        (streams.stdout, Name::Stdout),
        (streams.stderr, Name::Stderr),
    ];
    let standard = all.iter().filter(|(wanted, _)| *wanted);
    let mut names: Vec<_> = standard.map(|(_, name)| *name).collect();
    let mut numbers: Vec<u32> = [&streams.inputs[..], &streams.outputs].concat();
    numbers.sort_unstable();
    let count = numbers.len();
    numbers.dedup();
    if numbers.len() < count || count > MAX_DESCRIPTORS || numbers.first() < Some(&3) && count > 0 {
        let why = format!("{numbers:?}: {MAX_DESCRIPTORS} at most are expected, each once, from 3");
        return Err(Error::invalid("streams.inputs and outputs", why));
    }
    names.extend(streams.inputs.iter().copied().map(Name::Input));
    names.extend(streams.outputs.iter().copied().map(Name::Output));
    if streams.token.is_empty() && !names.is_empty() {
        return Err(Error::invalid("streams.token", "there is none"));
    }
    Ok(names)
}

/// The numbers of the further descriptors among them, in their order.
pub fn numbers_of(names: &[Name]) -> Vec<u32> {
    let number = |name: &Name| match name {
        Name::Input(number) | Name::Output(number) => Some(*number),
        _ => None,
    };
    names.iter().filter_map(number).collect()
}

/// What is still passed on when a process has ended and others have its output: what it left running in the
/// background keeps nobody waiting for long.
#[derive(Debug, Clone, Copy)]
struct Rest {
    /// How long it may be silent.
    silence: Duration,
    /// How long those who still have it are waited for in all. The time that the host takes to read does
    /// not count, or a slow reader would lose something.
    time: Duration,
    /// How much may still come, in bytes: what the process itself has written is not more.
    bytes: usize,
}

/// Of a pipe, for which Docker waits as long.
const OF_PIPE: Rest = Rest {
    silence: Duration::from_secs(2),
    time: Duration::from_secs(2),
    bytes: 1 << 20,
};

/// Of a terminal: what was written last is still on its way through the kernel.
const OF_TERMINAL: Rest = Rest {
    silence: Duration::from_millis(100),
    time: Duration::from_secs(1),
    bytes: 128 << 10,
};

/// What is to be copied: the agent's end of a process's streams, by name.
#[derive(Debug)]
pub struct Ends {
    all: Vec<(Name, File)>,
    /// The terminal's other side.
    peer: Option<OwnedFd>,
}

/// What of a process's streams does not end by itself when the process does.
#[derive(Debug, Default)]
pub struct Live {
    /// The connection of its standard input.
    stdin: Option<File>,
    /// Those of others that it reads.
    inputs: Vec<File>,
    /// Dropped, its outputs come to their ends, whoever else has them.
    outputs: Vec<PipeWriter>,
    /// A process may close its terminal, and open it again when it has something to say, as systemd does.
    /// For as long as we have it open, too, that is not the terminal's end.
    _peer: Option<OwnedFd>,
}

impl Live {
    /// Ends its standard input.
    pub fn end_stdin(&mut self) {
        self.stdin.take().iter().for_each(end_input);
    }

    /// The process has ended.
    pub fn end(mut self) {
        self.end_stdin();
        self.inputs.iter().for_each(end_input);
    }
}

fn end_input(connection: &File) {
    // If it is at its end already, all is well.
    let _ = shutdown(connection.as_raw_fd(), Shutdown::Read);
}

/// Pipes for the streams that are announced, but standard ones of a process that has a terminal for them;
/// /dev/null for the other standard ones. The process's descriptors, the three standard ones first, and the
/// agent's ends.
pub fn pipes(names: &[Name], has_terminal: bool) -> Result<(Vec<OwnedFd>, Ends)> {
    const STANDARD: [Name; 3] = [Name::Stdin, Name::Stdout, Name::Stderr];
    let others = names.iter().filter(|name| !STANDARD.contains(name));
    let mut ends = Vec::new();
    let mut one = |name: &Name| -> io::Result<OwnedFd> {
        if STANDARD.contains(name) && (has_terminal || !names.contains(name)) {
            let null = File::options().read(true).write(true).open("/dev/null");
            return Ok(null?.into());
        }
        let (read, write) = io::pipe()?;
        let (theirs, ours): (OwnedFd, OwnedFd) = match name {
            Name::Stdin | Name::Input(_) => (read.into(), write.into()),
            _ => (write.into(), read.into()),
        };
        ends.push((*name, ours.into()));
        Ok(theirs)
    };
    let all: io::Result<Vec<_>> = STANDARD.iter().chain(others).map(&mut one).collect();
    let all = all.context(|| "make the process's streams".into())?;
    let ends = Ends {
        all: ends,
        peer: None,
    };
    Ok((all, ends))
}

impl Ends {
    /// With those of a terminal's that are announced.
    pub fn with_terminal(mut self, master: &OwnedFd, names: &[Name]) -> Result<Self> {
        let mut missing = Vec::new();
        for name in names {
            if self.all.iter().all(|(there, _)| there != name) {
                let end = master.try_clone().context(|| "share the terminal".into())?;
                missing.push((*name, end.into()));
            }
        }
        self.all.splice(..0, missing);
        self.peer = Some(peer_of(master).context(|| "open the terminal".into())?);
        Ok(self)
    }

    /// Starts to copy between them and the connections, which are those of the same names.
    pub fn connect(self, connections: Vec<File>, has_terminal: bool) -> Result<Live> {
        let mut live = Live {
            _peer: self.peer,
            ..Live::default()
        };
        for ((name, end), connection) in self.all.into_iter().zip(connections) {
            let copying = thread::Builder::new()
                .name(name.to_string())
                .stack_size(STACK);
            let copying = if let Name::Stdin | Name::Input(_) = name {
                let copy_of = connection.try_clone().context(|| "share a stream".into())?;
                match name {
                    Name::Stdin => live.stdin = Some(copy_of),
                    _ => live.inputs.push(copy_of),
                }
                copying.spawn(move || copy(connection, end))
            } else {
                let (over, running) = io::pipe().context(|| "make a pipe".into())?;
                live.outputs.push(running);
                let is_terminal = has_terminal && name == Name::Stdout;
                copying.spawn(move || copy_output(end, connection, &over, is_terminal))
            };
            copying.context(|| format!("start a thread for {name}"))?;
        }
        Ok(live)
    }
}

/// The side of a terminal that programs have, whatever is mounted where they look for it.
fn peer_of(master: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: it takes a number, and gives a descriptor.
    let fd = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    match fd {
        0.. => {
            // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Copies what the host says until one of them is at its end, and closes both.
fn copy(mut from: File, mut to: File) {
    let mut buffer = vec![0; BUFFER];
    while read(&mut from, &mut buffer).is_some_and(|count| write(&mut to, &buffer, count)) {}
}

/// Copies a process's output until all who have it have closed it, or the process has ended and its
/// [`Rest`] is over. Where the host is gone a pipe is closed at once: who writes learns of it, and nothing is
/// kept for who never writes again. A process with a terminal goes on, as one does from whose terminal its
/// user has detached: nobody sees what it writes.
fn copy_output(mut from: File, to: File, over: &PipeReader, is_terminal: bool) {
    let mut buffer = vec![0; BUFFER];
    let mut to = Some(to);
    let mut rest: Option<Rest> = None;
    loop {
        let timeout = rest.map_or(PollTimeout::NONE, |rest| {
            PollTimeout::try_from(rest.silence.min(rest.time)).unwrap_or(PollTimeout::ZERO)
        });
        let over = rest.is_none().then(|| over.as_fd());
        let asked = [
            (Some(from.as_fd()), PollFlags::POLLIN),
            (to.as_ref().map(File::as_fd), GONE),
            (over, PollFlags::POLLIN),
        ];
        let begun = Instant::now();
        let Some([has_more, is_gone, has_ended]) = wait_for(asked, timeout) else {
            return;
        };
        let waited = begun.elapsed();
        if has_more {
            let Some(count) = read(&mut from, &mut buffer) else {
                return;
            };
            to = to.filter(|mut to| write(&mut to, &buffer, count));
            if let Some(rest) = &mut rest {
                rest.bytes = rest.bytes.saturating_sub(count);
                rest.time = rest.time.saturating_sub(waited);
                if rest.bytes == 0 || rest.time.is_zero() {
                    return;
                }
            }
        }
        to = to.filter(|_| !is_gone);
        if has_ended {
            rest = Some(if is_terminal { OF_TERMINAL } else { OF_PIPE });
        }
        if to.is_none() && (rest.is_some() || !is_terminal) {
            return;
        }
    }
}

/// What is said of a connection or pipe that nobody reads any more.
const GONE: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

/// Waits until something is to be said of one of those that are there, and says of which; nothing if that
/// takes too long.
fn wait_for<const N: usize>(
    asked: [(Option<BorrowedFd>, PollFlags); N],
    timeout: PollTimeout,
) -> Option<[bool; N]> {
    let there = asked
        .iter()
        .filter_map(|(fd, flags)| Some((*fd.as_ref()?, *flags)));
    let mut polled: Vec<PollFd> = there.map(|(fd, flags)| PollFd::new(fd, flags)).collect();
    match poll(&mut polled, timeout) {
        Err(Errno::EINTR) => return Some([false; N]),
        Ok(0) | Err(_) => return None,
        Ok(_) => {}
    }
    // What the crate has no name for is an answer, too.
    let mut answers = polled.iter().map(|fd| fd.any() != Some(false));
    Some(asked.map(|(fd, _)| fd.is_some() && answers.next() == Some(true)))
}

/// Reads what there is and says how much; nothing at the end.
fn read(from: &mut File, buffer: &mut [u8]) -> Option<usize> {
    match from.read(buffer) {
        Ok(0) => None,
        Ok(count) => Some(count),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Some(0),
        // A terminal's when the last process has closed it; a connection's when the host is gone.
        Err(_) => None,
    }
}

/// Whether somebody takes the first bytes of a buffer.
fn write(to: &mut impl Write, buffer: &[u8], count: usize) -> bool {
    to.write_all(buffer.get(..count).unwrap_or_default())
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    fn greeting(name: Name) -> Greeting {
        let token = "t".into();
        Greeting { name, token }
    }

    fn null() -> File {
        File::open("/dev/null").unwrap()
    }

    /// If it fails, a process starts without its streams, with another's, or never.
    #[test]
    fn a_process_waits_for_all_its_streams() {
        let waiting = Arc::new(Waiting::default());
        waiting.add(greeting(Name::Stdout), null());
        let other = waiting.clone();
        let taker = thread::spawn(move || other.take("t", &[Name::Stdin, Name::Stdout]));
        thread::sleep(Duration::from_millis(20));
        assert!(!taker.is_finished());
        waiting.add(greeting(Name::Stdin), null());
        assert_eq!(taker.join().unwrap().unwrap().len(), 2);
        assert!(waiting.lock().is_empty());
    }

    /// If it fails, who connects and is never claimed fills the memory of the guest.
    #[test]
    fn the_unclaimed_are_few() {
        let waiting = Waiting::default();
        for _ in 0..MAX_WAITING + 10 {
            waiting.add(greeting(Name::Stderr), null());
        }
        assert_eq!(waiting.lock().len(), MAX_WAITING);
        waiting.forget("t");
        assert!(waiting.lock().is_empty());
    }

    /// If it fails, bytes are lost on their way, or the end of a stream is.
    #[test]
    fn pipes_are_copied_to_their_end() {
        let (mut theirs, ends) = pipes(&[Name::Stdout], false).unwrap();
        let (mut host, connection) = io::pipe().unwrap();
        let connection = File::from(OwnedFd::from(connection));
        let live = ends.connect(vec![connection], false).unwrap();
        assert!(live.stdin.is_none());
        let stdout = theirs.swap_remove(1);
        let text = "x".repeat(BUFFER * 3 + 1);
        let expected = text.clone();
        let writer = thread::spawn(move || File::from(stdout).write_all(text.as_bytes()).unwrap());
        let mut found = String::new();
        host.read_to_string(&mut found).unwrap();
        writer.join().unwrap();
        assert_eq!(found, expected);
    }

    /// If it fails, what a process prints is lost that closes its terminal and opens it again, as systemd does.
    #[test]
    fn a_terminal_that_is_closed_comes_back() {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let (_, ends) = pipes(&[Name::Stdout], true).unwrap();
        let ends = ends
            .with_terminal(&terminal.master, &[Name::Stdout])
            .unwrap();
        let (mut host, connection) = io::pipe().unwrap();
        let connection = File::from(OwnedFd::from(connection));
        let path = nix::unistd::ttyname(&terminal.slave).unwrap();
        let live = ends.connect(vec![connection], true).unwrap();
        let mut buffer = [0; 16];
        for (word, slave) in [("one", Some(terminal.slave)), ("two", None)] {
            let slave = slave.map_or_else(
                || File::options().write(true).open(&path).unwrap(),
                File::from,
            );
            (&slave).write_all(word.as_bytes()).unwrap();
            drop(slave);
            let count = host.read(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], word.as_bytes());
            // Long enough for who takes that for the end.
            thread::sleep(Duration::from_millis(50));
        }
        live.end();
        assert_eq!(host.read(&mut buffer).unwrap(), 0);
    }

    /// If it fails, a process has another's descriptors, or one that nobody announced.
    #[test]
    fn further_descriptors_come_behind_the_standard_ones() {
        let mut streams = api::Streams::new();
        (streams.token, streams.stdout) = ("t".into(), true);
        (streams.inputs, streams.outputs) = (vec![5, 3], vec![4]);
        let names = names_of(&streams, true).unwrap();
        let [five, three, four] = [Name::Input(5), Name::Input(3), Name::Output(4)];
        assert_eq!(names, [Name::Stdout, five, three, four]);
        let (theirs, ends) = pipes(&names, true).unwrap();
        assert_eq!(theirs.len(), 6);
        let terminal = nix::pty::openpty(None, None).unwrap();
        let ends = ends.with_terminal(&terminal.master, &names).unwrap();
        let found: Vec<_> = ends.all.iter().map(|(name, _)| *name).collect();
        assert_eq!(found, names);
        for (inputs, outputs) in [
            (vec![2], vec![]),
            (vec![3], vec![3]),
            ((3..68).collect(), vec![]),
        ] {
            (streams.inputs, streams.outputs) = (inputs, outputs);
            assert!(names_of(&streams, false).is_err());
        }
    }

    /// If it fails, who runs a process with a terminal waits for what that left in the background, or
    /// loses its last words.
    #[test]
    fn a_terminal_ends_with_its_process() {
        let (from, mut background) = io::pipe().unwrap();
        let (mut host, to) = io::pipe().unwrap();
        let (over, live) = io::pipe().unwrap();
        let [from, to] = [OwnedFd::from(from), OwnedFd::from(to)].map(File::from);
        let copying = thread::spawn(move || copy_output(from, to, &over, true));
        background.write_all(b"first ").unwrap();
        thread::sleep(2 * OF_TERMINAL.silence);
        background.write_all(b"last").unwrap();
        drop(live);
        let mut found = String::new();
        host.read_to_string(&mut found).unwrap();
        copying.join().unwrap();
        assert_eq!(found, "first last");
        drop(background);
    }

    /// If it fails, who runs a process with a terminal waits for ever for one in the background that
    /// does not stop writing, or a host that reads slowly loses the process's own words.
    #[test]
    fn a_terminal_ends_however_much_is_written() {
        let (from, mut background) = io::pipe().unwrap();
        let (mut host, to) = io::pipe().unwrap();
        let (over, live) = io::pipe().unwrap();
        let [from, to] = [OwnedFd::from(from), OwnedFd::from(to)].map(File::from);
        let copying = thread::spawn(move || copy_output(from, to, &over, true));
        let chatter = thread::spawn(move || while background.write_all(&[b'x'; 4096]).is_ok() {});
        drop(live);
        // More than the time for which those in the background are waited for.
        thread::sleep(OF_TERMINAL.time + OF_TERMINAL.silence);
        let mut found = String::new();
        host.read_to_string(&mut found).unwrap();
        copying.join().unwrap();
        chatter.join().unwrap();
        assert!(found.len() >= OF_TERMINAL.bytes, "{}", found.len());
    }
    /// If it fails, each process in the background whose host is gone, and that never writes again, takes a
    /// thread and a connection for as long as it lives.
    #[test]
    fn nothing_is_kept_for_who_never_writes() {
        let (mut theirs, ends) = pipes(&[Name::Stdout], false).unwrap();
        let (host, connection) = UnixStream::pair().unwrap();
        let connection = File::from(OwnedFd::from(connection));
        let live = ends.connect(vec![connection], false).unwrap();
        drop(host);
        let stdout = theirs.swap_remove(1);
        let mut stdout = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        poll(&mut stdout, PollTimeout::NONE).unwrap();
        assert_eq!(stdout[0].revents(), Some(PollFlags::POLLERR));
        drop(live);
    }

    /// If it fails, a process from whose terminal its user has detached is ended, or held up, by what it
    /// writes.
    #[test]
    fn a_terminal_goes_on_when_nobody_sees_it() {
        let (from, mut process) = io::pipe().unwrap();
        let (host, to) = UnixStream::pair().unwrap();
        let (over, live) = io::pipe().unwrap();
        let [from, to] = [OwnedFd::from(from), OwnedFd::from(to)].map(File::from);
        let copying = thread::spawn(move || copy_output(from, to, &over, true));
        drop(host);
        // More than any pipe holds.
        process.write_all(&vec![b'x'; 4 << 20]).unwrap();
        assert!(!copying.is_finished());
        drop(live);
        copying.join().unwrap();
    }

    /// If it fails, who runs a process waits for ever for what that left in the background with its
    /// output, or loses the process's own words.
    #[test]
    fn a_pipe_ends_with_its_process() {
        let (mut theirs, ends) = pipes(&[Name::Stdout], false).unwrap();
        let (mut host, connection) = io::pipe().unwrap();
        let connection = File::from(OwnedFd::from(connection));
        let live = ends.connect(vec![connection], false).unwrap();
        let stdout = theirs.swap_remove(1);
        let mut stdout = File::from(stdout);
        // All that a pipe holds.
        stdout.write_all(&[b'x'; 64 << 10]).unwrap();
        live.end();
        let mut found = String::new();
        host.read_to_string(&mut found).unwrap();
        assert_eq!(found.len(), 64 << 10);
        // And now the background, which is told.
        assert!(stdout.write_all(b"late").is_err());
    }
}
