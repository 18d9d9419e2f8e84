//! What a vCPU last asked of user space: said when it cannot go on, for then nobody can ask it.

use std::fmt;

/// How many are kept.
const KEPT: usize = 8;

/// One access to a device, that is one exit to user space.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Direction and space.
    pub kind: Kind,
    /// Port or guest physical address.
    pub address: u64,
    /// Bytes, all repetitions of a string instruction together.
    pub len: usize,
}

/// Direction and space of an access.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
}

/// The last accesses of one vCPU, the oldest first when shown.
#[derive(Debug, Default)]
pub struct LastExits {
    ring: [Option<Access>; KEPT],
    next: usize,
}

impl LastExits {
    /// Keeps an access in the place of the oldest one.
    pub fn push(&mut self, kind: Kind, address: u64, len: usize) {
        self.ring[self.next] = Some(Access { kind, address, len });
        self.next = (self.next + 1) % KEPT;
    }
}

impl fmt::Display for LastExits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (newer, older) = self.ring.split_at(self.next);
        let mut accesses = older.iter().chain(newer).flatten().peekable();
        if accesses.peek().is_none() {
            return f.write_str("none");
        }
        for (index, access) in accesses.enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let verb = match access.kind {
                Kind::PortRead => "in",
                Kind::PortWrite => "out",
                Kind::MmioRead => "read",
                Kind::MmioWrite => "write",
            };
            write!(f, "{separator}{verb} {:#x}/{}", access.address, access.len)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log that names other exits than the last ones, or in another order, misleads whoever reads it.
    #[test]
    fn the_last_ones_are_shown_oldest_first() {
        let mut exits = LastExits::default();
        assert_eq!(exits.to_string(), "none");
        exits.push(Kind::PortWrite, 0x3f8, 1);
        exits.push(Kind::MmioRead, 0xd000_0070, 4);
        assert_eq!(exits.to_string(), "out 0x3f8/1, read 0xd0000070/4");
        for port in 0..10 {
            exits.push(Kind::PortRead, port, 2);
        }
        assert_eq!(
            exits.to_string(),
            "in 0x2/2, in 0x3/2, in 0x4/2, in 0x5/2, in 0x6/2, in 0x7/2, in 0x8/2, in 0x9/2"
        );
    }
}
