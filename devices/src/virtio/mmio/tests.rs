//! The transport as a driver meets it, honest or not.

use virtio_bindings::virtio_mmio as reg;

use super::*;
use crate::virtio::ActivateError;
use crate::virtio::mock::{MockDriver, MockRing};
use event_manager::EventOps;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// A feature that only the test device has.
const OWN: u64 = 1 << 3;

/// A device with two queues, which counts what it is told.
#[derive(Debug, Default)]
struct Probe {
    config: [u8; 8],
    activation: Option<Activation>,
    resets: u32,
    kicks: [u32; 2],
    fails: bool,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 16]
    }

    fn features(&self) -> u64 {
        OWN | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap();
        for (to, from) in data.iter_mut().zip(self.config.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        for (to, from) in self.config.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let found = activation.queues.len();
        if self.fails || found != 2 {
            return Err(ActivateError::Queues { found, wanted: 2 });
        }
        self.activation = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.activation = None;
        self.resets += 1;
    }

    fn kick(&mut self, queue: usize, _ops: &mut EventOps) {
        self.kicks[queue] += 1;
    }
}

fn driver() -> MockDriver<Probe> {
    MockDriver::new(Probe::default())
}

/// Rings of the selected queue that are as they should be.
fn ring() -> MockRing {
    let mut driver = driver();
    assert!(driver.accept(VERSION_1));
    driver.set_up_queues();
    MockRing {
        size: 16,
        ..driver.rings[0]
    }
}

/// If it fails, no driver finds the device.
#[test]
fn identity_and_features() {
    let mut driver = driver();
    assert_eq!(
        driver.read(reg::VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(),
        *b"virt"
    );
    assert_eq!(driver.read(reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(
        driver.read(reg::VIRTIO_MMIO_VENDOR_ID).to_le_bytes(),
        *b"COFR"
    );
    assert_eq!(
        driver.offered(),
        OWN | VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
    );
    driver.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_FEATURES), 0);
    for register in (0xb0..=0xbc).step_by(4) {
        assert_eq!(
            driver.read(register),
            u32::MAX,
            "a shared memory region at {register:#x}"
        );
    }
}

/// If it fails, a driver gets a feature that does not exist, or works by the rules of version 0.9.
#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for (features, is_ok) in [
        (VERSION_1, true),
        (VERSION_1 | OWN, true),
        (OWN, false),
        (VERSION_1 | 1 << 4, false),
        (u64::MAX, false),
        (0, false),
    ] {
        assert_eq!(driver().accept(features), is_ok, "{features:#x}");
    }
    let mut driver = driver();
    driver.add_status(ACKNOWLEDGE | DRIVER);
    driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 7);
    driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
    assert!(!driver.accept(VERSION_1), "feature 224");
    // A driver that thinks again starts over.
    driver.reset();
    assert!(driver.accept(VERSION_1));
}

/// If it fails, the driver changes features under a device that counts on them.
#[test]
fn features_are_fixed_outside_their_phase() {
    let mut driver = driver();
    driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 8);
    assert_eq!(driver.transport.features(), 0, "before DRIVER");
    assert!(driver.accept(VERSION_1));
    driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 8);
    assert_eq!(driver.transport.features(), VERSION_1, "after FEATURES_OK");
}

/// If it fails, a driver skips a phase, or takes back what it said.
#[test]
fn status_bits_are_set_in_order_and_never_cleared() {
    for (writes, wanted) in [
        (&[DRIVER][..], 0),
        (&[ACKNOWLEDGE, FEATURES_OK | ACKNOWLEDGE], 1),
        (&[ACKNOWLEDGE, 3, 2], 3),
        (&[3, 7], 3),
        (&[0xf], 3),
        (&[0x30], 0),
        (&[1, FAILED | 1, FAILED | 3], FAILED | 1),
        (&[3, 0], 0),
        (&[0x41, 0x43], 3),
    ] {
        let mut driver = driver();
        for &value in writes {
            driver.write(reg::VIRTIO_MMIO_STATUS, value);
        }
        assert_eq!(driver.status(), wanted, "{writes:?}");
    }
}

