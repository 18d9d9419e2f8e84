//! Any accesses to the serial port and the other devices at fixed ports, and any input.

#![no_main]

use std::sync::{Arc, Mutex};
use std::time::Instant;

use arbitrary::Arbitrary;
use cofferdam_devices::bus::Bus;
use cofferdam_devices::console::ConsoleOutput;
use cofferdam_devices::legacy::{BootTimer, I8042, Power, PowerHandler, PvPanic, Serial};
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// More than the console ever keeps: 64 KiB, and the line that is being written.
const OUTPUT_MAX: usize = 128 << 10;

#[derive(Arbitrary, Debug)]
enum Op {
    Write { port: Port, data: [u8; 8], len: u8 },
    Read { port: Port, len: u8 },
    Receive { data: Vec<u8> },
    Flush,
}

/// The ports that somebody has, and all others.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Port {
    Serial(u8),
    Power(u8),
    Any(u16),
}

impl Port {
    fn number(self) -> u64 {
        match self {
            Self::Serial(offset) => Serial::COM1_BASE + u64::from(offset % 8),
            Self::Power(offset) => 0x600 + u64::from(offset % 16),
            Self::Any(port) => port.into(),
        }
    }
}

fuzz_target!(|ops: Vec<Op>| {
    let irq = EventFd::new(EFD_NONBLOCK).unwrap();
    let output = ConsoleOutput::discard().unwrap();
    let serial = Arc::new(Mutex::new(Serial::new(irq, output).unwrap()));
    let power: PowerHandler = Arc::new(|_| ());
    let timer = BootTimer::new(Instant::now(), |_| ());
    let mut bus = Bus::new();
    let base = Serial::COM1_BASE;
    bus.insert(base, Serial::LEN, "serial", serial.clone())
        .unwrap();
    let i8042 = Arc::new(Mutex::new(I8042::new(power.clone())));
    bus.insert(I8042::BASE, I8042::LEN, "i8042", i8042).unwrap();
    let sleep = Arc::new(Mutex::new(Power::new(power.clone())));
    bus.insert(Power::BASE, Power::LEN, "power", sleep).unwrap();
    let panic = Arc::new(Mutex::new(PvPanic::new(power)));
    bus.insert(PvPanic::BASE, PvPanic::LEN, "pvpanic", panic)
        .unwrap();
    let timer = Arc::new(Mutex::new(timer));
    bus.insert(BootTimer::BASE, BootTimer::LEN, "timer", timer)
        .unwrap();

    for op in ops {
        match op {
            Op::Write { port, data, len } => {
                bus.write(port.number(), &data[..1 + usize::from(len % 8)]);
            }
            Op::Read { port, len } => {
                let mut data = [0; 8];
                bus.read(port.number(), &mut data[..1 + usize::from(len % 8)]);
            }
            Op::Receive { data } => {
                let taken = serial.lock().unwrap().receive(&data);
                assert!(taken <= data.len());
            }
            Op::Flush => serial.lock().unwrap().output().flush(),
        }
        assert!(serial.lock().unwrap().output().buffered() <= OUTPUT_MAX);
    }
});
