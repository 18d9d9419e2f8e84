//! Privileged containers: what of their own kernel they have, which others have not.

use crate::container::Engine;

/// If it fails, a privileged container lacks devices of its kernel's (so that it mounts no image, makes no
/// tunnel, reads no kernel log), or every container has them.
#[test]
fn a_privileged_container_has_the_devices_of_its_kernel() {
    let engine = Engine::new("privileged");
    let line = "run --rm --network none --pull never";
    let said = engine.script(
        &format!("{line} --privileged busybox"),
        "set -e
         for node in fuse kmsg loop-control loop0 loop63 net/tun vda pmem0 hwrng ttyS0; do
             [ -c /dev/$node ] || [ -b /dev/$node ] || echo no $node
         done
         [ $(readlink /dev/ptmx) = pts/ptmx ]
         truncate -s 4M /one /two; mke2fs -F /one >/dev/null; mke2fs -F /two >/dev/null
         mkdir -p /mnt/one /mnt/two; mount -o loop /one /mnt/one; mount -o loop /two /mnt/two
         echo kept >/mnt/two/file; umount /mnt/two; mount -o loop,ro /two /mnt/two; cat /mnt/two/file
         tunctl -t own0 >/dev/null; ip link set own0 up; [ -d /sys/class/net/own0 ]
         exec 3<>/dev/fuse; head -c 16 /dev/vda | wc -c; head -n 1 /dev/kmsg | grep -c Linux",
    );
    assert_eq!(said, "kept\n16\n1");
    let said = engine.script(
        &format!("{line} busybox"),
        "ls /dev; for node in fuse kmsg loop-control loop0 net vda pmem0; do
             [ ! -e /dev/$node ] || echo has $node
         done",
    );
    assert!(said.contains("null") && !said.contains("has "), "{said}");
    let said = engine.script(
        &format!(
            "{line} --cap-add SYS_ADMIN --device /dev/kmsg --device /dev/loop-control busybox"
        ),
        "ls /dev/kmsg /dev/loop-control; ls /dev | grep -c loop",
    );
    assert_eq!(said, "/dev/kmsg\n/dev/loop-control\n1");
}
