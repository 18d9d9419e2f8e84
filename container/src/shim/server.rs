//! The shim's socket.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::output::Attached;
use super::session::Session;
use super::wire::{Failure, Frame, Reply, Request, read_line, write_line};
use super::{Busy, Shim};
use crate::state::Status;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between attempts to take a client, where there is nothing to take him with.
const RETRY: Duration = Duration::from_millis(100);
/// How long KILL may take to end a container before its monitor is killed.
const KILL: Duration = Duration::from_secs(10);

/// Serves clients, each on a thread of its own, for ever.
pub(super) fn serve(shim: &Arc<Shim>, listener: &UnixListener, busy: &Busy) {
    for client in listener.incoming() {
        let client = match client {
            Ok(client) => client,
            // No descriptor is free, say: he waits, as he would for a shim that is slow.
            Err(error) => {
                log::warn!("a client of the shim's waits: {error}");
                thread::sleep(RETRY);
                continue;
            }
        };
        let (shim, busy) = (Arc::clone(shim), busy.clone());
        // Where no thread can be had, he learns that nobody answers.
        let _ = thread::Builder::new().spawn(move || {
            if let Err(error) = answer(&shim, &client) {
                log::warn!("a client of the shim's: {error}");
            }
            drop(busy);
        });
    }
}

fn answer(shim: &Arc<Shim>, client: &UnixStream) -> std::io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(client);
    let request = read_line(&mut reader)?;
    client.set_read_timeout(None)?;
    if let Request::Attach { output, input } = request {
        // Bytes that came with the request are already in the buffer.
        let early = reader.buffer().to_vec();
        return attach(shim, client, early, output, input);
    }
    let reply = match shim.act(&request) {
        Ok(()) => Reply::Done,
        Err(failure) => Reply::Failed(failure),
    };
    write_line(&mut &*client, &reply)
}

fn attach(
    shim: &Arc<Shim>,
    client: &UnixStream,
    early: Vec<u8>,
    output: bool,
    input: bool,
) -> std::io::Result<()> {
    let Some(Attached { number, frames }) = shim.output.attach() else {
        let too_many = failure("too many are attached to the container; let some go");
        return write_line(&mut &*client, &Reply::Failed(too_many));
    };
    // However this ends, he is let go.
    let client_of = ClientOf { shim, number };
    if shim.life().ended {
        return write_line(&mut &*client, &Reply::Failed(not_running()));
    }
    write_line(&mut &*client, &Reply::Done)?;
    let (theirs, from) = (Arc::clone(shim), client.try_clone()?);
    thread::Builder::new().spawn(move || {
        theirs.take_input(Cursor::new(early).chain(from), input);
        // He is gone: nobody waits until there is something to tell him.
        theirs.output.detach(number);
    })?;
    for frame in frames {
        let is_end = matches!(frame, Frame::End(_));
        if output || is_end {
            frame.write(&mut &*client)?;
        }
        if is_end {
            break;
        }
    }
    drop(client_of);
    // Its reader ends, too.
    client.shutdown(Shutdown::Both)
}

/// Who is attached, until this is dropped.
struct ClientOf<'a> {
    shim: &'a Shim,
    number: u64,
}

impl Drop for ClientOf<'_> {
    fn drop(&mut self) {
        self.shim.output.detach(self.number);
    }
}

fn not_running() -> Failure {
    failure("the container is not running")
}

fn failure(message: impl Into<String>) -> Failure {
    Failure {
        code: 125,
        message: message.into(),
    }
}