/// If it fails, a queue is configured before the features are known or while the device uses it.
#[test]
fn queues_are_configured_between_features_ok_and_driver_ok_only() {
    let ring = ring();
    let mut driver = driver();
    driver.set_up_queue(&ring);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0, "too early");
    driver.start(0);
    let before = driver.transport.queues.clone();
    driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.set_up_queue(&MockRing {
        descriptors: 0x4000,
        ..ring
    });
    let after = &driver.transport.queues;
    assert_eq!(format!("{before:?}"), format!("{after:?}"), "too late");
    driver.reset();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
}

/// If it fails, a ready queue moves, or one that cannot be is ready.
#[test]
fn a_ready_queue_stays_as_it_is_and_a_bad_one_is_not_ready() {
    let ring = ring();
    let mut driver = driver();
    assert!(driver.accept(VERSION_1));
    for bad in [
        MockRing { size: 0, ..ring },
        MockRing { size: 65, ..ring },
        MockRing { size: 128, ..ring },
        MockRing {
            descriptors: 8,
            ..ring
        },
        MockRing {
            driver: 1 << 40,
            ..ring
        },
        MockRing {
            device: u64::MAX - 3,
            ..ring
        },
    ] {
        driver.set_up_queue(&bad);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0, "{bad:?}");
    }
    driver.set_up_queue(&ring);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    driver.write(reg::VIRTIO_MMIO_QUEUE_NUM, 4);
    assert_eq!(driver.transport.queues[0].size, 16);
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
}

/// If it fails, a selector out of range reads or writes another queue, or panics.
#[test]
fn a_queue_that_is_not_there_reads_zero_and_ignores_writes() {
    let ring = ring();
    let mut driver = driver();
    assert!(driver.accept(VERSION_1));
    for selector in [2, 3, 0xffff, u32::MAX] {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, selector);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        driver.set_up_queue(&ring);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
    assert!(driver.transport.queues.iter().all(|queue| queue.size == 0));
}

/// If it fails, a device starts without its queues, or a driver waits for one that cannot start.
#[test]
fn a_device_that_cannot_start_asks_for_a_reset() {
    let mut driver = driver();
    assert!(driver.accept(VERSION_1));
    driver.add_status(DRIVER_OK);
    assert_eq!(driver.status(), 0x4f);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    assert_eq!(driver.interrupts(), 1);
    driver.start(0);
    assert_eq!(driver.status(), 0xf);
    let device = driver.device.clone();
    device.lock().unwrap().fails = true;
    driver.reset();
    assert!(driver.accept(VERSION_1));
    driver.set_up_queues();
    driver.add_status(DRIVER_OK);
    assert!(driver.needs_reset());
}

/// If it fails, a device does not begin by itself, or a kick goes to the wrong queue.
#[test]
fn each_queue_is_kicked_at_the_start_and_then_by_the_driver() {
    let mut driver = driver();
    for queue in 0..3 {
        driver.kick(queue);
    }
    driver.run();
    let device = driver.device.clone();
    assert_eq!(device.lock().unwrap().kicks, [0, 0], "before DRIVER_OK");
    driver.start(0);
    assert_eq!(device.lock().unwrap().kicks, [1, 1]);
    driver.kick(1);
    driver.kick(1);
    driver.run();
    assert_eq!(device.lock().unwrap().kicks, [1, 2], "two kicks, one look");
}

