//! One request of the driver (virtio 1.2, section 5.2.6): from its chain to its status.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Le32, Le64};

use super::disk::{Disk, SECTOR_SIZE};
use super::limits;
use crate::log_limit::log_limited;
use crate::virtio::{Buffers, Chain, QueueError};

/// A disk's serial number, padded with zeros.
pub(super) type Serial = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// Bytes of a segment of a discard.
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) disk: &'a Disk,
    pub(super) serial: &'a Serial,
    /// Whether a write is to reach stable storage before it is reported: the driver did not accept
    /// VIRTIO_BLK_F_FLUSH, so it knows of no write cache.
    pub(super) is_write_through: bool,
}

impl Target<'_> {
    /// Carries out the request in `chain` and writes its status; returns how many bytes were
    /// written to the chain. The framing is free: where the header, the data and the status start
    /// is a matter of bytes, not of descriptors.
    pub(super) fn serve(&self, chain: &mut Chain) -> Result<u32, QueueError> {
        let Some((kind, sector)) = header(&mut chain.readable) else {
            return Err(QueueError::Request("a disk request without a header"));
        };
        let Some(room) = chain.writable.len().checked_sub(1) else {
            return Err(QueueError::Request(
                "a disk request without room for a status",
            ));
        };
        let status = match self.execute(kind, sector, room, chain) {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Failure::Unsupported) => VIRTIO_BLK_S_UNSUPP,
            Err(Failure::Invalid) => VIRTIO_BLK_S_IOERR,
            Err(Failure::Host(error)) => {
                log_limited!(
                    error,
                    "disk {}: request {kind} at sector {sector}: {error}; the guest sees an I/O error",
                    self.disk.path().display()
                );
                VIRTIO_BLK_S_IOERR
            }
        };
        // The status is the very last byte. What lies between the data and it was not written, and
        // the used length counts only what was written without a gap (section 2.7.8.2).
        let gap = chain.writable.len().saturating_sub(1);
        chain.writable.advance(gap);
        chain.writable.write(&[u8::try_from(status).unwrap_or(1)]);
        let written = if gap == 0 { room + 1 } else { room - gap };
        // A chain is shorter than 4 GiB.
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    /// Carries out a request. `room` is what is writable before the status.
    fn execute(
        &self,
        kind: u32,
        sector: u64,
        room: usize,
        chain: &mut Chain,
    ) -> Result<(), Failure> {
        match kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.extent(sector, room)?;
                Ok(self.disk.read(offset, &mut chain.writable, room)?)
            }
            VIRTIO_BLK_T_OUT => {
                self.writable_disk()?;
                let offset = self.extent(sector, chain.readable.len())?;
                let data = &mut chain.readable;
                Ok(self.disk.write(offset, data, self.is_write_through)?)
            }
            VIRTIO_BLK_T_FLUSH => Ok(self.disk.flush()?),
            VIRTIO_BLK_T_GET_ID => {
                let (id, _) = self.serial.split_at(room.min(self.serial.len()));
                chain.writable.write(id);
                Ok(())
            }
            VIRTIO_BLK_T_DISCARD if self.disk.discard_alignment().is_some() => {
                self.discard(&mut chain.readable)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if !self.disk.is_read_only() => {
                self.write_zeroes(&mut chain.readable)
            }
            _ => Err(Failure::Unsupported),
        }
    }

    fn writable_disk(&self) -> Result<(), Failure> {
        if self.disk.is_read_only() {
            return Err(Failure::Invalid);
        }
        Ok(())
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
        count_segments(segments, limits::DISCARD_SEGMENTS)?;
        while let Some((sector, sectors, flags)) = segment(segments) {
            // The only flag there is has no meaning for a discard (section 5.2.6.2).
            if flags != 0 {
                return Err(Failure::Unsupported);
            }
            let (offset, len) = self.range(sector, sectors, limits::DISCARD_SECTORS)?;
            // The kernel takes an empty range for an error; to the driver it is nothing to do.
            if len > 0 {
                self.disk.discard(offset, len)?;
            }
        }
        self.settle()
    }

    fn write_zeroes(&self, segments: &mut Buffers) -> Result<(), Failure> {
        count_segments(segments, limits::ZEROES_SEGMENTS)?;
        while let Some((sector, sectors, flags)) = segment(segments) {
            if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                return Err(Failure::Unsupported);
            }
            let (offset, len) = self.range(sector, sectors, limits::ZEROES_SECTORS)?;
            if len > 0 {
                self.disk.write_zeroes(offset, len, flags != 0)?;
            }
        }
        self.settle()
    }

    /// A segment's byte offset and length, if it is no longer than `most` sectors and on the disk.
    fn range(&self, sector: u64, sectors: u32, most: u32) -> Result<(u64, u64), Failure> {
        if sectors > most {
            return Err(Failure::Invalid);
        }
        let len = u64::from(sectors) * SECTOR_SIZE;
        Ok((extent(self.disk.sectors(), sector, len)?, len))
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

/// Refuses a list of segments that is empty, no whole number of them, or too long.
fn count_segments(segments: &Buffers, most: u32) -> Result<(), Failure> {
    let len = segments.len();
    let is_whole = len > 0 && len.is_multiple_of(SEGMENT_SIZE);
    if is_whole && len / SEGMENT_SIZE <= usize::try_from(most).unwrap_or(usize::MAX) {
        return Ok(());
    }
    Err(Failure::Invalid)
}

/// `struct virtio_blk_req` up to its data: type, reserved, sector.
fn header(buffers: &mut Buffers) -> Option<(u32, u64)> {
    let kind: Le32 = buffers.read_obj()?;
    let _reserved: Le32 = buffers.read_obj()?;
    let sector: Le64 = buffers.read_obj()?;
    Some((kind.into(), sector.into()))
}

/// `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
fn segment(buffers: &mut Buffers) -> Option<(u64, u32, u32)> {
    let sector: Le64 = buffers.read_obj()?;
    let sectors: Le32 = buffers.read_obj()?;
    let flags: Le32 = buffers.read_obj()?;
    Some((sector.into(), sectors.into(), flags.into()))
}
