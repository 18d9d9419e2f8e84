//! Who listens: ttrpc on one vsock port, streams on another, for the host only.
//!
//! Calls are served one at a time on a connection, by a thread of its own. (The server of the ttrpc
//! crate has five threads for each, which is memory that every container would pay for.)

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use cofferdam_agent_protocol::stream::Greeting;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, getpeername, listen,
    socket,
};
use protobuf::Message;
use ttrpc::proto::{
    Code, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, MessageHeader, Request, Response,
};
use ttrpc::{MethodHandler, TtrpcContext};

use crate::containers::Containers;
use crate::error::{Context, Result};

/// The calls, by their names.
pub type Methods = HashMap<String, Box<dyn MethodHandler + Send + Sync>>;

/// Bytes of a ttrpc header.
const HEADER: usize = 10;

/// The longest request, which is ttrpc's own limit, in bytes.
const MAX_MESSAGE: u32 = 4 << 20;

/// Between attempts to take a connection, where there is nothing to take it with.
const RETRY: Duration = Duration::from_millis(20);

/// Of a thread that serves calls, in bytes.
const STACK: usize = 256 << 10;

/// A vsock port that the host can connect to.
#[derive(Debug)]
pub struct Listener(pub OwnedFd);

impl Listener {
    /// Listens at `port`.
    pub fn new(port: u32) -> Result<Self> {
        let open = || -> nix::Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
            bind(
                socket.as_raw_fd(),
                &VsockAddr::new(libc::VMADDR_CID_ANY, port),
            )?;
            listen(&socket, Backlog::new(128)?)?;
            Ok(socket)
        };
        open()
            .map(Self)
            .context(|| format!("listen at vsock port {port}"))
    }

    /// The next connection of the host's; `None` if there is none at the moment. Others are closed:
    /// a process in the guest has no business here.
    pub fn accept(&self) -> Option<File> {
        loop {
            let fd = match accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Ok(fd) => fd,
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(Errno::EAGAIN) => return None,
                // There is no memory, say. It waits, and we do not turn round and round.
                Err(_) => {
                    thread::sleep(RETRY);
                    return None;
                }
            };
            // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
            let connection = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
            if getpeername::<VsockAddr>(fd).is_ok_and(|peer| peer.cid() == libc::VMADDR_CID_HOST) {
                return Some(connection);
            }
        }
    }
}

/// Serves calls on a connection until it ends.
pub fn serve(connection: File, methods: Arc<Methods>) {
    let thread = thread::Builder::new()
        .name("calls".into())
        .stack_size(STACK);
    let started = thread.spawn(move || {
        // However it ends, there is nobody left to tell.
        let _ = serve_calls(connection, &methods);
    });
    // A connection without a thread is closed, which tells the host.
    drop(started);
}

fn serve_calls(mut connection: File, methods: &Methods) -> io::Result<()> {
    loop {
        let mut bytes = [0; HEADER];
        connection.read_exact(&mut bytes)?;
        let header = MessageHeader::from(bytes.as_slice());
        if header.length > MAX_MESSAGE || header.type_ != MESSAGE_TYPE_REQUEST {
            return Ok(());
        }
        let mut body = vec![0; header.length as usize];
        connection.read_exact(&mut body)?;
        let stream = header.stream_id;
        let answer = answer(header, &body, &connection, methods);
        let mut packet = Vec::with_capacity(HEADER + answer.len());
        let length = u32::try_from(answer.len()).map_err(io::Error::other)?;
        packet.extend(length.to_be_bytes());
        packet.extend(stream.to_be_bytes());
        packet.extend([MESSAGE_TYPE_RESPONSE, 0]);
        packet.extend(answer);
        connection.write_all(&packet)?;
    }
}

/// The response to a request, as bytes.
fn answer(header: MessageHeader, body: &[u8], connection: &File, methods: &Methods) -> Vec<u8> {
    let refuse = |code: Code, text: String| {
        let mut response = Response::new();
        response.set_status(ttrpc::get_status(code, text));
        // A status can always be written.
        response.write_to_bytes().unwrap_or_default()
    };
    let request = match Request::parse_from_bytes(body) {
        Ok(request) => request,
        Err(error) => {
            return refuse(
                Code::INVALID_ARGUMENT,
                format!("malformed request: {error}"),
            );
        }
    };
    let path = format!("/{}/{}", request.service, request.method);
    let Some(method) = methods.get(&path) else {
        return refuse(
            Code::UNIMPLEMENTED,
            format!("the agent has no method {path}"),
        );
    };
    let (sender, receiver) = mpsc::channel();
    let context = TtrpcContext {
        fd: connection.as_raw_fd(),
        cancel_rx: crossbeam_channel::never(),
        mh: header,
        res_tx: sender,
        metadata: HashMap::new(),
        timeout_nano: request.timeout_nano,
    };
    let name = request.method.clone();
    let failed = method.handler(context, request).err();
    match receiver.try_recv() {
        Ok((_, bytes)) => bytes,
        Err(_) => {
            let why = failed.map_or_else(|| "no answer".to_owned(), |error| error.to_string());
            refuse(
                Code::INVALID_ARGUMENT,
                format!("malformed request for {name}: {why}"),
            )
        }
    }
}

/// Finds out which stream a connection is.
pub fn greet(mut connection: File, containers: Arc<Containers>) {
    let thread = thread::Builder::new()
        .name("greeting".into())
        .stack_size(crate::streams::STACK);
    let started = thread.spawn(move || match Greeting::read(&mut connection) {
        Ok(greeting) => containers.waiting.add(greeting, connection),
        Err(error) => eprintln!("cofferdam-agent: {error}"),
    });
    drop(started);
}
