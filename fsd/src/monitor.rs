//! The monitor, to which the process says one thing: that it is ready, or why it is not.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// The whole message when a connection comes with it; else the message is why not. The other side
/// is in the monitor's src/vm/fsd.rs.
const READY: u8 = 0;
/// Bytes of a message at most.
const MESSAGE: usize = 4096;

/// The process is ready: sends the monitor its end of the connection.
pub fn hand_over(socket: &UnixStream, connection: &UnixStream) -> io::Result<()> {
    let files = [connection.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    let parts = [IoSlice::new(&[READY])];
    sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The process cannot serve: tells the monitor why.
pub fn report(socket: &UnixStream, why: &str) {
    let text = why.as_bytes();
    let parts = [IoSlice::new(text.get(..MESSAGE).unwrap_or(text))];
    // If the monitor is gone, nobody needs to know.
    let _ = sendmsg(
        socket,
        &parts,
        &mut SendAncillaryBuffer::default(),
        SendFlags::NOSIGNAL,
    );
}
