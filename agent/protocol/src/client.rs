//! The host's side: calls and streams through the Unix socket of the VM's vsock device.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use protobuf::Message;
use ttrpc::proto::{Code, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, Request, Response};

use crate::api::*;
use crate::stream::{Greeting, Name, read_line};
use crate::{CONTROL_PORT, SERVICE, STREAM_PORT, VERSION};

/// How long the monitor and the guest may take to accept a connection: far longer than they need, since hosts
/// may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a call may take that the agent answers at once: far longer, too.
const SOON: Option<Duration> = Some(Duration::from_secs(120));

/// How long one may take that writes files or waits until they are written.
const LATER: Option<Duration> = Some(Duration::from_secs(600));

/// Of one that takes as long as what it is about.
const EVER: Option<Duration> = None;

/// Between attempts to reach a guest.
const RETRY: Duration = Duration::from_millis(1);

/// Bytes of a ttrpc header: length and stream of the message, big-endian, its type, flags.
const HEADER: usize = 10;

/// The longest answer, which is ttrpc's own limit, in bytes.
const MAX_MESSAGE: usize = 4 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the VM's socket.
    #[error("cannot connect to the VM's vsock socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The monitor is there; nobody in the guest listens.
    #[error("nobody in the guest of {path} accepts connections to port {port} (yet)")]
    Refused {
        /// The VM's socket.
        path: PathBuf,
        /// The vsock port.
        port: u32,
        /// How the connection ended.
        #[source]
        source: io::Error,
    },
    /// The monitor is there, and the time is over.
    #[error(
        "the guest of {path} did not accept a connection to port {port} within {} seconds; it hangs, or \
         the host is too busy to run it",
        waited.as_secs()
    )]
    Late {
        /// The VM's socket.
        path: PathBuf,
        /// The vsock port.
        port: u32,
        /// How long that was.
        waited: Duration,
    },
    /// The VM or the agent is gone, or was stopped, in the middle of a call.
    #[error("the agent did not answer {method}; is the VM still running?")]
    Lost {
        /// The call.
        method: &'static str,
        /// How the connection ended.
        #[source]
        source: io::Error,
    },
    /// The agent, or the whole guest, hangs; or the host is so busy that it has no time for it.
    #[error(
        "the agent did not answer {method} within {} seconds; the guest hangs, or the host is too busy",
        limit.as_secs()
    )]
    Silent {
        /// The call.
        method: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// What was answered is no answer.
    #[error("the agent's answer to {method} is malformed: {reason}")]
    Malformed {
        /// The call.
        method: &'static str,
        /// In what way.
        reason: String,
    },
    /// The agent says no.
    #[error("{message}")]
    Failed {
        /// The call.
        method: &'static str,
        /// ttrpc's code: `NOT_FOUND`, `FAILED_PRECONDITION`, …
        code: Code,
        /// What the agent says, which names the thing and the cause.
        message: String,
    },
}

impl ClientError {
    /// Whether the agent says that there is no such container or process.
    pub fn is_not_found(&self) -> bool {
        self.is(Code::NOT_FOUND)
    }

    /// Whether the program that a process shall run is not in the container: a shell's 127.
    pub fn is_no_such_program(&self) -> bool {
        self.is(Code::UNAVAILABLE)
    }

    /// Whether the program is there and cannot be executed: a shell's 126.
    pub fn is_not_executable(&self) -> bool {
        self.is(Code::PERMISSION_DENIED)
    }

    /// Whether a call was not answered in time.
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Silent { .. })
    }

    fn is(&self, wanted: Code) -> bool {
        matches!(self, Self::Failed { code, .. } if *code == wanted)
    }
}

/// A connection with the agent of one VM, for all threads. Calls that overlap have a connection
/// each; there are no threads behind it.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    /// Connections that no call is using.
    idle: Mutex<Vec<UnixStream>>,
}

/// The calls of the service, by how long they may take and the messages they take and give.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident $method:literal $limit:ident ($request:ty) -> $response:ty;)*) => {
        impl Client {
            $($(#[$doc])*
            pub fn $name(&self, request: $request) -> Result<$response, ClientError> {
                self.call($method, &request, $limit)
            })*
        }
    };
}

