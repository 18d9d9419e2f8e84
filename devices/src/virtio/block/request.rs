//! One request of the driver (virtio 1.2, section 5.2.6): from its chain to its status.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Le32, Le64};

use super::disk::{Disk, SECTOR_SIZE};
use super::engine::{Job, Operation, Outcome};
use super::limits;
use crate::log_limit::log_limited;
use crate::virtio::{Buffers, Chain, QueueError};

/// A disk's serial number, padded with zeros.
pub(super) type Serial = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// `struct virtio_blk_discard_write_zeroes`.
#[derive(Clone, Copy, Debug)]
struct Segment {
    sector: u64,
    sectors: u32,
    flags: u32,
}

/// Bytes of a segment in a request.
const SEGMENT_SIZE: usize = 16;

/// Why a request was not carried out.
#[derive(Debug)]
enum Failure {
    /// The device does not do that: UNSUPP.
    Unsupported,
    /// The driver asked for what cannot be: IOERR.
    Invalid,
    /// The host failed: IOERR, and a message.
    Host(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// What requests are carried out on.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) disk: Arc<Disk>,
    pub(super) serial: Serial,
    /// Whether a write is to reach stable storage before it is reported: the driver did not accept
    /// VIRTIO_BLK_F_FLUSH, so it knows of no write cache.
    pub(super) is_write_through: bool,
}

/// A request as the driver made it: its header is read, nothing else.
#[derive(Debug)]
pub(super) struct Request {
    chain: Chain,
    header: Header,
}

/// What remains of a request's header while it is carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    kind: u32,
    sector: u64,
    /// Bytes of the chain that are writable before the status.
    room: usize,
    /// What a write of zeroes covers: read early, for it is what the request costs.
    zeroes: Option<Segment>,
}

/// Where a request's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the driver.
    Read,
    /// To the disk.
    Write,
}

/// How far a request is.
#[derive(Debug)]
pub(super) enum Step {
    /// It is answered: its chain, and how many bytes were written to it.
    Done(Chain, u32),
    /// It is up to an engine, and then to [`Target::end`].
    Job(Job),
}

impl Request {
    /// Reads the header. The framing is free: where the header, the data and the status start is a
    /// matter of bytes, not of descriptors.
    pub(super) fn read(mut chain: Chain) -> Result<Self, QueueError> {
        let Some((kind, sector)) = header(&mut chain.readable) else {
            return Err(QueueError::Request("a disk request without a header"));
        };
        let Some(room) = chain.writable.len().checked_sub(1) else {
            return Err(QueueError::Request(
                "a disk request without room for a status",
            ));
        };
        let is_zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES && chain.readable.len() == SEGMENT_SIZE;
        let zeroes = is_zeroes.then(|| segment(&mut chain.readable)).flatten();
        let header = Header {
            kind,
            sector,
            room,
            zeroes,
        };
        Ok(Self { chain, header })
    }

    /// What a rate limit counts: the direction, and how many bytes; `None` for what costs nothing.
    pub(super) fn cost(&self) -> Option<(Direction, u64)> {
        match self.header.kind {
            VIRTIO_BLK_T_IN => Some((Direction::Read, self.header.room as u64)),
            VIRTIO_BLK_T_OUT => Some((Direction::Write, self.chain.readable.len() as u64)),
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let sectors = self.header.zeroes.map_or(0, |segment| segment.sectors);
                Some((Direction::Write, u64::from(sectors) * SECTOR_SIZE))
            }
            VIRTIO_BLK_T_DISCARD => Some((Direction::Write, 0)),
            _ => None,
        }
    }
}

impl Target {
    /// Begins a request.
    pub(super) fn begin(&self, request: Request) -> Step {
        let Request { mut chain, header } = request;
        let result = match self.execute(header, &mut chain) {
            Ok(Some((operation, offset, left))) => {
                return Step::Job(Job {
                    chain,
                    header,
                    operation,
                    offset,
                    left,
                });
            }
            Ok(None) => Ok(()),
            Err(failure) => Err(failure),
        };
        let (chain, written) = self.answer(chain, header, result);
        Step::Done(chain, written)
    }

    /// Ends the request whose job is done; returns its chain, and how many bytes were written to it.
    pub(super) fn end(&self, (job, result): Outcome) -> (Chain, u32) {
        self.answer(job.chain, job.header, result.map_err(Failure::Host))
    }

