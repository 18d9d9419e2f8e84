//! The clock of a container's guest: it is the host's.

use std::path::PathBuf;

use cofferdam_agent_protocol::Client;
use cofferdam_agent_protocol::api::ClockRequest;

use crate::container::Engine;
use crate::harness::wait_until;

/// Nanoseconds that a guest's clock may be wrong.
const LIMIT: i64 = 100_000_000;

/// Sets the host's clock to a microsecond later. Who waits for the clock to be set hears of it.
fn set_the_hosts_clock() {
    // SAFETY: all of it are numbers, and zero is one.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_SETOFFSET;
    change.time.tv_usec = 1;
    // SAFETY: the kernel reads and writes the structure, which outlives the call.
    assert!(unsafe { libc::adjtimex(&raw mut change) } >= 0);
}

/// If it fails, containers date their files in the past or the future, and trust or refuse certificates that
/// they should not; or they do so from when their host slept, or had its clock set.
#[test]
fn the_clock_is_the_hosts_and_follows_it() {
    let engine = Engine::new("clock");
    engine.text("run -d --name one --network none --pull never busybox sleep 10000");
    let id = engine.text("inspect -f {{.Id}} one");
    let socket = PathBuf::from(engine.path("run"))
        .join(&id[..16])
        .join("vsock");
    let client = Client::connect(&socket).unwrap().0;
    let found = client.compare_clocks().unwrap();
    println!("at its start: {found:?}");
    assert!(found.ahead_ns.abs() <= LIMIT + found.doubt_ns, "{found:?}");

    // As it is when the host's clock was set.
    for seconds in [-3, 5] {
        let mut request = ClockRequest::new();
        request.move_ns = seconds * 1_000_000_000;
        client.clock(request).unwrap();
        let found = client.compare_clocks().unwrap();
        assert!(found.ahead_ns.abs() > 20 * LIMIT, "{found:?}");
        set_the_hosts_clock();
        wait_until("the guest's clock is the host's", || {
            let found = client.compare_clocks().unwrap();
            found.ahead_ns.abs() <= LIMIT + found.doubt_ns
        });
    }
    engine.text("rm -f one");
}
