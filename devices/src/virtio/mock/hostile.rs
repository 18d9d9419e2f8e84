//! What a hostile driver does to any device, whatever the device is for.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::{INDIRECT, MEM_END, MockDriver, NEXT, REGION, WRITE};
use crate::virtio::VirtioDevice;

/// What must come of a hostile ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// A device that looks at the queue stops and asks for a reset.
    Stops,
    /// It depends on the device; it survives.
    Any,
}
use Outcome::{Any, Stops};

/// One descriptor: address, length, flags, next.
type Raw = (u64, u32, u16, u16);

/// Chains that start at descriptor 0 of the queue's table.
#[rustfmt::skip]
const CHAINS: &[(&str, Outcome, &[Raw])] = &[
    ("next out of range", Stops, &[(0x10_0000, 16, NEXT, 0xffff)]),
    ("next one past the table", Stops, &[(0x10_0000, 16, NEXT, 1024)]),
    ("a loop of one", Stops, &[(0x10_0000, 16, NEXT, 0)]),
    ("a loop of two", Stops, &[(0x10_0000, 16, NEXT, 1), (0x10_0000, 16, NEXT, 0)]),
    ("a loop of writable ones", Stops, &[(0x10_0000, 16, NEXT | WRITE, 0)]),
    ("a loop of empty ones", Stops, &[(0x10_0000, 0, NEXT, 0)]),
    ("a buffer past memory", Stops, &[(MEM_END, 16, 0, 0)]),
    ("a buffer over the end of memory", Stops, &[(MEM_END - 8, 16, WRITE, 0)]),
    ("a buffer at the end of the address space", Stops, &[(u64::MAX - 7, 16, WRITE, 0)]),
    ("a buffer that wraps", Stops, &[(u64::MAX, u32::MAX, 0, 0)]),
    ("a huge buffer", Stops, &[(0, u32::MAX, WRITE, 0)]),
    ("readable behind writable", Stops, &[(0x10_0000, 16, NEXT | WRITE, 1), (0x10_0000, 16, 0, 0)]),
    ("nothing to read", Any, &[(0x10_0000, 0, 0, 0)]),
    ("nothing to write", Any, &[(0x10_0000, 0, WRITE, 0)]),
    ("nothing, nowhere", Any, &[(u64::MAX, 0, WRITE, 0)]),
    ("one byte to read", Any, &[(0x10_0000, 1, 0, 0)]),
    ("one byte to write", Any, &[(0x10_0000, 1, WRITE, 0)]),
    ("all of memory to read", Any, &[(0, 16 << 20, 0, 0)]),
    ("buffers over both regions", Any, &[(REGION as u64 - 8, 16, NEXT, 1), (REGION as u64 - 8, 16, WRITE, 0)]),
    ("flags that are none", Any, &[(0x10_0000, 16, 0xfff8, 0)]),
    ("an indirect table of nothing", Stops, &[(0x10_0000, 0, INDIRECT, 0)]),
    ("an indirect table of half a descriptor", Stops, &[(0x10_0000, 24, INDIRECT, 0)]),
    ("an indirect table past memory", Stops, &[(MEM_END, 16, INDIRECT, 0)]),
    ("an indirect table that wraps", Stops, &[(u64::MAX - 8, 16, INDIRECT, 0)]),
    ("a huge indirect table", Stops, &[(0x10_0000, 0xffff_fff0, INDIRECT, 0)]),
    ("an indirect table that goes on", Stops, &[(0x10_0000, 16, INDIRECT | NEXT, 1), (0, 16, 0, 0)]),
];

/// Indirect tables, named by descriptor 0.
#[rustfmt::skip]
const TABLES: &[(&str, Outcome, &[Raw])] = &[
    ("a table in a table", Stops, &[(0x10_0000, 16, INDIRECT, 0)]),
    ("an indirect loop", Stops, &[(0x10_0000, 16, NEXT, 0)]),
    ("an indirect next out of range", Stops, &[(0x10_0000, 16, NEXT, 1)]),
    ("an indirect buffer past memory", Stops, &[(MEM_END, 16, WRITE, 0)]),
];

/// Does to each queue of the device that `make` makes what no driver may do: out-of-range and
/// looping chains, zero and huge lengths, wrong directions, indices that jump, malformed indirect
/// tables, resets in the middle, and random rings. The device must neither panic nor hang, and
/// must work again after a reset. A device looks at the queues in `served` when they are kicked:
/// there a broken ring must stop it.
pub(crate) fn hostile_suite<D: VirtioDevice + 'static>(make: impl Fn() -> D, served: &[usize]) {
    for features in [0, u64::MAX] {
        let queues = MockDriver::started(make(), features).rings.len();
        for queue in 0..queues {
            let suite = Suite {
                make: &make,
                features,
                queue,
                is_served: served.contains(&queue),
            };
            suite.chains();
            suite.tables();
            suite.indices();
            suite.long_chains();
            suite.reset_before_the_kick_arrives();
            suite.random_rings();
        }
    }
}

struct Suite<'a, F> {
    make: &'a F,
    features: u64,
    queue: usize,
    is_served: bool,
}

