//! Ring arithmetic: every index, at every place where indices wrap, against numbers that do not.

use std::collections::VecDeque;

use super::*;

/// Where 16 bits or their sign wrap, and where they do not.
const BORDERS: [u16; 8] = [0, 1, 2, 0x7fff, 0x8000, 0xfff8, 0xfffe, 0xffff];

/// If it fails, a driver waits for an interrupt that never comes, or is interrupted for nothing.
#[test]
fn an_event_index_is_passed_if_its_entry_was_used() {
    let counts = (0..=256).chain([257, 0x7fff, 0x8000, 0x8001, 0xffff]);
    for (old, count) in BORDERS
        .into_iter()
        .flat_map(|b| counts.clone().map(move |c| (b, c)))
    {
        let new = old.wrapping_add(count);
        // The entries used, as numbers that do not wrap.
        let used = u32::from(old)..u32::from(old) + u32::from(count);
        for event in 0..=u16::MAX {
            let entry = u32::from(event);
            let is_used = used.contains(&entry) || used.contains(&(entry + 0x1_0000));
            assert_eq!(is_passed(event, old, new), is_used, "{event} {old} {new}");
        }
    }
}

/// If it fails, a lie about the available index is believed, or an honest one refused.
#[test]
fn an_available_index_is_at_most_a_ring_ahead() {
    for (size, next) in [1, 8, 16]
        .into_iter()
        .flat_map(|size| BORDERS.map(|next| (size, next)))
    {
        let mut rig = Rig::new(false);
        rig.queue.ring.size = size;
        rig.queue.ring.next_avail = next;
        for index in 0..=u16::MAX {
            rig.put(AVAIL + 2, index);
            let ahead = (u32::from(index) + 0x1_0000 - u32::from(next)) % 0x1_0000;
            let pending = rig.queue.pending().ok().map(u32::from);
            assert_eq!(pending, Some(ahead).filter(|&n| n <= size.into()));
        }
    }
}

/// What driver and device do with a ring.
#[derive(Clone, Debug)]
enum Step {
    /// The driver makes chains available, as many as fit.
    Offer(u16),
    /// The device takes chains.
    Pop(u16),
    /// The device gives back the last one that it took.
    Undo,
    /// The device completes the oldest chains, one by one or together.
    Complete(u16, bool),
    /// The driver takes what was used, and asks to be told of the entry that is so far ahead.
    Take(u16),
    Signal,
    Kicks(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..=SIZE).prop_map(Step::Offer),
        4 => (0..=SIZE).prop_map(Step::Pop),
        1 => Just(Step::Undo),
        4 => (0..=SIZE, any::<bool>()).prop_map(|(count, is_one)| Step::Complete(count, is_one)),
        2 => (0..=SIZE).prop_map(Step::Take),
        2 => Just(Step::Signal),
        1 => any::<bool>().prop_map(Step::Kicks),
    ]
}

/// Both ends of a ring as numbers that do not wrap.
struct Ends {
    rig: Rig,
    event_idx: bool,
    start: u16,
    offered: u64,
    popped: VecDeque<u16>,
    taken: u64,
    used: u64,
    signalled: u64,
    event: u64,
    is_due: bool,
}

impl Ends {
    fn new(start: u16, event_idx: bool) -> Self {
        let mut rig = Rig::new(event_idx);
        rig.queue.ring.next_avail = start;
        rig.queue.ring.next_used = start;
        rig.queue.signalled = start;
        rig.put(AVAIL + 2, start);
        rig.put(USED + 2, start);
        rig.put(AVAIL + 4 + 2 * u64::from(SIZE), start);
        Self {
            rig,
            event_idx,
            start,
            offered: 0,
            popped: VecDeque::new(),
            taken: 0,
            used: 0,
            signalled: 0,
            event: 0,
            is_due: false,
        }
    }

    /// The ring's index for a number.
    fn index(&self, number: u64) -> u16 {
        u16::try_from((u64::from(self.start) + number) % 0x1_0000).unwrap()
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Offer(count) => {
                // The driver has an entry for each chain until it is used.
                let room = u64::from(SIZE) - (self.offered - self.used);
                let count = u64::from(count).min(room);
                let from = self.index(self.offered);
                self.rig.offer(from, u16::try_from(count).unwrap());
                self.offered += count;
            }
            Step::Pop(count) => (0..count).for_each(|_| self.pop()),
            Step::Undo => {
                if self.popped.pop_back().is_some() {
                    self.rig.queue.undo_pop();
                    self.taken -= 1;
                }
            }
            Step::Complete(count, is_one) => self.complete(usize::from(count), is_one),
            Step::Take(ahead) => {
                self.event = self.used + u64::from(ahead);
                let index = self.index(self.event);
                self.rig.put(AVAIL + 4 + 2 * u64::from(SIZE), index);
            }
            Step::Signal => self.signal(),
            Step::Kicks(is_wanted) => self.kicks(is_wanted),
        }
    }

    fn pop(&mut self) {
        let mut chain = Chain::new(&self.rig.mem);
        let is_there = self.rig.queue.pop(&mut chain).unwrap();
        assert_eq!(is_there, self.taken < self.offered);
        if is_there {
            assert_eq!(chain.head(), self.index(self.taken) % SIZE);
            self.popped.push_back(chain.head());
            self.taken += 1;
        }
    }

    fn complete(&mut self, count: usize, is_one: bool) {
        let count = count.min(self.popped.len());
        let chains: Vec<_> = self
            .popped
            .drain(..count)
            .map(|h| (h, 7 + u32::from(h)))
            .collect();
        if is_one {
            for &(head, len) in &chains {
                self.rig.queue.complete(head, len);
            }
        } else {
            self.rig.queue.complete_all(&chains);
        }
        for (head, len) in chains {
            let entry = USED + 4 + 8 * u64::from(self.index(self.used) % SIZE);
            let found: [u32; 2] = [0, 4].map(|at| {
                let place = GuestAddress(entry + at);
                self.rig.mem.read_obj(place).unwrap()
            });
            assert_eq!(found, [u32::from(head), len]);
            self.used += 1;
            self.is_due = true;
        }
        assert_eq!(self.rig.get(USED + 2), self.index(self.used));
    }

    fn signal(&mut self) {
        self.rig.queue.signal();
        let is_wanted = !self.event_idx || (self.signalled..self.used).contains(&self.event);
        let is_told = std::mem::take(&mut self.is_due) && is_wanted;
        assert_eq!(self.rig.interrupts(), u64::from(is_told));
        self.signalled = self.used;
    }

    fn kicks(&mut self, is_wanted: bool) {
        if !is_wanted {
            return self.rig.queue.disable_kicks();
        }
        let is_more = self.rig.queue.enable_kicks();
        assert_eq!(is_more, self.taken < self.offered);
        if self.event_idx {
            let event = self.rig.get(USED + 4 + 8 * u64::from(SIZE));
            assert_eq!(event, self.index(self.taken), "the kick that is wanted");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// If it fails, a chain is lost, served twice or answered in the wrong place, or one side waits
    /// for the other for ever.
    #[test]
    fn both_ends_of_a_ring_agree_wherever_indices_wrap(
        start in prop_oneof![proptest::sample::select(&BORDERS[..]), any::<u16>()],
        event_idx in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mut ends = Ends::new(start, event_idx);
        for step in &steps {
            ends.apply(step);
        }
    }
}