/// If it fails, a driver is stuck with a device in a state that it cannot leave.
#[test]
fn a_reset_works_in_any_state() {
    for status in [0, 1, 3, 0x80] {
        let mut driver = driver();
        driver.write(reg::VIRTIO_MMIO_STATUS, status);
        driver.reset();
        driver.start(u64::MAX);
    }
    let mut driver = driver();
    driver.start(u64::MAX);
    driver.transport.interrupt().needs_reset();
    driver.reset();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    assert!(driver.device.lock().unwrap().activation.is_none());
    driver.start(0);
    let device = driver.device.lock().unwrap();
    assert_eq!(device.activation.as_ref().unwrap().features, VERSION_1);
}

/// If it fails, a device goes on in memory that its driver has taken away, or Linux warns that it might.
#[test]
fn a_queue_that_is_taken_away_stops_the_device_until_it_is_reset() {
    let mut driver = driver();
    driver.start(0);
    driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, 7);
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert!(driver.device.lock().unwrap().activation.is_some());
    driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    assert!(driver.device.lock().unwrap().activation.is_none());
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    driver.reset();
    driver.start(0);
    assert!(driver.device.lock().unwrap().activation.is_some());
}

/// If it fails, the driver is not told of a change, or reads half of an old configuration.
#[test]
fn a_configuration_change_interrupts_and_has_a_generation() {
    let mut driver = driver();
    driver.start(0);
    let before = driver.read(reg::VIRTIO_MMIO_CONFIG_GENERATION);
    let device = driver.device.clone();
    let interrupt = device
        .lock()
        .unwrap()
        .activation
        .as_ref()
        .unwrap()
        .interrupt
        .clone();
    interrupt.config_change(&[5, 6]);
    assert_eq!(driver.config(0, 2), [5, 6]);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    assert_ne!(driver.read(reg::VIRTIO_MMIO_CONFIG_GENERATION), before);
    driver.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 0xffff_fffe);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
}

/// If it fails, an acknowledgement that nobody hears of (its ioeventfd swallows it) loses used
/// buffers, or a device that was reset goes on claiming some.
#[test]
fn used_buffers_need_no_acknowledgement() {
    let mut driver = driver();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    driver.start(0);
    for _ in 0..2 {
        assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        driver.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    }
    driver.reset();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

/// If it fails, an access of an odd size or place changes a register, or panics.
#[test]
fn odd_accesses_are_survived() {
    let mut driver = driver();
    driver.start(0);
    for offset in (0..0x100).chain([0xfff, MMIO_SIZE - 1, u64::MAX]) {
        for len in [1, 2, 3, 4, 8] {
            if len == 4 && offset % 4 == 0 {
                continue;
            }
            driver.transport.read(offset, &mut vec![0xff; len]);
            driver.transport.write(offset, &vec![0; len]);
        }
    }
    assert_eq!(driver.status(), 0xf);
    driver.write_config(1, &[1, 2]);
    driver.write_config(7, &[7, 8, 9, 10]);
    assert_eq!(driver.config(0, 8), [0, 1, 2, 0, 0, 0, 0, 7]);
    assert_eq!(driver.config(6, 4), [0, 7, 0, 0]);
    assert_eq!(driver.config(3, 1), [0]);
    assert_eq!(driver.config(0xefc, 8), [0; 8]);
}

proptest::proptest! {
    /// If it fails, some order of register writes panics, or moves a device past its own checks.
    #[test]
    fn no_order_of_writes_breaks_the_rules(
        writes in proptest::collection::vec((0u32..0x44, proptest::prelude::any::<u32>(), 0u8..4), 0..200)
    ) {
        let mut driver = driver();
        for (register, value, kind) in writes {
            let value = match kind {
                0 => value,
                1 => value % 16,
                2 => 1 << (value % 32),
                _ => driver.status() | (value % 16),
            };
            driver.write(4 * register, value);
            let status = driver.status();
            let is_active = driver.device.lock().unwrap().activation.is_some();
            // In use only when started, and started only when agreed.
            proptest::prop_assert!(!is_active || status & 0xf == 0xf);
            proptest::prop_assert!(status & 8 == 0 || driver.transport.is_agreed());
            driver.run();
        }
    }
}
