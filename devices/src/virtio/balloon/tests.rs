use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::mock::{EVENT_IDX, MEM_END, MockDriver, REGION, hostile_suite};

const ALL: BalloonOptions = BalloonOptions {
    target: 64 << 20,
    deflate_on_oom: true,
    reporting: true,
    hinting: NonZeroU32::new(1),
    stats: NonZeroU32::new(1),
};
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const HINT: usize = 3;
const REPORT: usize = 4;

fn driver(options: BalloonOptions) -> MockDriver<Balloon> {
    MockDriver::started(Balloon::new(options).unwrap(), u64::MAX)
}

fn numbers(pages: &[u64]) -> Vec<u8> {
    let bytes = pages
        .iter()
        .map(|page| u32::try_from(*page).unwrap().to_le_bytes());
    bytes.flatten().collect()
}

/// A page that holds something, by its number.
fn full_page(driver: &mut MockDriver<Balloon>, page: u64) {
    let address = GuestAddress(page * PAGE);
    driver.mem.write_slice(&[1; 4096], address).unwrap();
}

fn is_empty(driver: &MockDriver<Balloon>, page: u64) -> bool {
    let mut data = [7; 4096];
    driver
        .mem
        .read_slice(&mut data, GuestAddress(page * PAGE))
        .unwrap();
    data == [0; 4096]
}

/// If it fails, the driver finds queues in other places than it looks, or features that were not
/// asked for.
#[test]
fn queues_and_features_are_those_of_the_options() {
    for (options, queues, bits) in [
        (BalloonOptions::default(), 2, 0),
        (
            BalloonOptions {
                reporting: true,
                ..Default::default()
            },
            3,
            1 << PAGE_REPORTING,
        ),
        (
            ALL,
            5,
            1 << PAGE_REPORTING | 1 << FREE_PAGE_HINT | 1 << STATS_VQ | 1 << DEFLATE_ON_OOM,
        ),
    ] {
        let mut driver = driver(options);
        assert_eq!(driver.rings.len(), queues);
        assert_eq!(driver.offered() & 0xff, bits);
    }
}

/// If it fails, the guest is not asked for memory, or nobody knows what it gave.
#[test]
fn the_target_is_in_the_configuration_and_what_was_given_comes_back() {
    let mut driver = driver(ALL);
    assert_eq!(driver.config(0, 8), numbers(&[64 << 8, 0]));
    driver.write_config(4, &100u32.to_le_bytes());
    assert_eq!(driver.device.lock().unwrap().actual(), 100 * PAGE);
    // Neither the target nor half a number is the driver's.
    for (offset, data) in [
        (0, &[9; 4][..]),
        (4, &[9; 2]),
        (6, &[9; 2]),
        (2, &[9; 4]),
        (8, &[9; 4]),
    ] {
        driver.write_config(offset, data);
    }
    assert_eq!(driver.config(0, 12), numbers(&[64 << 8, 100, 0]));

    driver.interrupts();
    driver.device.lock().unwrap().set_target(PAGE * 5 + 1);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.config(0, 4), numbers(&[5]));
    // A target that is set while there is no driver is the next one's.
    driver.reset();
    driver.device.lock().unwrap().set_target(PAGE * 7);
    driver.start(0);
    assert_eq!(driver.config(0, 8), numbers(&[7, 0]));
    driver.device.lock().unwrap().set_target(u64::MAX);
    assert_eq!(driver.config(0, 4), [0xff; 4]);
}

/// If it fails, memory does not come back, or other memory than the guest gave is lost.
#[test]
fn the_balloon_gives_pages_back() {
    let mut driver = driver(ALL);
    let pages = [2000, 2001, 2002, 2500, 4095, 4096];
    for page in pages.into_iter().chain([1999, 2003, 2499, 2501]) {
        full_page(&mut driver, page);
    }
    // In any order, twice, and in pieces; a rest that is no number is nothing.
    let given = numbers(&[2002, 4096, 2000, 2500, 2001, 2000, 4095]);
    let reply = driver.request(INFLATE, &[&given[..6], &given[6..], &[0x07, 0x08]], &[]);
    assert_eq!(reply.len, 0);
    assert!(pages.iter().all(|page| is_empty(&driver, *page)));
    for page in [1999, 2003, 2499, 2501] {
        assert!(!is_empty(&driver, page), "page {page}");
    }
    full_page(&mut driver, 2000);
    driver.request(DEFLATE, &[&numbers(&[2000])], &[]);
    assert!(!is_empty(&driver, 2000));
}

