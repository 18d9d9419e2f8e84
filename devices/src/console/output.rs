//! The way of a serial line's output to the host: buffered, bounded, and never waited for.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use log::warn;
use rustix::event::{PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};

use super::shared::{How, open_again, ready};

/// Bytes that are kept for a host that does not take them. Older ones make place for newer.
const KEPT: usize = 64 << 10;
/// A line longer than this is written before it ends.
const CHUNK: usize = 4 << 10;
/// How long an unfinished line, a prompt for example, waits for its end, in nanoseconds.
const PATIENCE: i64 = 2_000_000;

/// Bytes that a terminal or pipe surely takes once poll says that it takes any.
const SMALL: usize = 256;

/// Something that output can be written to without waiting.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    how: How,
}

impl Sink {
    /// Our own file, or a descriptor in non-blocking mode.
    pub(super) fn own(file: impl Into<OwnedFd>) -> Self {
        Self {
            file: File::from(file.into()),
            how: How::Directly,
        }
    }

    /// A descriptor that other processes share.
    pub(super) fn shared(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let (file, how) = open_again(fd, OpenOptions::new().write(true))?;
        Ok(Self { file, how })
    }

    fn write(&mut self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        match self.how {
            How::Directly => self
                .file
                .write_vectored(&[IoSlice::new(first), IoSlice::new(second)]),
            How::AsSocket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(rustix::net::send(&self.file, first, flags)?)
            }
            How::AfterPoll if !self.wait(Duration::ZERO) => Err(ErrorKind::WouldBlock.into()),
            How::AfterPoll => self.file.write(&first[..first.len().min(SMALL)]),
        }
    }

    /// Waits up to `time` until a write would do something, be it to fail.
    fn wait(&self, time: Duration) -> bool {
        ready(self.file.as_fd(), PollFlags::OUT, time)
    }
}

/// A serial line's output. Whoever sends a byte never waits: a line is written when it ends, an
/// unfinished one by the event loop 2 ms later, and what the host does not take is kept, up to
/// 64 KiB, the newest.
#[derive(Debug)]
pub struct ConsoleOutput {
    sink: Option<Sink>,
    buffer: VecDeque<u8>,
    kept: usize,
    timer: OwnedFd,
    timer_armed: bool,
    /// The sink would not take more; the event loop waits until it does.
    blocked: bool,
    /// Nobody is at the sink's other end any more. The event loop may be watching the sink, so it
    /// is for the event loop to close it.
    gone: bool,
    dropped: u64,
    /// Something went wrong and was logged; the guest shall not make us say it again.
    complained: bool,
}

