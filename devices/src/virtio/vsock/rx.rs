//! To the guest: each turn of a connection puts a packet into the receive queue, or, while a stream
//! flows, several by one readv.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use event_manager::EventOps;

use super::BUDGET;
use super::connection::{Connection, Outgoing};
use super::hub::{Hub, Turn};
use super::packet::{HEADER, Header, Op};
use crate::virtio::{Chain, QueueError, VirtQueue};

/// Bytes of data in one packet at most, as other devices do.
const MAX_DATA: usize = 64 << 10;
/// Bytes of data that are more likely a question than a part of a stream.
const LITTLE: usize = 4096;
/// Pieces of guest memory that one read fills at most.
const MAX_PIECES: usize = 64;

/// The receive queue of an active device.
#[derive(Debug)]
pub(super) struct Rx {
    queue: VirtQueue,
    /// Chains that were taken from the ring and not yet completed.
    held: VecDeque<Chain>,
    /// Chains to be filled again.
    spare: Vec<Chain>,
    /// A chain was lacking, and the driver was asked to kick.
    is_starved: bool,
    /// A little data was given, as by someone who asks something.
    has_asked: bool,
    /// Scratch: chains that one step fills, each with its bytes.
    used: Vec<(u16, u32)>,
}

impl Rx {
    pub(super) fn new(queue: VirtQueue) -> Self {
        Self {
            queue,
            held: VecDeque::new(),
            spare: Vec::new(),
            is_starved: true,
            has_asked: false,
            used: Vec::new(),
        }
    }

    /// The queue, to be stopped or signalled.
    pub(super) fn queue(&mut self) -> &mut VirtQueue {
        &mut self.queue
    }

    /// Whether the last data that was given since the last call was a little.
    pub(super) fn take_asked(&mut self) -> bool {
        std::mem::take(&mut self.has_asked)
    }

    /// Gives the guest what `hub` has for it, a packet to each connection in turn, up to a budget;
    /// then the queue kicks itself.
    pub(super) fn run(&mut self, hub: &mut Hub, ops: &mut EventOps) -> Result<(), QueueError> {
        for _ in 0..BUDGET {
            let Some(turn) = hub.turn() else {
                return Ok(());
            };
            if !self.fetch(1)? {
                self.is_starved = true;
                if self.queue.enable_kicks() {
                    continue;
                }
                return Ok(());
            }
            match turn {
                Turn::Reset(header) => {
                    self.send(&header)?;
                    hub.reset_is_sent();
                }
                Turn::Connection(slot) => {
                    let mut is_whole = true;
                    if let Some(connection) = hub.connection(slot) {
                        is_whole = self.serve(connection)?;
                    }
                    hub.turn_is_over(slot, is_whole, ops);
                }
            }
        }
        self.queue.kick_again();
        Ok(())
    }

    /// Has `count` chains ready, or as many as there are; false if there is none.
    fn fetch(&mut self, count: usize) -> Result<bool, QueueError> {
        while self.held.len() < count {
            let mut chain = match self.spare.pop() {
                Some(chain) => chain,
                None => Chain::new(self.queue.memory()),
            };
            if !self.queue.pop(&mut chain)? {
                self.spare.push(chain);
                break;
            }
            // With less, no data would ever fit.
            if chain.writable.len() <= HEADER || !chain.readable.is_empty() {
                return Err(QueueError::Request("a vsock receive buffer without room"));
            }
            self.held.push_back(chain);
        }
        let is_there = !self.held.is_empty();
        if is_there && std::mem::take(&mut self.is_starved) {
            self.queue.disable_kicks();
        }
        Ok(is_there)
    }

    /// A connection's turn; false if its host side is broken.
    fn serve(&mut self, connection: &mut Connection) -> Result<bool, QueueError> {
        match connection.next_packet() {
            None => Ok(true),
            Some(Outgoing::Control(header)) => self.send(&header).map(|()| true),
            Some(Outgoing::Data(credit)) => self.send_data(connection, credit),
        }
    }

    /// Sends a packet without data. A chain is held.
    fn send(&mut self, header: &Header) -> Result<(), QueueError> {
        self.fill(header);
        self.queue.complete_all(&self.used);
        self.used.clear();
        Ok(())
    }

    /// Writes a header into the first chain that is held, whose data is in place, and notes it as
    /// used.
    fn fill(&mut self, header: &Header) {
        if let Some(mut chain) = self.held.pop_front() {
            chain.writable.write(&header.encode());
            let header_len = u32::try_from(HEADER).unwrap_or(0);
            self.used.push((chain.head(), header_len + header.len));
            self.spare.push(chain);
        }
    }

    /// Reads from the socket into as many chains as the connection has an appetite for, and makes a
    /// packet of each.
    fn send_data(&mut self, connection: &mut Connection, credit: u32) -> Result<bool, QueueError> {
        self.fetch(connection.appetite())?;
        let Some(socket) = connection.socket() else {
            return Ok(true);
        };
        let credit = usize::try_from(credit).unwrap_or(usize::MAX);
        let (room, result) = self.read(socket, credit);
        let is_whole = connection.has_read(&result, room);
        let mut left = result.unwrap_or(0);
        if left > 0 {
            self.has_asked = left <= LITTLE;
            let mut header = connection.header(Op::Data);
            while left > 0
                && let Some(chain) = self.held.front()
            {
                let part = data_room(chain).min(left);
                left -= part;
                // At most MAX_DATA.
                header.len = u32::try_from(part).unwrap_or(0);
                self.fill(&header);
            }
            self.queue.complete_all(&self.used);
            self.used.clear();
        }
        Ok(is_whole)
    }

    /// One readv into the room behind the headers of the chains that are held, `limit` bytes at
    /// most. Returns how much room there was, and how many bytes came.
    fn read(&self, socket: BorrowedFd<'_>, limit: usize) -> (usize, io::Result<usize>) {
        let mut pieces = [const { MaybeUninit::uninit() }; MAX_PIECES];
        let (mut count, mut room) = (0, 0);
        for chain in &self.held {
            let mut skip = HEADER;
            let mut left = data_room(chain).min(limit - room);
            for piece in chain.writable.iovecs() {
                let skipped = skip.min(piece.iov_len);
                skip -= skipped;
                let len = left.min(piece.iov_len - skipped);
                if let Some(slot) = pieces.get_mut(count).filter(|_| len > 0) {
                    slot.write(libc::iovec {
                        iov_base: piece.iov_base.cast::<u8>().wrapping_add(skipped).cast(),
                        iov_len: len,
                    });
                    count += 1;
                    left -= len;
                    room += len;
                }
            }
        }
        // At most MAX_PIECES, so this never saturates.
        let count = libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX);
        // SAFETY: the first `count` pieces were written; each is a part of one of a held chain, in
        // guest memory that the chain keeps mapped; the kernel writes to nothing else.
        let len = unsafe { libc::readv(socket.as_raw_fd(), pieces.as_ptr().cast(), count) };
        let result = usize::try_from(len).map_err(|_| io::Error::last_os_error());
        (room, result)
    }
}

/// Bytes of data that a packet in `chain` has room for.
fn data_room(chain: &Chain) -> usize {
    (chain.writable.len() - HEADER.min(chain.writable.len())).min(MAX_DATA)
}
