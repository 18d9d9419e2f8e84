//! Packets: a header of 44 bytes (virtio 1.2, section 5.10.6), and the data behind it.

use super::credit::Receipt;
use crate::virtio::{Buffers, QueueError};

/// Bytes of a header.
pub(super) const HEADER: usize = 44;
/// The address of the host: where the guest's packets go.
pub(super) const HOST_CID: u64 = 2;
/// The type of a stream socket's packets, the only ones there are.
pub(super) const STREAM: u16 = 1;

/// Flag of a SHUTDOWN: its sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of a SHUTDOWN: its sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both of them.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    /// None of these.
    Unknown(u16),
}

impl From<u16> for Op {
    fn from(number: u16) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => Self::Unknown(number),
        }
    }
}

impl From<Op> for u16 {
    fn from(op: Op) -> Self {
        match op {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::Data => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
            Op::Unknown(number) => number,
        }
    }
}

/// A connection's name: its two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// A header, as its sender wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of data.
    pub(super) len: u32,
    /// STREAM.
    pub(super) kind: u16,
    pub(super) op: Op,
    /// For SHUTDOWN.
    pub(super) flags: u32,
    /// What its sender says of its own buffer.
    pub(super) receipt: Receipt,
}

impl Header {
    /// A packet of ours to the guest `cid`, without data.
    pub(super) fn to_guest(cid: u64, ports: Ports, op: Op) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: cid,
            src_port: ports.host,
            dst_port: ports.guest,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            receipt: Receipt::default(),
        }
    }

    /// The answer to a packet that belongs to nothing.
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: 0,
            kind: self.kind,
            op: Op::Reset,
            flags: 0,
            receipt: Receipt::default(),
        }
    }

    /// The connection that a packet of the guest's belongs to.
    pub(super) fn ports(&self) -> Ports {
        Ports {
            host: self.dst_port,
            guest: self.src_port,
        }
    }

    /// Takes the header from a chain of the guest's, and leaves the packet's data.
    pub(super) fn take(packet: &mut Buffers) -> Result<Self, QueueError> {
        let mut bytes = [0; HEADER];
        if packet.read(&mut bytes) < HEADER {
            return Err(QueueError::Request("a vsock packet without a whole header"));
        }
        let header = Self::decode(&bytes);
        match usize::try_from(header.len) {
            Ok(len) if len <= packet.len() => packet.truncate(len),
            _ => {
                return Err(QueueError::Request(
                    "a vsock packet longer than its buffers",
                ));
            }
        }
        Ok(header)
    }

    /// The header that these bytes make.
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)).into(),
            flags: u32::from_le_bytes(take(&mut rest)),
            receipt: Receipt {
                alloc: u32::from_le_bytes(take(&mut rest)),
                forwarded: u32::from_le_bytes(take(&mut rest)),
            },
        }
    }

    /// As it goes into guest memory.
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, &self.src_cid.to_le_bytes());
        put(&mut rest, &self.dst_cid.to_le_bytes());
        put(&mut rest, &self.src_port.to_le_bytes());
        put(&mut rest, &self.dst_port.to_le_bytes());
        put(&mut rest, &self.len.to_le_bytes());
        put(&mut rest, &self.kind.to_le_bytes());
        put(&mut rest, &u16::from(self.op).to_le_bytes());
        put(&mut rest, &self.flags.to_le_bytes());
        put(&mut rest, &self.receipt.alloc.to_le_bytes());
        put(&mut rest, &self.receipt.forwarded.to_le_bytes());
        bytes
    }
}

/// The next `N` bytes of a header; all fields together are as long as it is.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, others) = rest.split_first_chunk().unwrap_or((&[0; N], &[]));
    *rest = others;
    *field
}

/// Puts a field behind those before it.
fn put(rest: &mut &mut [u8], field: &[u8]) {
    if let Some((to, others)) = std::mem::take(rest).split_at_mut_checked(field.len()) {
        to.copy_from_slice(field);
        *rest = others;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, guest and host read each other's headers wrong.
    #[test]
    fn a_header_is_laid_out_as_specified() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x3132_3334,
            kind: 0x4142,
            op: Op::Unknown(0x5152),
            flags: 0x6162_6364,
            receipt: Receipt {
                alloc: 0x7172_7374,
                forwarded: 0x8182_8384,
            },
        };
        let bytes = header.encode();
        let expected = [
            8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23,
            0x22, 0x21, 0x34, 0x33, 0x32, 0x31, 0x42, 0x41, 0x52, 0x51, 0x64, 0x63, 0x62, 0x61,
            0x74, 0x73, 0x72, 0x71, 0x84, 0x83, 0x82, 0x81,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(Header::decode(&bytes), header);
        for number in 0..10 {
            assert_eq!(u16::from(Op::from(number)), number);
        }
    }
}
