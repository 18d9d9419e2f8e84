//! Who may send how much (virtio 1.2, section 5.10.6.3): each side says how large its buffer for a
//! connection is and how many bytes have ever left it; the other side sends no more than fits.
//!
//! Counters are of 32 bits and wrap. The guest's are its word, and cannot do harm: the most that
//! they allow us is to write into buffers that the guest gave for it.

/// What one side says of its buffer, in each packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Receipt {
    /// Bytes that the buffer holds.
    pub(super) alloc: u32,
    /// Bytes that have left it, ever.
    pub(super) forwarded: u32,
}

/// What we may send to the guest.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PeerCredit {
    receipt: Receipt,
    /// Bytes sent, ever.
    sent: u32,
}

impl PeerCredit {
    /// The guest says where it is.
    pub(super) fn update(&mut self, receipt: Receipt) {
        self.receipt = receipt;
    }

    /// Bytes that we may send now.
    pub(super) fn available(&self) -> u32 {
        let held = self.sent.wrapping_sub(self.receipt.forwarded);
        self.receipt.alloc.saturating_sub(held)
    }

    /// We sent `count` bytes.
    pub(super) fn sent(&mut self, count: u32) {
        self.sent = self.sent.wrapping_add(count);
    }
}

/// What the guest may send to us.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnCredit {
    alloc: u32,
    /// Bytes received, ever.
    received: u32,
    /// Bytes of them that left our hands.
    forwarded: u32,
    /// What we last told the guest of them.
    announced: u32,
}

impl OwnCredit {
    /// A buffer of `alloc` bytes.
    pub(super) fn new(alloc: u32) -> Self {
        Self {
            alloc,
            received: 0,
            forwarded: 0,
            announced: 0,
        }
    }

    /// The guest sent `count` bytes; false if it may not send so many.
    pub(super) fn receive(&mut self, count: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        let fits = count <= self.alloc.saturating_sub(held);
        if fits {
            self.received = self.received.wrapping_add(count);
        }
        fits
    }

    /// `count` bytes left our hands.
    pub(super) fn forward(&mut self, count: usize) {
        // Never more than was received, which has 32 bits.
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.forwarded = self.forwarded.wrapping_add(count);
    }

    /// Whether the guest should be told of room that it does not know of: it believes that half of
    /// the buffer is used, and less is.
    pub(super) fn is_update_due(&self) -> bool {
        let believed = self.received.wrapping_sub(self.announced);
        self.announced != self.forwarded && believed >= self.alloc / 2
    }

    /// What to tell the guest, in a packet that it gets for certain.
    pub(super) fn announce(&mut self) -> Receipt {
        self.announced = self.forwarded;
        Receipt {
            alloc: self.alloc,
            forwarded: self.forwarded,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const ALLOC: u32 = 1000;

    proptest! {
        /// If it fails, a guest gets more memory of the host's than its credit, or an honest one is
        /// refused; or a stream stands still because nobody says that there is room.
        #[test]
        fn what_is_held_is_bounded_and_nobody_waits_for_ever(
            start in any::<u32>(),
            steps in vec((0u32..2000, 0u32..2000, any::<bool>()), 1..200),
        ) {
            let mut host = OwnCredit { received: start, forwarded: start, announced: start, ..OwnCredit::new(ALLOC) };
            let mut guest = PeerCredit { receipt: host.announce(), sent: start };
            let mut held = 0u32;
            for (send, forward, is_honest) in steps {
                let count = if is_honest { send.min(guest.available()) } else { send };
                let fits = host.receive(count);
                prop_assert_eq!(fits, count <= ALLOC - held);
                prop_assert!(fits || !is_honest);
                if fits {
                    guest.sent(count);
                    held += count;
                }
                let forward = forward.min(held);
                host.forward(forward as usize);
                held -= forward;
                if host.is_update_due() {
                    guest.update(host.announce());
                    prop_assert_eq!(guest.available(), ALLOC - held);
                }
                // Who has no credit and sees no buffer behind it is told.
                prop_assert!(held > 0 || guest.available() > ALLOC / 2);
            }
        }

        /// If it fails, numbers that a guest makes up are an overflow, or credit beyond its buffer.
        #[test]
        fn made_up_numbers_give_no_more_than_their_buffer(
            alloc in any::<u32>(), forwarded in any::<u32>(), sent in any::<u32>(),
        ) {
            let mut peer = PeerCredit::default();
            peer.sent(sent);
            peer.update(Receipt { alloc, forwarded });
            prop_assert!(peer.available() <= alloc);
            peer.sent(peer.available());
            prop_assert_eq!(peer.available(), 0);
        }
    }
}