calls! {
    /// Addresses, routes, resolv.conf and hosts.
    network "Network" SOON (NetworkRequest) -> Empty;
    /// Moves the guest's clock, and asks for it.
    clock "Clock" SOON (ClockRequest) -> ClockResponse;
    /// Makes a container up to the point where its process would be executed.
    create "Create" LATER (CreateRequest) -> PidResponse;
    /// Executes a container's process, once its streams are connected.
    start "Start" SOON (ContainerRequest) -> Empty;
    /// Runs one more process in a container.
    exec "Exec" SOON (ExecRequest) -> PidResponse;
    /// Forgets a process that has ended.
    delete "Delete" LATER (ProcessRequest) -> Empty;
    /// Sends a signal.
    signal "Signal" SOON (SignalRequest) -> Empty;
    /// Blocks until a process has ended.
    wait "Wait" EVER (ProcessRequest) -> WaitResponse;
    /// Sets the size of a process's terminal.
    resize "Resize" SOON (ResizeRequest) -> Empty;
    /// Ends a process's standard input.
    close_stdin "CloseStdin" SOON (ProcessRequest) -> Empty;
    /// The processes of a container.
    pids "Pids" SOON (ContainerRequest) -> PidsResponse;
    /// What a container uses.
    stats "Stats" SOON (ContainerRequest) -> StatsResponse;
    /// Freezes a container.
    pause "Pause" SOON (ContainerRequest) -> Empty;
    /// Thaws it.
    resume "Resume" SOON (ContainerRequest) -> Empty;
    /// Sets a container's limits.
    update "Update" SOON (UpdateRequest) -> Empty;
    /// Blocks until there is an event younger than the one named.
    next_event "NextEvent" EVER (NextEventRequest) -> Event;
    /// Sends a path of a container's on the stream `archive`.
    copy_out "CopyOut" EVER (CopyRequest) -> Empty;
    /// Unpacks the stream `archive` in a directory of a container's.
    copy_in "CopyIn" EVER (CopyRequest) -> Empty;
    /// What a path of a container's is.
    stat "Stat" SOON (StatRequest) -> StatResponse;
    /// Sends what a container changed of its image on the stream `archive`.
    changes "Changes" EVER (ChangesRequest) -> Empty;
    /// Ends everything in the guest and powers it off.
    poweroff "Poweroff" LATER (PoweroffRequest) -> Empty;
}

impl Client {
    /// Connects with the agent behind the VM's vsock socket `path`, and checks that it speaks this
    /// version of the protocol. A guest that runs may take a minute to accept it.
    pub fn connect(path: &Path) -> Result<(Self, HelloResponse), ClientError> {
        Self::hello(path, Instant::now() + PATIENCE, is_refused)
    }

    /// As [`Client::connect`], again and again until `deadline`: for a VM that was just started.
    /// `alive` says whether it still runs; if not, the last error is given at once.
    pub fn connect_until(
        path: &Path,
        deadline: Instant,
        mut alive: impl FnMut() -> bool,
    ) -> Result<(Self, HelloResponse), ClientError> {
        Self::hello(path, deadline, |_| alive())
    }

    fn hello(
        path: &Path,
        deadline: Instant,
        may_pass: impl FnMut(&ClientError) -> bool,
    ) -> Result<(Self, HelloResponse), ClientError> {
        let client = Self {
            path: path.to_owned(),
            idle: Mutex::default(),
        };
        let stream = client.open_until(CONTROL_PORT, deadline, may_pass)?;
        client.idle().push(stream);
        let mut request = HelloRequest::new();
        request.version = VERSION;
        let hello = client.call("Hello", &request, SOON)?;
        Ok((client, hello))
    }

    /// As [`Client::wait`], for so long at most.
    pub fn wait_within(
        &self,
        limit: Duration,
        request: ProcessRequest,
    ) -> Result<WaitResponse, ClientError> {
        self.call("Wait", &request, Some(limit))
    }

    /// A stream of the process (or the copy) that was or will be given `token`, which the agent
    /// waits for no longer than a minute. It has no timeouts.
    pub fn stream(&self, name: Name, token: &str) -> Result<UnixStream, ClientError> {
        let mut stream = self.open(STREAM_PORT)?;
        let token = token.to_owned();
        stream
            .write_all(Greeting { name, token }.to_string().as_bytes())
            .map_err(|source| self.refused(STREAM_PORT, source))?;
        Ok(stream)
    }

