//! The buffers of a descriptor chain, as the host sees them: checked, mapped, ready for I/O
//! without a copy.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;

use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use super::QueueError;
use super::ring::RawDescriptor;
use crate::GuestMemory;

/// The pieces of one list at most: what one `preadv` takes (IOV_MAX).
pub const MAX_PIECES: usize = 1024;

/// A list of guest buffers that lie in guest memory, read from the front or written from the
/// front; what is read or written is consumed.
///
/// Invariant: each piece lies in a region that `mem` keeps mapped, so the pointers live as long as
/// the list does, whatever becomes of the queue and of the chain that it came from.
#[derive(Default)]
pub struct Buffers {
    mem: GuestMemory,
    /// Only `pieces[first..]` is left.
    pieces: Vec<libc::iovec>,
    first: usize,
    /// Bytes left in all.
    len: usize,
    /// The region that the last buffer lay in: nearly always that of the next one, too.
    region: Option<Region>,
}

/// A region of guest memory, as the host has it mapped.
#[derive(Clone, Copy)]
struct Region {
    start: GuestAddress,
    len: u64,
    host: *mut u8,
}

impl Region {
    /// Where `len` bytes at `addr` are in the host, if all of them are in the region.
    #[inline]
    fn find(&self, addr: GuestAddress, len: u64) -> Option<*mut u8> {
        // Below its start: a huge offset, which is past its end.
        let offset = addr.0.wrapping_sub(self.start.0);
        let is_inside = offset <= self.len && len <= self.len - offset;
        is_inside.then(|| {
            self.host
                .wrapping_add(usize::try_from(offset).unwrap_or(usize::MAX))
        })
    }
}

// SAFETY: the pointers lead into guest memory that `mem` keeps mapped; guest memory is shared with
// the vCPU threads anyway and belongs to no thread.
unsafe impl Send for Buffers {}

impl Buffers {
    /// An empty list of buffers in `mem`.
    pub(super) fn new(mem: GuestMemory) -> Self {
        Self {
            mem,
            ..Self::default()
        }
    }

