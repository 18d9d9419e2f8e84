//! What one request may ask for at most: told to the driver in the configuration space, and
//! enforced, so that no request keeps the event loop for long.

/// Entries of the queue.
pub(super) const QUEUE_SIZE: u16 = 512;
/// Pieces of data in one request: what a chain has room for beside header and status.
pub(super) const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of one such piece.
pub(super) const SEGMENT_SIZE: u32 = 1 << 20;
/// Bytes of one request.
pub(super) const REQUEST_SIZE: usize = SEGMENTS as usize * SEGMENT_SIZE as usize;
/// Sectors of one segment of a discard: 1 GiB.
pub(super) const DISCARD_SECTORS: u32 = 1 << 21;
/// Segments of one discard.
pub(super) const DISCARD_SEGMENTS: u32 = 32;
/// Sectors of one segment of a write of zeros: 64 MiB, since the host may have to write them all.
pub(super) const ZEROES_SECTORS: u32 = 1 << 17;
/// Segments of one write of zeros.
pub(super) const ZEROES_SEGMENTS: u32 = 1;