impl Shim {
    /// What a client sends, until he is gone.
    fn take_input(&self, mut from: impl Read, input: bool) {
        loop {
            match Frame::read(&mut from) {
                Ok(Some(Frame::Input(data))) if input => {
                    if let Some(stdin) = self.stdin() {
                        // A process that closed its input has what it wants.
                        let _ = (&*stdin).write_all(&data);
                    }
                }
                Ok(Some(Frame::InputEnd)) if input => self.end_input(),
                Ok(Some(Frame::Size(rows, columns))) => self.resize((rows, columns)),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if input {
            self.end_input();
        }
    }

    /// A client's input has ended. The container's ends with it only if it was made for one client, as by
    /// `run -i` without `-d`; a terminal's never does, as others will type there.
    fn end_input(&self) {
        let options = &self.container.record.options;
        if options.stdin_once && !options.tty && self.stdin().is_some() {
            // Closed when the last who writes to it is done.
            self.change(|life| life.stdin = None);
        }
    }

    /// The container's input, when it is there.
    fn stdin(&self) -> Option<Arc<File>> {
        self.wait_until(|life| life.session.is_some() || life.ended)
            .stdin
            .clone()
    }

    fn resize(&self, to: (u16, u16)) {
        let life = self.wait_until(|life| life.started || life.ended);
        let Some(session) = life.session.clone() else {
            return;
        };
        drop(life);
        if let Err(error) = session.resize(to) {
            log::warn!("the terminal keeps its size: {}", crate::describe(&error));
        }
    }

    fn act(&self, request: &Request) -> Result<(), Failure> {
        match *request {
            Request::Start => self.start(),
            Request::Kill { signal } => self.kill(signal),
            Request::Stop { signal, timeout } => self.stop(signal, timeout),
            Request::Pause => self.pause(true),
            Request::Resume => self.pause(false),
            Request::Attach { .. } => Ok(()),
        }
    }

    fn start(&self) -> Result<(), Failure> {
        self.change(|life| life.wanted = true);
        // One that failed is over only when all that it had is gone.
        let life = self.wait_until(|life| life.started || life.ended);
        match &life.failure {
            Some(failure) if !life.started => Err(failure.clone()),
            _ => Ok(()),
        }
    }

    fn session(&self) -> Result<Arc<Session>, Failure> {
        let life = self.life();
        let session = life.session.clone().filter(|_| life.started);
        session.ok_or_else(not_running)
    }

    fn kill(&self, number: i32) -> Result<(), Failure> {
        let session = self.session()?;
        if number == Signal::SIGKILL as i32 {
            self.change(|life| life.stopped = true);
            self.kill_hard(&session);
            return Ok(());
        }
        let sent = session.signal(number);
        sent.map_err(|error| failure(crate::describe(&error)))
    }

    /// KILL for the process; if that does not help, for the monitor.
    fn kill_hard(&self, session: &Arc<Session>) {
        let theirs = Arc::clone(session);
        thread::spawn(move || theirs.signal(Signal::SIGKILL as i32));
        if !self.over_within(session, KILL) {
            session.kill();
        }
    }

    /// Whether that life ends in so long a time, but for what it wrote.
    fn over_within(&self, session: &Arc<Session>, patience: Duration) -> bool {
        let is_on = |session_now: &Option<Arc<Session>>| {
            session_now
                .as_ref()
                .is_some_and(|now| Arc::ptr_eq(now, session))
        };
        let until = Instant::now() + patience;
        let mut life = self.life();
        while is_on(&life.session) && !life.leaving {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(life, left);
            life = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        true
    }

    fn stop(&self, number: i32, timeout: u32) -> Result<(), Failure> {
        self.change(|life| life.stopped = true);
        if let Ok(session) = self.session() {
            if self.life().state.status == Status::Paused {
                self.pause(false)?;
            }
            let theirs = Arc::clone(&session);
            thread::spawn(move || theirs.signal(number));
            if !self.over_within(&session, Duration::from_secs(timeout.into())) {
                self.kill_hard(&session);
            }
        }
        drop(self.wait_until(|life| life.ended));
        Ok(())
    }

    fn pause(&self, pause: bool) -> Result<(), Failure> {
        let session = self.session()?;
        match (self.life().state.status, pause) {
            (Status::Paused, true) => return Err(failure("the container is paused already")),
            (Status::Running, false) => return Err(failure("the container is not paused")),
            _ => {}
        }
        let done = session.pause(pause);
        done.map_err(|error| failure(crate::describe(&error)))?;
        self.change(|life| {
            life.state.status = if pause {
                Status::Paused
            } else {
                Status::Running
            };
        });
        let action = if pause { "pause" } else { "unpause" };
        crate::state::Events::write(&self.container.record, action, None);
        Ok(())
    }
}