/// If it fails, a guest that lies about its pages reaches memory of the host, or stops its monitor.
#[test]
fn pages_that_are_none_are_left_alone() {
    let mut driver = driver(ALL);
    full_page(&mut driver, 3000);
    let outside = [
        MEM_END / PAGE,
        0xd0000,
        0xfffff,
        1 << 20,
        u64::from(u32::MAX),
    ];
    driver.request(INFLATE, &[&numbers(&outside)], &[]);
    // From the last page of memory over its end.
    let edge: Vec<u64> = (MEM_END / PAGE - 1..MEM_END / PAGE + 255).collect();
    full_page(&mut driver, edge[0]);
    driver.request(INFLATE, &[&numbers(&edge)], &[]);
    assert!(is_empty(&driver, edge[0]) && !is_empty(&driver, 3000));
    driver.request(INFLATE, &[], &[64]);
    let most = vec![0; MAX_PAGES * 4];
    driver.request(
        INFLATE,
        &[&most[..most.len() / 2], &most[..most.len() / 2]],
        &[],
    );
    driver.submit(INFLATE, &[&vec![0; MAX_PAGES * 4 + 1]], &[]);
    driver.kick(INFLATE);
    driver.run();
    assert!(driver.needs_reset());
}

/// If it fails, memory that the guest reported as free stays with it, or memory around it is lost.
#[test]
fn reported_ranges_are_given_back() {
    let mut driver = driver(ALL);
    // Requests of the mock driver begin somewhere in 64 bytes, so whole pages lie within.
    let request = driver.submit(REPORT, &[], &[3 * 4096, 5000]);
    let first = (0x10_0000u64..).step_by(64).next().unwrap();
    driver
        .mem
        .write_slice(&vec![1; 0x1_0000], GuestAddress(first))
        .unwrap();
    driver.kick(REPORT);
    driver.run();
    let (head, len) = driver.used(REPORT).unwrap();
    assert_eq!((head, len), (request.head.into(), 0));
    let empty: Vec<_> = (256..272).filter(|page| is_empty(&driver, *page)).collect();
    assert_eq!(empty, [256, 257, 258, 259]);

    driver.submit(REPORT, &[&[0; 4096]], &[]);
    driver.kick(REPORT);
    driver.run();
    assert!(driver.needs_reset());
}

/// If it fails, a guest that reports memory that is in use, its own rings even, stops the monitor.
#[test]
fn a_guest_may_give_away_its_rings() {
    let mut driver = driver(ALL);
    let all: Vec<u64> = (0..REGION as u64 / PAGE).collect();
    for part in all.chunks(MAX_PAGES) {
        driver.submit(INFLATE, &[&numbers(part)], &[]);
        driver.kick(INFLATE);
        driver.run();
    }
    driver.start(u64::MAX);
    driver.request(INFLATE, &[&numbers(&[3000])], &[]);
}