    /// Writes a request's status.
    fn answer(
        &self,
        mut chain: Chain,
        header: Header,
        result: Result<(), Failure>,
    ) -> (Chain, u32) {
        let status = match result {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Failure::Unsupported) => VIRTIO_BLK_S_UNSUPP,
            Err(Failure::Invalid) => VIRTIO_BLK_S_IOERR,
            Err(Failure::Host(error)) => {
                log_limited!(
                    error,
                    "disk {}: request {} at sector {}: {error}; the guest sees an I/O error",
                    self.disk.path().display(),
                    header.kind,
                    header.sector
                );
                VIRTIO_BLK_S_IOERR
            }
        };
        // The status is the very last byte. What lies between the data and it was not written, and
        // the used length counts only what was written without a gap (section 2.7.8.2).
        let room = header.room;
        let gap = chain.writable.len().saturating_sub(1);
        chain.writable.advance(gap);
        chain.writable.write(&[u8::try_from(status).unwrap_or(1)]);
        let written = if gap == 0 { room + 1 } else { room - gap };
        // A chain is shorter than 4 GiB.
        (chain, u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Carries out what needs no engine; else says what is left for one: what to do, the byte offset
    /// on the disk, and how many bytes.
    fn execute(
        &self,
        header: Header,
        chain: &mut Chain,
    ) -> Result<Option<(Operation, u64, usize)>, Failure> {
        let (operation, len) = match header.kind {
            VIRTIO_BLK_T_IN => (Operation::Read, header.room),
            VIRTIO_BLK_T_OUT if self.disk.is_read_only() => return Err(Failure::Invalid),
            VIRTIO_BLK_T_OUT => {
                let durable = self.is_write_through;
                (Operation::Write { durable }, chain.readable.len())
            }
            VIRTIO_BLK_T_FLUSH => {
                let flush = (Operation::Flush, 0, 0);
                return Ok(self.disk.is_flushed().then_some(flush));
            }
            VIRTIO_BLK_T_GET_ID => {
                let (id, _) = self.serial.split_at(header.room.min(self.serial.len()));
                chain.writable.write(id);
                return Ok(None);
            }
            VIRTIO_BLK_T_DISCARD if self.disk.discard_alignment().is_some() => {
                return self.discard(&mut chain.readable).map(|()| None);
            }
            VIRTIO_BLK_T_WRITE_ZEROES if !self.disk.is_read_only() => {
                return self.write_zeroes(header.zeroes).map(|()| None);
            }
            _ => return Err(Failure::Unsupported),
        };
        let offset = self.extent(header.sector, len)?;
        Ok((len > 0).then_some((operation, offset, len)))
    }

    /// The byte offset of `len` bytes at `sector`, if that is whole sectors of the disk and no
    /// longer than a request may be.
    fn extent(&self, sector: u64, len: usize) -> Result<u64, Failure> {
        if len > limits::REQUEST_SIZE {
            return Err(Failure::Invalid);
        }
        extent(self.disk.sectors(), sector, len as u64)
    }

    fn discard(&self, segments: &mut Buffers) -> Result<(), Failure> {
        let len = segments.len();
        let most = usize::try_from(limits::DISCARD_SEGMENTS).unwrap_or(usize::MAX);
        if len == 0 || !len.is_multiple_of(SEGMENT_SIZE) || len / SEGMENT_SIZE > most {
            return Err(Failure::Invalid);
        }
        while let Some(segment) = segment(segments) {
            // The only flag there is has no meaning for a discard (section 5.2.6.2).
            if segment.flags != 0 {
                return Err(Failure::Unsupported);
            }
            let (offset, len) = self.range(segment, limits::DISCARD_SECTORS)?;
            // The kernel takes an empty range for an error; to the driver it is nothing to do.
            if len > 0 {
                self.disk.discard(offset, len)?;
            }
        }
        self.settle()
    }

    /// The zeroes of one segment; more than one is over what the configuration allows.
    fn write_zeroes(&self, segment: Option<Segment>) -> Result<(), Failure> {
        let segment = segment.ok_or(Failure::Invalid)?;
        if segment.flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(Failure::Unsupported);
        }
        let (offset, len) = self.range(segment, limits::ZEROES_SECTORS)?;
        if len > 0 {
            self.disk.write_zeroes(offset, len, segment.flags != 0)?;
        }
        self.settle()
    }

    /// A segment's byte offset and length, if it is no longer than `most` sectors and on the disk.
    fn range(&self, segment: Segment, most: u32) -> Result<(u64, u64), Failure> {
        if segment.sectors > most {
            return Err(Failure::Invalid);
        }
        let len = u64::from(segment.sectors) * SECTOR_SIZE;
        Ok((extent(self.disk.sectors(), segment.sector, len)?, len))
    }

    /// Makes the last change durable where the driver expects that of each change.
    fn settle(&self) -> Result<(), Failure> {
        if self.is_write_through {
            self.disk.flush()?;
        }
        Ok(())
    }
}

/// The byte offset of `len` bytes at `sector` of a disk of `capacity` sectors, if they are whole
/// sectors and all on the disk.
fn extent(capacity: u64, sector: u64, len: u64) -> Result<u64, Failure> {
    let is_whole = len.is_multiple_of(SECTOR_SIZE);
    let end = sector.checked_add(len / SECTOR_SIZE);
    match end.filter(|&end| is_whole && end <= capacity) {
        // On the disk, so far below the end of a u64.
        Some(_) => Ok(sector * SECTOR_SIZE),
        None => Err(Failure::Invalid),
    }
}

/// `struct virtio_blk_req` up to its data: type, reserved, sector.
fn header(buffers: &mut Buffers) -> Option<(u32, u64)> {
    let kind: Le32 = buffers.read_obj()?;
    let _reserved: Le32 = buffers.read_obj()?;
    let sector: Le64 = buffers.read_obj()?;
    Some((kind.into(), sector.into()))
}

/// Reads a segment, and consumes it.
fn segment(buffers: &mut Buffers) -> Option<Segment> {
    let sector: Le64 = buffers.read_obj()?;
    let sectors: Le32 = buffers.read_obj()?;
    let flags: Le32 = buffers.read_obj()?;
    Some(Segment {
        sector: sector.into(),
        sectors: sectors.into(),
        flags: flags.into(),
    })
}

#[cfg(test)]
mod tests;
