//! Any driver of the entropy device.

#![no_main]

mod machine;

use cofferdam_devices::virtio::rng::Rng;
use libfuzzer_sys::fuzz_target;
use machine::Op;

fuzz_target!(|ops: Vec<Op>| machine::drive(Rng::default(), ops, |_| ()));