/// Statistics as a driver sends them.
fn stats(entries: &[(u16, u64)]) -> Vec<u8> {
    let entry = |(tag, value): &(u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    entries.iter().flat_map(entry).collect()
}

/// If it fails, nobody learns how a guest is off, or learns what it was long ago.
#[test]
fn statistics_come_each_time_they_are_due() {
    let mut driver = driver(ALL);
    let first = stats(&[(4, 1 << 20), (99, 7), (6, 3 << 20), (4, 2 << 20)]);
    let start = Instant::now();
    for _ in 0..2 {
        let request = driver.submit(STATS, &[&first], &[]);
        driver.kick(STATS);
        driver.run();
        let seen = *driver.device.lock().unwrap().stats().unwrap();
        assert_eq!(
            (seen.free(), seen.available()),
            (Some(2 << 20), Some(3 << 20))
        );
        assert_eq!(seen.to_string(), "free 2048K, available 3072K");
        // The driver kicks for the next ones: with the event index, if told so.
        let ring = driver.rings[STATS];
        let event = GuestAddress(ring.device + 4 + 8 * u64::from(ring.size));
        assert_eq!(driver.mem.read_obj::<u16>(event).unwrap(), ring.avail);
        // The buffer comes back when the next are due.
        assert_eq!(driver.used(STATS), None);
        let used = loop {
            driver.run();
            match driver.used(STATS) {
                Some(used) => break used,
                None => assert!(start.elapsed() < Duration::from_secs(20)),
            }
        };
        assert_eq!(used, (request.head.into(), 0));
    }
}

/// If it fails, statistics that are none are read past their end, or stop the device.
#[test]
fn odd_statistics_are_read_as_far_as_they_go() {
    for (data, free) in [
        (vec![], None),
        (vec![4], None),
        (stats(&[(4, 5)])[..9].to_vec(), None),
        ([stats(&[(4, 5)]), vec![4, 0, 1]].concat(), Some(5)),
        (stats(&[(4, 5); 1000]), Some(5)),
        (stats(&[(0xffff, 5), (10, 6)]), None),
    ] {
        let mut driver = driver(ALL);
        driver.submit(STATS, &[&data], &[16]);
        // One is kept; the others have to wait.
        driver.submit(STATS, &[&stats(&[(4, 77)])], &[]);
        driver.kick(STATS);
        driver.run();
        assert_eq!(driver.device.lock().unwrap().stats().unwrap().free(), free);
        assert!(!driver.needs_reset());
    }
}

/// Sends a number on the queue of hints.
fn send_number(driver: &mut MockDriver<Balloon>, number: u32) {
    driver.request(HINT, &[&number.to_le_bytes()], &[]);
}

/// Hints at a block that holds something; returns whether it still does.
fn is_hint_kept(driver: &mut MockDriver<Balloon>, is_kicked: bool) -> bool {
    let page = driver.alloc(0).div_ceil(PAGE);
    let request = driver.submit(HINT, &[], &[8192]);
    full_page(driver, page);
    match is_kicked {
        true => driver.kick(HINT),
        // As if the driver had kicked long ago, and gone on.
        false => driver.device.lock().unwrap().serve(HINT),
    }
    // Before the event loop gets to do anything.
    let kept = !is_empty(driver, page);
    assert_eq!(driver.used(HINT), Some((request.head.into(), 0)));
    kept
}

/// If it fails, what the guest hints stays with it, or something is thrown away that it may have
/// taken back meanwhile.
#[test]
fn hints_count_within_a_run_and_within_their_kick() {
    let mut driver = driver(ALL);
    assert_eq!(driver.config(8, 4), numbers(&[0]));
    assert!(is_hint_kept(&mut driver, true));
    driver.device.lock().unwrap().start_hinting();
    let run = driver.config(8, 4);
    assert_eq!(run, numbers(&[2]));
    assert!(is_hint_kept(&mut driver, true));
    send_number(&mut driver, 7);
    assert!(is_hint_kept(&mut driver, true));
    send_number(&mut driver, 2);
    assert!(!is_hint_kept(&mut driver, true));
    assert!(is_hint_kept(&mut driver, false));
    driver.interrupts();
    send_number(&mut driver, 0);
    assert_eq!(driver.config(8, 4), numbers(&[1]));
    assert!(driver.interrupts() > 0);
    assert!(is_hint_kept(&mut driver, true));

    driver.device.lock().unwrap().start_hinting();
    assert_eq!(driver.config(8, 4), numbers(&[3]));
    driver.start(u64::MAX);
    assert_eq!(driver.config(8, 4), numbers(&[0]));
    driver.submit(HINT, &[&[0; 4]], &[4096]);
    driver.kick(HINT);
    assert!(driver.needs_reset());
}

/// If it fails, a hostile guest reaches the host through the balloon.
#[test]
fn a_hostile_driver_gets_nowhere() {
    let plain = || Balloon::new(BalloonOptions::default()).unwrap();
    hostile_suite(plain, &[INFLATE, DEFLATE]);
    hostile_suite(|| Balloon::new(ALL).unwrap(), &[INFLATE, DEFLATE]);
    // A driver that takes all features has all queues served.
    let mut driver = MockDriver::started(Balloon::new(ALL).unwrap(), EVENT_IDX);
    driver.kick(REPORT);
    driver.run();
    assert!(!driver.needs_reset());
}