impl<D: VirtioDevice + 'static, F: Fn() -> D> Suite<'_, F> {
    /// Starts a device, does `attack` to it, and looks what came of it.
    fn case(&self, name: &str, expected: Outcome, attack: impl FnOnce(&mut MockDriver<D>, usize)) {
        let mut driver = MockDriver::started((self.make)(), self.features);
        attack(&mut driver, self.queue);
        driver.kick(self.queue);
        driver.run();
        if self.is_served && expected == Stops {
            let queue = self.queue;
            assert!(
                driver.needs_reset(),
                "{name} on queue {queue}: the device goes on"
            );
            assert!(driver.interrupts() > 0, "{name}: the driver is not told");
            assert_eq!(driver.used(queue), None, "{name}: the device answers");
        }
        // Whatever happened, a reset brings it back.
        driver.reset();
        driver.run();
        driver.start(self.features);
        assert!(!driver.needs_reset(), "{name}: broken for good");
    }

    fn chains(&self) {
        for &(name, expected, chain) in CHAINS {
            self.case(name, expected, |driver, queue| {
                for (i, &(addr, len, flags, next)) in (0..).zip(chain) {
                    driver.write_descriptor(queue, i, Descriptor::new(addr, len, flags, next));
                }
                driver.offer(queue, 0);
            });
        }
    }

    fn tables(&self) {
        for &(name, expected, table) in TABLES {
            self.case(name, expected, |driver, queue| {
                let len = 16 * table.len();
                let address = driver.alloc(len);
                for (i, &(addr, len, flags, next)) in (0..).zip(table) {
                    driver.write_table(address, i, Descriptor::new(addr, len, flags, next));
                }
                let whole = Descriptor::new(address, len.try_into().unwrap(), INDIRECT, 0);
                driver.write_descriptor(queue, 0, whole);
                driver.offer(queue, 0);
            });
        }
    }

    fn indices(&self) {
        self.case("a head out of range", Stops, |driver, queue| {
            driver.offer(queue, driver.rings[queue].size);
        });
        self.case("a head far out of range", Stops, |driver, queue| {
            driver.offer(queue, 0xffff)
        });
        for jump in [1, 0x4000, 0x7fff] {
            self.case("an index that jumps", Stops, |driver, queue| {
                driver.set_avail(queue, driver.rings[queue].size + jump);
            });
        }
        self.case("an index that goes back", Stops, |driver, queue| {
            driver.set_avail(queue, 0xffff)
        });
        self.case(
            "one chain as often as the ring has room",
            Any,
            |driver, queue| {
                driver.write_descriptor(queue, 0, Descriptor::new(0x10_0000, 64, WRITE, 0));
                for _ in 0..driver.rings[queue].size {
                    driver.offer(queue, 0);
                }
            },
        );
        self.case("a kick of a queue that is not there", Any, |driver, _| {
            for queue in [64, 0xffff, 0xffff_ffff] {
                driver.kick(queue);
            }
        });
    }

    /// Chains of many descriptors, each of all memory: more than 4 GiB, and just not.
    fn long_chains(&self) {
        let whole = u32::try_from(REGION).unwrap();
        for (count, expected) in [(512, Stops), (255, Any), (64, Any)] {
            self.case("a chain of gigabytes", expected, |driver, queue| {
                let count = u16::min(count, 2 * driver.rings[queue].size);
                let table = driver.alloc(16 * usize::from(count));
                for i in 0..count {
                    let flags = if i + 1 < count { WRITE | NEXT } else { WRITE };
                    // Of the length, not of the place: the tables must not overwrite themselves.
                    let descriptor = Descriptor::new(0, whole, flags, i + 1);
                    driver.write_table(table, i, descriptor);
                }
                let len = 16 * u32::from(count);
                driver.write_descriptor(queue, 0, Descriptor::new(table, len, INDIRECT, 0));
                driver.offer(queue, 0);
            });
        }
    }

    /// A kick that comes late finds a device that is reset, and nothing is written any more.
    fn reset_before_the_kick_arrives(&self) {
        let mut driver = MockDriver::started((self.make)(), self.features);
        driver.submit(self.queue, &[&[0; 16]], &[513]);
        driver.kick(self.queue);
        driver.reset();
        driver.run();
        assert_eq!(driver.used(self.queue), None, "used after reset");
        let buffers = driver.alloc(0);
        let mut after = [0; 64];
        driver
            .mem
            .read_slice(&mut after, GuestAddress(buffers - 640))
            .unwrap();
        assert_eq!(after, [0; 64], "written after reset");
        driver.start(self.features);
        assert!(!driver.needs_reset());
    }

    /// Rings of noise: mostly small numbers, so that some of it is nearly right.
    fn random_rings(&self) {
        for seed in 1..100u64 {
            self.case("a random ring", Any, |driver, queue| {
                let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut random = |below: u64| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state % below
                };
                for i in 0..16 {
                    let addr = match random(8) {
                        0 => random(u64::MAX),
                        1 => MEM_END - random(64),
                        _ => 0x10_0000 + random(0x1000),
                    };
                    let len = match random(8) {
                        0 => random(1 << 32),
                        1 => 512,
                        _ => random(64),
                    };
                    let descriptor = Descriptor::new(
                        addr,
                        len.try_into().unwrap(),
                        random(8).try_into().unwrap(),
                        random(18).try_into().unwrap(),
                    );
                    driver.write_descriptor(queue, i, descriptor);
                }
                for _ in 0..random(16) {
                    driver.offer(queue, random(17).try_into().unwrap());
                }
            });
        }
    }
}