    fn refused(&self, port: u32, source: io::Error) -> ClientError {
        ClientError::Refused {
            path: self.path.clone(),
            port,
            source,
        }
    }

    /// A connection to a port of the guest's, which is there.
    fn open(&self, port: u32) -> Result<UnixStream, ClientError> {
        self.open_until(port, Instant::now() + PATIENCE, is_refused)
    }

    /// A connection to a port of the guest's, tried until the deadline as long as the errors may pass.
    fn open_until(
        &self,
        port: u32,
        deadline: Instant,
        mut may_pass: impl FnMut(&ClientError) -> bool,
    ) -> Result<UnixStream, ClientError> {
        let begun = Instant::now();
        loop {
            let error = match self.try_open(port, deadline) {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            if !may_pass(&error) {
                return Err(error);
            }
            if Instant::now() >= deadline {
                return Err(ClientError::Late {
                    path: self.path.clone(),
                    port,
                    waited: begun.elapsed(),
                });
            }
            thread::sleep(RETRY);
        }
    }

    fn try_open(&self, port: u32, deadline: Instant) -> Result<UnixStream, ClientError> {
        let connect = |source| ClientError::Connect {
            path: self.path.clone(),
            source,
        };
        let mut stream = UnixStream::connect(&self.path).map_err(connect)?;
        let greet = |stream: &mut UnixStream| {
            // 0 would be for ever.
            let left = deadline.saturating_duration_since(Instant::now());
            stream.set_read_timeout(Some(left.max(RETRY)))?;
            stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
            let answer = read_line(stream, 32)?;
            if !answer.is_some_and(|line| line.starts_with("OK ")) {
                return Err(io::Error::other("the monitor's answer is not OK"));
            }
            stream.set_read_timeout(None)
        };
        greet(&mut stream).map_err(|source| self.refused(port, source))?;
        Ok(stream)
    }

    fn call<R: Message>(
        &self,
        method: &'static str,
        request: &impl Message,
        limit: Option<Duration>,
    ) -> Result<R, ClientError> {
        let idle = self.idle().pop();
        let stream = match idle {
            Some(stream) => stream,
            None => self.open(CONTROL_PORT)?,
        };
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let response = exchange(&mut Timed(&stream, until), method, request);
        let response = response.map_err(|error| match (&error, limit) {
            (ClientError::Lost { source, .. }, Some(limit)) if is_over(source) => {
                ClientError::Silent { method, limit }
            }
            _ => error,
        })?;
        // A connection that broke is not kept, nor one whose answer is late; one that carried an answer is.
        self.idle().push(stream);
        let status = response.status();
        if status.code() != Code::OK {
            return Err(ClientError::Failed {
                method,
                code: status.code(),
                message: status.message().to_owned(),
            });
        }
        R::parse_from_bytes(&response.payload).map_err(|error| malformed(method, error))
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<UnixStream>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_refused(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { .. })
}

/// A connection that is waited for until a moment, however its bytes drip.
struct Timed<'a>(&'a UnixStream, Option<Instant>);

impl Timed<'_> {
    /// The time that is left.
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(until) = self.1 else { return Ok(None) };
        let left = until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(Some(left)),
        }
    }
}

/// Whether the time of a [`Timed`] is over; the system's word for that is that there is nothing yet.
fn is_over(error: &io::Error) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock)
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.set_read_timeout(self.left()?)?;
        let mut stream = self.0;
        stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.set_write_timeout(self.left()?)?;
        let mut stream = self.0;
        stream.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn malformed(method: &'static str, reason: impl ToString) -> ClientError {
    let reason = reason.to_string();
    ClientError::Malformed { method, reason }
}