impl ConsoleOutput {
    /// Output that leads nowhere yet, and is kept. Fails where the host is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            sink: None,
            buffer: VecDeque::new(),
            kept: KEPT,
            timer: rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?,
            timer_armed: false,
            blocked: false,
            gone: false,
            dropped: 0,
            complained: false,
        })
    }

    /// Output that nobody will ever want.
    pub fn discard() -> io::Result<Self> {
        Ok(Self {
            kept: 0,
            ..Self::new()?
        })
    }

    /// Bytes that were lost because the host did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Bytes that wait to be written.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The guest sends `byte`.
    pub fn push(&mut self, byte: u8) {
        if self.kept == 0 {
            return;
        }
        if self.buffer.len() >= self.kept {
            self.buffer.pop_front();
            self.lose(1, "its reader is too slow");
        }
        self.buffer.push_back(byte);
        if !self.attached() || self.blocked {
            return;
        }
        if byte == b'\n' || self.buffer.len() >= CHUNK {
            self.flush();
        } else {
            self.arm_timer();
        }
    }

    /// Writes what the host takes now.
    pub fn flush(&mut self) {
        while let (Some(sink), false) = (&mut self.sink, self.gone) {
            if self.blocked || self.buffer.is_empty() {
                return;
            }
            let (first, second) = self.buffer.as_slices();
            match sink.write(first, second) {
                Ok(0) => self.block(),
                Ok(n) => drop(self.buffer.drain(..n.min(self.buffer.len()))),
                Err(e) => self.write_failed(&e),
            }
        }
    }

    /// Writes what is left, waiting up to `time` in all for the host to take it.
    pub fn drain(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            self.blocked = false;
            self.flush();
            let left = end.saturating_duration_since(Instant::now());
            match &self.sink {
                Some(sink) if self.blocked && !self.gone && !left.is_zero() => sink.wait(left),
                _ => return,
            };
        }
    }

    fn write_failed(&mut self, error: &io::Error) {
        match error.kind() {
            ErrorKind::Interrupted => {}
            ErrorKind::WouldBlock => self.block(),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                self.gone = true;
                self.arm_timer();
            }
            _ => {
                // A full disk may have room again later; what comes until then is lost.
                let lost = self.buffer.len();
                self.buffer.clear();
                self.lose(lost, &error.to_string());
            }
        }
    }

    fn lose(&mut self, bytes: usize, cause: &str) {
        self.dropped = self.dropped.saturating_add(bytes as u64);
        if self.sink.is_some() && !self.complained {
            self.complained = true;
            warn!("console output is being lost: {cause}");
        }
    }

    fn block(&mut self) {
        self.blocked = true;
        // The event loop looks after a blocked sink, and the timer is how it learns of one.
        self.arm_timer();
    }

    fn arm_timer(&mut self) {
        if self.timer_armed {
            return;
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: 0,
                tv_nsec: PATIENCE,
            },
        };
        let armed =
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok();
        self.timer_armed = armed;
    }

    /// The descriptor that becomes readable when [`Self::timer_fired`] is due.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    pub(super) fn timer_fired(&mut self) {
        let mut expirations = [0; 8];
        if rustix::io::read(&self.timer, &mut expirations) != Err(Errno::AGAIN) {
            self.timer_armed = false;
        }
        self.flush();
    }

    /// The sink, while it must be watched for taking more.
    pub(super) fn blocked(&self) -> Option<BorrowedFd<'_>> {
        self.sink().filter(|_| self.blocked)
    }

    /// The sink's descriptor.
    pub(super) fn sink(&self) -> Option<BorrowedFd<'_>> {
        Some(self.sink.as_ref()?.file.as_fd())
    }

    /// Whether the sink is there, but nobody at its other end.
    pub(super) fn gone(&self) -> bool {
        self.gone
    }

    /// The sink may take more.
    pub(super) fn unblock(&mut self) {
        self.blocked = false;
        self.flush();
    }

    pub(super) fn attached(&self) -> bool {
        self.sink.is_some() && !self.gone
    }

    /// Leads the output to `sink`, first of all what was kept.
    pub(super) fn attach(&mut self, sink: Sink) {
        self.sink = Some(sink);
        self.blocked = false;
        self.gone = false;
        self.complained = false;
        self.flush();
    }

    /// Lets go of the sink. What comes is kept.
    pub(super) fn detach(&mut self) {
        self.sink = None;
        self.blocked = false;
        self.gone = false;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (ConsoleOutput, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut output = ConsoleOutput::new().unwrap();
        output.attach(Sink::own(ours));
        (output, theirs)
    }

    fn send(output: &mut ConsoleOutput, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| output.push(byte));
    }

    fn received(stream: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    }

    /// If it fails, output comes late, or each byte costs a system call.
    #[test]
    fn a_line_is_written_at_its_end_and_a_prompt_by_the_timer() {
        let (mut output, mut theirs) = pair();
        send(&mut output, b"line\n# ");
        assert_eq!(received(&mut theirs), b"line\n");
        assert!(ready(output.timer(), PollFlags::IN, Duration::from_secs(1)));
        output.timer_fired();
        assert_eq!(received(&mut theirs), b"# ");
        assert!(!output.timer_armed);
    }

    /// If it fails, a host that reads slowly stops a vCPU, or its memory is filled by the guest.
    #[test]
    fn a_reader_that_does_not_read_costs_the_oldest_output_only() {
        let (mut output, mut theirs) = pair();
        let line = [[b'.'; 63].as_slice(), b"\n"].concat();
        for _ in 0..(1 << 20) / 64 {
            send(&mut output, &line);
        }
        send(&mut output, b"end\n");
        assert!(output.blocked().is_some());
        assert_eq!(output.buffered(), KEPT);
        assert!(output.dropped() > 0);
        let mut seen = received(&mut theirs);
        while output.buffered() > 0 {
            output.unblock();
            seen.extend(received(&mut theirs));
        }
        assert!(seen.ends_with(b".\nend\n"));
        assert_eq!(seen.len() as u64 + output.dropped(), (1 << 20) + 4);
    }

    /// If it fails, who connects to a console late sees nothing of what led there.
    #[test]
    fn the_newest_output_is_kept_while_nobody_listens() {
        let (mut output, theirs) = pair();
        drop(theirs);
        send(&mut output, b"gone\n");
        assert!(!output.attached());
        send(&mut output, &[b'x'; 2 * KEPT]);
        send(&mut output, b"tail");
        assert_eq!(output.buffered(), KEPT);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        output.attach(Sink::own(ours));
        let mut seen = received(&mut theirs);
        output.unblock();
        seen.extend(received(&mut theirs));
        assert_eq!(seen.len(), KEPT);
        assert!(seen.ends_with(b"xtail"));
    }

    /// If it fails, a full disk stops the guest, or ends its log for good.
    #[test]
    fn output_that_cannot_be_written_is_counted_and_the_next_is_tried() {
        let mut output = ConsoleOutput::new().unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        output.attach(Sink::own(full));
        send(&mut output, b"one\ntwo\n");
        assert_eq!((output.dropped(), output.buffered()), (8, 0));
        assert!(output.attached());
    }

    /// If it fails, writing to a shared pipe waits for its reader, or changes the pipe's mode for
    /// the other processes that have it.
    #[test]
    fn a_shared_pipe_is_written_without_waiting_and_left_as_it_was() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut output = ConsoleOutput::new().unwrap();
        output.attach(Sink::shared(writer.as_fd()).unwrap());
        for _ in 0..40 {
            send(&mut output, &[b'p'; CHUNK]);
        }
        assert!(output.blocked().is_some());
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
        output.drain(Duration::from_millis(10));
        assert!(output.buffered() > 0);
        drop(reader);
    }
}
