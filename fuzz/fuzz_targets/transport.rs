//! Any driver of the transport's registers, in front of a device that believes nothing: it is
//! started once between resets, with what was agreed on and with rings that can be used, and it
//! hears only of its own queues. One half of the queues is the device's, the other a lane's.

#![no_main]

mod machine;

use std::sync::{Arc, Mutex};

use cofferdam_devices::virtio::{
    ActivateError, Activation, Buffers, Lane, Lanes, VirtQueue, VirtioDevice,
};
use event_manager::EventOps;
use libfuzzer_sys::fuzz_target;
use machine::Op;

/// Some of each half, and the ring's: indirect descriptors (28) and event indices (29).
const FEATURES: u64 = 1 << 3 | 1 << 28 | 1 << 29 | 1 << 35;
const VERSION_1: u64 = 1 << 32;
const SIZES: [u16; 4] = [256, 64, 1, 8];
/// The lane's queues are those from here on.
const LANE: usize = 2;
/// The queue whose kicks are served at once.
const SYNCHRONOUS: usize = 1;

/// Queues, the first of which has the number `first`.
struct Half {
    first: usize,
    queues: Vec<VirtQueue>,
}

impl Half {
    fn work(&mut self, number: usize) {
        let Some(queue) = self.queues.get_mut(number - self.first) else {
            return;
        };
        queue.drain(|chain| Ok(echo(&mut chain.readable, &mut chain.writable)));
    }
}

/// Writes what it reads, up to a page of it; returns how much.
fn echo(readable: &mut Buffers, writable: &mut Buffers) -> u32 {
    let mut data = [0; 0x1000];
    let len = readable.read(&mut data);
    u32::try_from(writable.write(&data[..len])).unwrap()
}

impl Lane for Half {
    fn kick(&mut self, queue: usize, _ops: &mut EventOps) {
        assert!((LANE..SIZES.len()).contains(&queue));
        self.work(queue);
    }
}

struct Probe {
    config: [u8; 61],
    is_active: bool,
    own: Half,
    lane: Arc<Mutex<Half>>,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap();
        for (to, from) in data.iter_mut().zip(self.config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        assert!(offset < 0xf00 && (1..=8).contains(&data.len()));
        let offset = usize::try_from(offset).unwrap();
        for (to, from) in self.config.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        assert!(!self.is_active, "started twice");
        let agreed = activation.features;
        assert_eq!(agreed & !FEATURES, VERSION_1);
        self.is_active = true;
        for (queue, most) in activation.queues.iter().zip(SIZES) {
            assert!(queue.size().is_power_of_two() && queue.size() <= most);
        }
        // What a driver could choose: a device that will not start.
        if agreed & 1 << 3 == 0 && activation.queues.is_empty() {
            return Err(ActivateError::Queues {
                found: 0,
                wanted: 1,
            });
        }
        activation.interrupt.config_change(&self.config);
        let mut queues = activation.queues;
        let others = queues.split_off(LANE.min(queues.len()));
        self.own.queues = queues;
        self.lane.lock().unwrap().queues = others;
        Ok(())
    }

    fn reset(&mut self) {
        self.is_active = false;
        self.own.queues.clear();
        self.lane.lock().unwrap().queues.clear();
    }

    fn kick(&mut self, queue: usize, _ops: &mut EventOps) {
        assert!(queue < LANE);
        self.own.work(queue);
    }

    fn is_synchronous(&self, queue: usize) -> bool {
        queue == SYNCHRONOUS
    }

    fn kick_now(&mut self, queue: usize) {
        assert_eq!(queue, SYNCHRONOUS);
        self.own.work(queue);
    }

    fn lanes(&self) -> Lanes {
        vec![(LANE..SIZES.len(), self.lane.clone())]
    }
}

fuzz_target!(|ops: Vec<Op>| {
    let half = |first| Half {
        first,
        queues: Vec::new(),
    };
    let probe = Probe {
        config: [0xa5; 61],
        is_active: false,
        own: half(0),
        lane: Arc::new(Mutex::new(half(LANE))),
    };
    machine::drive(probe, ops, |_| ());
});