/// Sends a request and reads the answer to it.
fn exchange(
    stream: &mut Timed,
    method: &'static str,
    message: &impl Message,
) -> Result<Response, ClientError> {
    let lost = |source| ClientError::Lost { method, source };
    let mut request = Request::new();
    request.service = SERVICE.to_owned();
    request.method = method.to_owned();
    let bad = |error: protobuf::Error| malformed(method, error);
    request.payload = message.write_to_bytes().map_err(bad)?;
    let body = request.write_to_bytes().map_err(bad)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length as usize <= MAX_MESSAGE)
        .ok_or_else(|| malformed(method, "the request is over 4 MiB"))?;
    let mut packet = Vec::with_capacity(HEADER + body.len());
    packet.extend(length.to_be_bytes());
    // Its number on this connection, where it is alone.
    packet.extend(1u32.to_be_bytes());
    packet.extend([MESSAGE_TYPE_REQUEST, 0]);
    packet.extend(body);
    stream.write_all(&packet).map_err(lost)?;

    let mut header = [0; HEADER];
    stream.read_exact(&mut header).map_err(lost)?;
    let [a, b, c, d, ..] = header;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if header[8] != MESSAGE_TYPE_RESPONSE || length > MAX_MESSAGE {
        return Err(malformed(method, format!("its header is {header:?}")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).map_err(lost)?;
    Response::parse_from_bytes(&body).map_err(|error| malformed(method, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A monitor that answers as told, one connection after the other: with `OK` and an agent behind it, or
    /// not.
    fn monitor(name: &str, answers: &'static [bool]) -> (PathBuf, JoinHandle<()>) {
        let path =
            std::env::temp_dir().join(format!("cofferdam-client-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let serve = move || {
            for accepts in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let line = read_line(&mut stream, 32).unwrap();
                assert_eq!(line.as_deref(), Some("CONNECT 1024"));
                if *accepts {
                    stream.write_all(b"OK 7\n").unwrap();
                    hello(&mut stream);
                }
            }
            // Whoever comes now is not answered, until he goes.
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        };
        (path, thread::spawn(serve))
    }

    fn hello(stream: &mut UnixStream) {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).unwrap();
        let length = u32::from_be_bytes(header[..4].try_into().unwrap());
        stream.read_exact(&mut vec![0; length as usize]).unwrap();
        let body = Response::new().write_to_bytes().unwrap();
        header[..4].copy_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
        header[8] = MESSAGE_TYPE_RESPONSE;
        stream.write_all(&header).unwrap();
        stream.write_all(&body).unwrap();
    }

    /// If it fails, a busy host's containers are given up because a guest was slow once, or who waits in vain
    /// is told of a resource that is temporarily unavailable.
    #[test]
    fn a_slow_guest_is_waited_for() {
        let (path, served) = monitor("slow", &[false, false, true]);
        let (client, _) = Client::connect(&path).unwrap();
        let until = Instant::now() + Duration::from_millis(30);
        let error = Client::connect_until(&path, until, || true).unwrap_err();
        assert!(matches!(error, ClientError::Late { .. }), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("port 1024 within 0 seconds"), "{said}");
        assert!(std::error::Error::source(&error).is_none());
        drop(client);
        served.join().unwrap();
        // Nobody is there, and nobody will be.
        let error = Client::connect(&path).unwrap_err();
        assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
        let error = Client::connect_until(&path, Instant::now() + PATIENCE, || false);
        assert!(matches!(error.unwrap_err(), ClientError::Connect { .. }));
        std::fs::remove_file(path).unwrap();
    }

    /// If it fails, a guest that hangs, or says a byte now and then, holds for ever who calls its agent.
    #[test]
    fn calls_end_in_time() {
        // Nothing; and the beginning of a long answer.
        for said in [&b""[..], b"\0\x3f\xff\xff\0\0\0\x01\x02\0"] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let drip = thread::spawn(move || {
                let mut bytes = said.iter().chain(&[b'x'; 1000]);
                while !said.is_empty()
                    && let Some(byte) = bytes.next()
                    && theirs.write_all(&[*byte]).is_ok()
                {
                    thread::sleep(Duration::from_millis(5));
                }
                let _ = theirs.read_to_end(&mut Vec::new());
            });
            let client = Client {
                path: PathBuf::new(),
                idle: Mutex::new(vec![ours]),
            };
            let limit = Duration::from_millis(100);
            let started = Instant::now();
            let error = client
                .wait_within(limit, ProcessRequest::new())
                .unwrap_err();
            assert!(error.is_silent() && started.elapsed() >= limit, "{error}");
            assert!(client.idle().is_empty());
            drip.join().unwrap();
        }
    }
}
