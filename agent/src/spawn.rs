//! Starting the process that sets a container up, up to where it would execute the program.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use cofferdam_agent_protocol::stream::Name;
use ttrpc::Code;

use crate::channel::{Channel, Go, Order, Reply};
use crate::error::{Context, Error, Result};
use crate::streams::{Ends, Live, pipes};

/// The name under which this program sets containers up.
pub const SETUP: &str = "cofferdam-setup";

/// A process that waits for the word to execute its program.
#[derive(Debug)]
pub struct Prepared {
    /// As the agent sees it.
    pub pid: i32,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    has_terminal: bool,
    channel: Channel,
    ends: Ends,
}

/// Gives the order and waits until it is carried out. `names` are the streams that are announced.
pub fn prepare(order: &Order, names: &[Name]) -> Result<Prepared> {
    let (ours, theirs) = UnixStream::pair().context(|| "make a socket".into())?;
    let mut channel = Channel::new(ours);
    let (fds, ends) = pipes(names, order.process.terminal)?;
    Command::new("/proc/self/exe")
        .arg0(SETUP)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .context(|| "start the process that sets a container up".into())?;
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    channel
        .send(order, &borrowed)
        .context(|| "order the container".into())?;
    drop(fds);
    let (mut pid, mut terminal, mut ready) = (None, None, false);
    // The process and the one that tells its number run at the same time.
    let pid = loop {
        if let Some(pid) = pid.filter(|_| ready) {
            break pid;
        }
        match next(&mut channel)? {
            Some(Reply::Pid(number)) => pid = Some(number),
            Some(Reply::Terminal) => terminal = channel.take_fds().pop(),
            Some(Reply::Ready) => ready = true,
            Some(Reply::Error { code, text }) => return Err(failure(code, text)),
            None => {
                let what = "the process that sets the container up".to_owned();
                let why = "was killed; is the memory limit too low?".to_owned();
                return Err(Error::State { what, why });
            }
        }
    };
    let ends = match &terminal {
        Some(master) => ends.with_terminal(master, names)?,
        None => ends,
    };
    Ok(Prepared {
        pid,
        has_terminal: terminal.is_some(),
        terminal,
        channel,
        ends,
    })
}

fn next(channel: &mut Channel) -> Result<Option<Reply>> {
    channel
        .receive()
        .context(|| "understand the process that sets a container up".into())
}

fn failure(code: i32, text: String) -> Error {
    let known = [
        Code::INVALID_ARGUMENT,
        Code::UNAVAILABLE,
        Code::PERMISSION_DENIED,
    ];
    let code = known
        .into_iter()
        .find(|known| *known as i32 == code)
        .unwrap_or(Code::INTERNAL);
    Error::Setup { code, text }
}

impl Prepared {
    /// Connects the streams and executes the program.
    pub fn start(mut self, connections: Vec<File>) -> Result<Live> {
        let live = self.ends.connect(connections, self.has_terminal)?;
        self.channel
            .send(&Go, &[])
            .context(|| "start the process".into())?;
        match next(&mut self.channel)? {
            // The program has it all now, or it was killed, which its end will tell.
            None => Ok(live),
            Some(Reply::Error { code, text }) => Err(failure(code, text)),
            Some(_) => Err(Error::invalid("reply", "not one of this moment")),
        }
    }
}