    /// Forgets the buffers and keeps the room for others.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.first = 0;
        self.len = 0;
    }

    /// Adds `len` bytes at `addr`. A buffer of no bytes adds nothing, wherever it is.
    #[inline]
    pub(super) fn push(&mut self, addr: GuestAddress, len: u32) -> Result<(), QueueError> {
        let known = self.region.and_then(|region| region.find(addr, len.into()));
        match known {
            Some(host) if len > 0 => self.push_piece(libc::iovec {
                iov_base: host.cast(),
                iov_len: len as usize,
            }),
            _ => self.push_unknown(addr, len),
        }
    }

    /// Adds the buffers of descriptors as drivers write them for a large one, and returns how many: they
    /// lie one behind the other in `table` from `index` on, each with just these `flags` and the next
    /// one's index, in the region of the last buffer. `most` of them at most; what is not like that is
    /// left to the caller.
    #[inline(never)]
    pub(super) fn push_run(
        &mut self,
        table: &[RawDescriptor],
        index: u16,
        flags: u16,
        most: usize,
    ) -> usize {
        let Some(region) = self.region else {
            return 0;
        };
        let (before, mut len) = (self.pieces.len(), 0);
        let most = most.min(MAX_PIECES - before).min((u16::MAX - index).into());
        // Flags and next (virtio 1.2, section 2.7.5), little-endian behind the length.
        let mut expected = u64::from(flags) | (u64::from(index) << 16);
        for [addr, rest] in table.iter().skip(index.into()).take(most) {
            let rest = u64::from_le(rest.load(Ordering::Relaxed));
            let count = rest & u64::from(u32::MAX);
            expected += 1 << 16;
            let addr = GuestAddress(u64::from_le(addr.load(Ordering::Relaxed)));
            let Some(host) = region.find(addr, count) else {
                break;
            };
            if rest >> 32 != expected || count == 0 {
                break;
            }
            let iov_len = usize::try_from(count).unwrap_or(usize::MAX);
            len += iov_len;
            let iov_base = host.cast();
            self.pieces.push(libc::iovec { iov_base, iov_len });
        }
        self.len += len;
        self.pieces.len() - before
    }

    /// As [`Self::push`] for a buffer that is not in the region of the last one, or not in one region.
    #[cold]
    fn push_unknown(&mut self, addr: GuestAddress, len: u32) -> Result<(), QueueError> {
        let outside = || QueueError::Buffer { addr: addr.0, len };
        let count = usize::try_from(len).map_err(|_| outside())?;
        self.learn(addr);
        let slices = self.mem.get_slices(addr, count);
        let pieces: Result<Vec<_>, _> = slices
            .map(|slice| {
                slice.map(|slice| libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                })
            })
            .collect();
        let pieces = pieces.map_err(|_| outside())?;
        pieces
            .into_iter()
            .try_for_each(|piece| self.push_piece(piece))
    }

    /// Where `len` bytes at `addr` are in the host, if all of them are in one region, which stays mapped
    /// as long as `self` lives.
    pub(super) fn find(&mut self, addr: GuestAddress, len: u32) -> Option<*mut u8> {
        let find = |region: Option<Region>| region.and_then(|region| region.find(addr, len.into()));
        find(self.region).or_else(|| {
            self.learn(addr);
            find(self.region)
        })
    }

    /// Looks up the region of `addr`, if there is one.
    fn learn(&mut self, addr: GuestAddress) {
        if let Some(region) = self.mem.find_region(addr) {
            self.region = Some(Region {
                start: region.start_addr(),
                len: region.len(),
                host: region.as_ptr(),
            });
        }
    }

    /// Adds a piece of guest memory.
    fn push_piece(&mut self, piece: libc::iovec) -> Result<(), QueueError> {
        if self.pieces.len() == MAX_PIECES {
            return Err(QueueError::Pieces);
        }
        self.len += piece.iov_len;
        self.pieces.push(piece);
        Ok(())
    }

    /// Bytes left.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is left, for a system call that takes an iovec array: at most [`MAX_PIECES`] pieces,
    /// all of them in guest memory that stays mapped as long as `self` lives.
    pub fn iovecs(&self) -> &[libc::iovec] {
        self.pieces.get(self.first..).unwrap_or_default()
    }

    /// The pieces of the first `len` bytes, or of what is left if that is less, the last one cut
    /// to fit: for a system call that goes on behind our back. They stay mapped as long as `self`
    /// lives.
    pub fn first_iovecs(&self, len: usize) -> Vec<libc::iovec> {
        let mut left = len;
        let mut pieces = Vec::with_capacity(self.iovecs().len());
        for piece in self.iovecs() {
            let iov_len = piece.iov_len.min(left);
            if iov_len == 0 {
                break;
            }
            left -= iov_len;
            pieces.push(libc::iovec { iov_len, ..*piece });
        }
        pieces
    }

    /// Skips `count` bytes, or what is left if that is less.
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.len);
        let (index, skip) = self.locate(count);
        self.first = index;
        self.len -= count;
        if let Some(piece) = self.pieces.get_mut(index) {
            piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(skip).cast();
            piece.iov_len -= skip;
        }
    }

    /// Where the byte is that has `count` bytes before it, at most as many as are left: its piece, and
    /// how many of them are in the same. Looked for from the nearer end: what is behind a request's
    /// data is short.
    fn locate(&self, count: usize) -> (usize, usize) {
        let (mut before, mut behind) = (count, self.len.saturating_sub(count));
        if before <= behind {
            for (index, piece) in self.pieces.iter().enumerate().skip(self.first) {
                if before < piece.iov_len {
                    return (index, before);
                }
                before -= piece.iov_len;
            }
        } else {
            for (index, piece) in self.pieces.iter().enumerate().skip(self.first).rev() {
                if behind == 0 {
                    return (index + 1, 0);
                }
                if behind <= piece.iov_len {
                    return (index, piece.iov_len - behind);
                }
                behind -= piece.iov_len;
            }
        }
        (self.pieces.len(), 0)
    }

    /// Forgets all but the first `count` bytes.
    pub fn truncate(&mut self, count: usize) {
        let mut left = count;
        let mut end = self.first;
        while let Some(piece) = self.pieces.get_mut(end)
            && left > 0
        {
            piece.iov_len = piece.iov_len.min(left);
            left -= piece.iov_len;
            end += 1;
        }
        self.pieces.truncate(end);
        self.len = self.len.min(count);
    }

    /// Copies from guest memory and consumes what it copied; returns how many bytes, fewer than
    /// `data` has only at the end.
    pub fn read(&mut self, data: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.iovecs() {
            let rest = data.get_mut(done..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            done += self.slice(piece).copy_to(rest);
        }
        self.advance(done);
        done
    }

    /// Copies to guest memory and consumes the room it took; returns how many bytes, fewer than
    /// `data` has only at the end.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.iovecs() {
            let rest = data.get(done..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            self.slice(piece).copy_from(rest);
            done += rest.len().min(piece.iov_len);
        }
        self.advance(done);
        done
    }

    /// Reads a structure of the wire and consumes it; `None` if less than that is left, and then
    /// nothing is consumed.
    pub fn read_obj<T: ByteValued>(&mut self) -> Option<T> {
        if self.len < size_of::<T>() {
            return None;
        }
        let mut object = T::zeroed();
        self.read(object.as_mut_slice());
        Some(object)
    }

    /// Fills the first `len` bytes from `file` at `offset`, and consumes them. The end of the
    /// file before that is an error; what was read until then is consumed.
    pub fn read_exact_at(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
    ) -> io::Result<()> {
        self.read_at(file, offset, len, 0)
    }

    /// As [`Self::read_exact_at`] as far as it goes without waiting for the disk, then
    /// [`io::ErrorKind::WouldBlock`]. A file that cannot be read like this says EOPNOTSUPP.
    pub fn try_read_at(&mut self, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<()> {
        self.read_at(file, offset, len, libc::RWF_NOWAIT)
    }

    fn read_at(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        flags: libc::c_int,
    ) -> io::Result<()> {
        self.transfer(offset, len, |pieces, count, at| {
            // SAFETY: `count` counts the pieces, which lie in guest memory that stays mapped during
            // the call; the kernel writes to nothing else.
            unsafe { libc::preadv2(file.as_raw_fd(), pieces, count, at, flags) }
        })
    }

    /// Writes the first `len` bytes to `file` at `offset`, and consumes them. With `durable` they
    /// are on stable storage when it returns.
    pub fn write_all_at(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        durable: bool,
    ) -> io::Result<()> {
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        self.write_at(file, offset, len, flags)
    }

    /// As [`Self::write_all_at`] as far as it goes without waiting for the disk, then
    /// [`io::ErrorKind::WouldBlock`]. A file that cannot be written like this says EOPNOTSUPP.
    pub fn try_write_at(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
    ) -> io::Result<()> {
        self.write_at(file, offset, len, libc::RWF_NOWAIT)
    }

    fn write_at(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        flags: libc::c_int,
    ) -> io::Result<()> {
        self.transfer(offset, len, |pieces, count, at| {
            // SAFETY: `count` counts the pieces, which lie in guest memory that stays mapped during
            // the call; the kernel only reads them.
            unsafe { libc::pwritev2(file.as_raw_fd(), pieces, count, at, flags) }
        })
    }

    /// One `readv`: a frame from a tap, say. Returns how many bytes came, and consumes that.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `read_exact_at`.
        self.vectored(|pieces, count| unsafe { libc::readv(fd.as_raw_fd(), pieces, count) })
    }

    /// One `writev`: a frame to a tap, say. Returns how many bytes went, and consumes that.
    pub fn write_to(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `write_all_at`.
        self.vectored(|pieces, count| unsafe { libc::writev(fd.as_raw_fd(), pieces, count) })
    }

    /// One `send` or `sendmsg` to a stream socket, which neither waits nor raises SIGPIPE. Returns how
    /// many bytes went, and consumes that.
    pub fn send_to(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        if let [piece] = self.iovecs() {
            // SAFETY: as in `write_all_at`. The kernel has less to look at than with a message.
            let sent =
                unsafe { libc::send(socket.as_raw_fd(), piece.iov_base, piece.iov_len, flags) };
            let done = io_result(sent)?;
            self.advance(done);
            return Ok(done);
        }
        self.vectored(|pieces, count| {
            let message = libc::msghdr {
                msg_name: std::ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: pieces.cast_mut(),
                msg_iovlen: usize::try_from(count).unwrap_or(0),
                msg_control: std::ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            };
            // SAFETY: as in `write_all_at`; the kernel does not write to the message either.
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) }
        })
    }

    /// Calls `call` until the first `len` bytes went through it.
    fn transfer(
        &mut self,
        offset: u64,
        len: usize,
        call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
    ) -> io::Result<()> {
        if len > self.len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (mut left, mut at) = (len, offset);
        while left > 0 {
            let position = libc::off_t::try_from(at).map_err(io::Error::other)?;
            let result = self.limited(left, |pieces| {
                // At most MAX_PIECES, so this never saturates.
                let count = libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX);
                call(pieces.as_ptr(), count, position)
            });
            match io_result(result) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => {
                    self.advance(done);
                    left = left.saturating_sub(done);
                    at = at.saturating_add(done as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Calls `call` once with all that is left.
    fn vectored(
        &mut self,
        call: impl Fn(*const libc::iovec, libc::c_int) -> isize,
    ) -> io::Result<usize> {
        let pieces = self.iovecs();
        // At most MAX_PIECES, so this never saturates.
        let count = libc::c_int::try_from(pieces.len()).unwrap_or(libc::c_int::MAX);
        let done = io_result(call(pieces.as_ptr(), count))?;
        self.advance(done);
        Ok(done)
    }

    /// Calls `call` with the pieces that make up the first `len` bytes, the last one cut to fit.
    fn limited<R>(&mut self, len: usize, call: impl FnOnce(&[libc::iovec]) -> R) -> R {
        let (index, cut) = self.locate(len);
        let (first, end) = (self.first, index + usize::from(cut > 0));
        let whole = self.pieces.get(index).map(|piece| piece.iov_len);
        let set = |pieces: &mut Vec<libc::iovec>, len: usize| {
            if let Some(piece) = pieces.get_mut(index).filter(|_| cut > 0) {
                piece.iov_len = len;
            }
        };
        set(&mut self.pieces, cut);
        let result = call(self.pieces.get(first..end).unwrap_or_default());
        set(&mut self.pieces, whole.unwrap_or_default());
        result
    }

    /// A piece of this list as vm-memory sees it.
    fn slice(&self, piece: &libc::iovec) -> VolatileSlice<'_> {
        // SAFETY: the type's invariant: the piece lies in a region that `self.mem` keeps mapped, and
        // the slice borrows `self`. The guest's own accesses are not Rust's, ours are volatile.
        unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
    }
}

/// What a system call returned, as Rust says it.
fn io_result(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} pieces", self.len, self.iovecs().len())
    }
}
