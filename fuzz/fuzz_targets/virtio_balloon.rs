//! Any driver of the balloon, and a host that changes its mind and asks for statistics all the time.

#![no_main]

mod machine;

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use cofferdam_devices::virtio::balloon::{Balloon, BalloonOptions};
use cofferdam_devices::virtio::{ActivateError, Activation, VirtioDevice};
use event_manager::{EventOps, EventSet, Events};
use libfuzzer_sys::fuzz_target;
use machine::{Buffer, Length, Op, Request, Sharing};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Page numbers to take or to give, or statistics.
#[derive(Arbitrary, Debug)]
enum BalloonRequest {
    Pages {
        queue: u8,
        first: u32,
        count: u8,
    },
    Statistics {
        queue: u8,
        entries: Vec<(u8, u64)>,
    },
    Free {
        queue: u8,
        pages: Vec<Length>,
    },
    /// A run of hints, or its end.
    Run {
        queue: u8,
        number: u8,
    },
}

impl Request for BalloonRequest {
    fn chain(self) -> (u8, Vec<Buffer>) {
        match self {
            Self::Pages {
                queue,
                first,
                count,
            } => {
                let pages = (0..u32::from(count)).map(|i| first.wrapping_add(i));
                let numbers = pages.flat_map(u32::to_le_bytes).collect();
                (queue, vec![Buffer::readable(numbers)])
            }
            Self::Statistics { queue, entries } => {
                let entry =
                    |(tag, value): (u8, u64)| [&[tag, 0][..], &value.to_le_bytes()].concat();
                let entries = entries.into_iter().flat_map(entry).collect();
                (queue, vec![Buffer::readable(entries)])
            }
            Self::Free { queue, pages } => {
                let buffers = pages
                    .into_iter()
                    .map(|len| Buffer::writable(len, Vec::new()));
                (queue, buffers.collect())
            }
            Self::Run { queue, number } => {
                let number = u32::from(number % 8).to_le_bytes().to_vec();
                (queue, vec![Buffer::readable(number)])
            }
        }
    }
}

/// What the host does.
#[derive(Arbitrary, Debug)]
enum Event {
    /// Wants another size, in bytes.
    Target(u64),
    /// Wants statistics.
    Statistics,
    /// Wants hints.
    Hints,
}

/// A balloon whose timers are the fuzzer's.
struct Hasty {
    balloon: Balloon,
    /// For statistics and for hints.
    timers: [EventFd; 2],
}

impl VirtioDevice for Hasty {
    fn device_type(&self) -> u32 {
        self.balloon.device_type()
    }

    fn queue_sizes(&self) -> &[u16] {
        self.balloon.queue_sizes()
    }

    fn features(&self) -> u64 {
        self.balloon.features()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.balloon.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.balloon.write_config(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.balloon.activate(activation)
    }

    fn reset(&mut self) {
        self.balloon.reset();
        assert_eq!(self.balloon.actual(), 0);
    }

    fn register(&mut self, ops: &mut EventOps) {
        VirtioDevice::register(&mut self.balloon, ops);
        // As the balloon tells its own timers apart.
        for (data, timer) in (0..).zip(&self.timers) {
            ops.add(Events::with_data(timer, data, EventSet::IN))
                .unwrap();
        }
    }

    fn is_synchronous(&self, queue: usize) -> bool {
        self.balloon.is_synchronous(queue)
    }

    fn kick_now(&mut self, queue: usize) {
        self.balloon.kick_now(queue);
    }

    fn kick(&mut self, queue: usize, ops: &mut EventOps) {
        VirtioDevice::kick(&mut self.balloon, queue, ops);
    }

    fn host_event(&mut self, events: Events, ops: &mut EventOps) {
        if let Some(timer) = self.timers.get(events.data() as usize) {
            let _ = timer.read();
        }
        VirtioDevice::host_event(&mut self.balloon, events, ops);
        if let Some(stats) = self.balloon.stats() {
            let _ = stats.to_string();
        }
    }
}

fuzz_target!(|input: (u64, u8, Vec<Op<BalloonRequest, Event>>)| {
    let (target, kind, ops) = input;
    let options = BalloonOptions {
        target,
        deflate_on_oom: kind & 1 != 0,
        reporting: kind & 2 != 0,
        stats: (kind & 4 != 0).then_some(NonZeroU32::MAX),
        hinting: (kind & 8 != 0).then_some(NonZeroU32::MAX),
    };
    let timers = [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
    let rings = timers.each_ref().map(|timer| timer.try_clone().unwrap());
    let device = Arc::new(Mutex::new(Hasty {
        balloon: Balloon::new(options).unwrap(),
        timers,
    }));
    machine::drive_with(Sharing::Private, device.clone(), ops, |event| match event {
        Event::Target(bytes) => device.lock().unwrap().balloon.set_target(bytes),
        Event::Statistics => rings[0].write(1).unwrap(),
        Event::Hints => rings[1].write(1).unwrap(),
    });
});
