//! virtio-rng in a guest.

use crate::harness::{TempDir, Vm};

/// If it fails, guests have no entropy from the host, or one where it was declined.
#[test]
fn the_guest_gets_random_bytes() {
    let dir = TempDir::new("rng");
    let script = "cat /sys/class/misc/hw_random/rng_current
                  head -c 65536 /dev/hwrng >/tmp/a; head -c 65536 /dev/hwrng >/tmp/b
                  ls -l /tmp/a /tmp/b; ! cmp /tmp/a /tmp/b";
    let end = Vm::script(&dir, "", script).end().expect(0);
    assert!(end.console.contains("virtio_rng"), "{}", end.console);
    assert_eq!(end.console.matches(" 65536 ").count(), 2, "{}", end.console);

    let end = Vm::script(&dir, "--no-rng", "head -c 1 /dev/hwrng || exit 5").end();
    end.expect(5);
}
