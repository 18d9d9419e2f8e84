//! One queue of a disk: requests from the driver to an engine, and their answers back.

use event_manager::{EventOps, EventSet, Events};

use super::engine::{Engine, Outcome};
use super::request::{Request, Step, Target};
use super::throttle::Throttle;
use crate::virtio::queue::DRAIN_CHAINS;
use crate::virtio::{Chain, Lane, QueueError, VirtQueue};

/// Chains that are kept for reuse.
const SPARE_CHAINS: usize = 16;

/// Bytes of data after which answers go back though there are more requests: the driver works on
/// them, on its own CPU, while the next ones are carried out.
const BATCH: u64 = 1 << 20;

/// A queue with its engine: the lane of a disk.
#[derive(Debug)]
pub(super) struct BlockQueue {
    engine: Box<dyn Engine>,
    throttle: Throttle,
    active: Option<Active>,
    spare: Vec<Chain>,
    /// What is answered and not given back yet: heads, and bytes written.
    answered: Vec<(u16, u32)>,
    /// Bytes of data of the requests that were started since answers went back.
    batch: u64,
}

/// What a driver set up.
#[derive(Debug)]
struct Active {
    queue: VirtQueue,
    target: Target,
}

impl BlockQueue {
    /// A queue that nobody has set up.
    pub(super) fn new(engine: Box<dyn Engine>, throttle: Throttle) -> Self {
        Self {
            engine,
            throttle,
            active: None,
            spare: Vec::new(),
            answered: Vec::new(),
            batch: 0,
        }
    }

    /// The driver starts the device: its requests are for `target`.
    pub(super) fn activate(&mut self, queue: VirtQueue, target: Target) {
        self.active = Some(Active { queue, target });
    }

    /// Forgets the driver's requests: none is carried out or answered afterwards, and no memory of
    /// theirs touched.
    pub(super) fn reset(&mut self) {
        self.engine.cancel();
        self.throttle.cancel();
        self.active = None;
        self.spare.clear();
        self.answered.clear();
    }

    /// Takes up what the driver asks for, and gives back what is done: when the driver kicks, when
    /// the engine is done with something, and when the throttle's time has come.
    pub(super) fn run(&mut self) {
        // Taken out of `self`, for that is borrowed besides.
        if let Some(mut active) = self.active.take() {
            if let Err(error) = self.serve(&mut active) {
                active.queue.fail(&error);
            }
            self.active = Some(active);
        }
    }

    /// Up to [`DRAIN_CHAINS`] requests; then the queue kicks itself, and leaves the thread to others.
    fn serve(&mut self, active: &mut Active) -> Result<(), QueueError> {
        let mut left = DRAIN_CHAINS;
        active.queue.disable_kicks();
        loop {
            self.release(active)?;
            while left > 0 && self.has_room() && self.take_up(active)? {
                left -= 1;
                if self.batch >= BATCH {
                    self.give_back(active)?;
                }
            }
            self.give_back(active)?;
            if left == 0 || self.engine.is_behind() {
                active.queue.kick_again();
                return Ok(());
            }
            // Whatever makes room brings us back: no need for kicks until then.
            if !self.has_room() || active.queue.is_stopped() || !active.queue.enable_kicks() {
                return Ok(());
            }
            // Another look costs as much as a request, lest an index that flickers holds us here.
            left -= 1;
        }
    }

    /// What the driver gets of its writes; `None` before it starts the device.
    #[cfg(test)]
    pub(super) fn is_write_through(&self) -> Option<bool> {
        self.active
            .as_ref()
            .map(|active| active.target.is_write_through)
    }

    fn has_room(&self) -> bool {
        self.engine.has_room() && self.throttle.has_room()
    }

    /// Takes the next request from the ring; false if there is none.
    fn take_up(&mut self, active: &mut Active) -> Result<bool, QueueError> {
        let mut chain = match self.spare.pop() {
            Some(chain) => chain,
            None => Chain::new(active.queue.memory()),
        };
        if !active.queue.pop(&mut chain)? {
            self.spare.push(chain);
            return Ok(false);
        }
        let request = Request::read(chain)?;
        if let Some(request) = self.throttle.admit(request) {
            self.start(active, request);
        }
        Ok(true)
    }

    /// Starts what was held back and may go now.
    fn release(&mut self, active: &Active) -> Result<(), QueueError> {
        while self.engine.has_room() {
            match self.throttle.release() {
                Some(request) => self.start(active, request),
                None => break,
            }
        }
        Ok(())
    }

    fn start(&mut self, active: &Active, request: Request) {
        self.batch += request.cost().map_or(0, |(_, bytes)| bytes);
        match active.target.begin(request) {
            Step::Done(chain, len) => self.answer(chain, len),
            Step::Job(job) => {
                if let Some(outcome) = self.engine.start(job) {
                    self.end(active, outcome);
                }
            }
        }
    }

    fn end(&mut self, active: &Active, outcome: Outcome) {
        let (chain, len) = active.target.end(outcome);
        self.answer(chain, len);
    }

    fn answer(&mut self, chain: Chain, len: u32) {
        self.answered.push((chain.head(), len));
        if self.spare.len() < SPARE_CHAINS {
            self.spare.push(chain);
        }
    }

    /// Gives all that is answered back to the driver at once, with one interrupt at most.
    fn give_back(&mut self, active: &mut Active) -> Result<(), QueueError> {
        while let Some(outcome) = self.engine.finish() {
            self.end(active, outcome);
        }
        self.batch = 0;
        active.queue.complete_all(&self.answered);
        self.answered.clear();
        active.queue.signal();
        Ok(())
    }
}

impl Lane for BlockQueue {
    fn register(&mut self, ops: &mut EventOps) {
        let fd = self.engine.fd();
        let added = fd.map_or(Ok(()), |fd| ops.add(Events::new_raw(fd, EventSet::IN)));
        if let Err(error) = added {
            log::error!("a disk's engine will not be heard: {error}");
        }
        self.throttle.watch(ops);
    }

    fn kick(&mut self, _queue: usize, _ops: &mut EventOps) {
        self.run();
    }

    fn host_event(&mut self, _events: Events, _ops: &mut EventOps) {
        // Inactive, nothing is in the engine and nothing held: there are no events but late ones.
        self.run();
    }
}

#[cfg(test)]
mod tests;
