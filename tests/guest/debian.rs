//! A Debian guest at work, and through many lives.

use std::fs::{self, File};
use std::process::Command;

use crate::harness::{TempDir, Vm, guest_file, host, patience, program, script_args};

/// If it fails, a guest cannot trust its disk or its network: what fio wrote is not what it reads
/// back, pings are not answered, or a file served over TCP is not the one that arrives.
#[test]
fn disk_and_network_hold_what_they_promise() {
    let dir = TempDir::new("debian");
    let disk = dir.join("disk");
    File::create(&disk).unwrap().set_len(96 << 20).unwrap();
    let script = r#"
        set -e
        ip address add 10.77.4.2/24 dev eth0
        fio --name=verify --filename=/dev/vdc --rw=randwrite --bsrange=4k-128k --size=64m \
            --ioengine=libaio --iodepth=32 --direct=1 --verify=crc32c --verify_fatal=1 \
            --fsync=64 --eta=never --output=/tmp/fio || { cat /tmp/fio; exit 1; }
        blkdiscard -z -o 1M -l 4M /dev/vdc
        cmp -n 4194304 -i 1048576:0 /dev/vdc /dev/zero
        mkfs.ext4 -q /dev/vdc; mount /dev/vdc /mnt
        dd if=/dev/urandom of=/mnt/file bs=1M count=8 status=none
        echo "sum $(sha256sum </mnt/file | cut -c 1-64)."
        busybox httpd -p 80 -h /mnt; read line; killall busybox 2>/dev/null || :
        rm /mnt/file; sync; fstrim /mnt"#;
    let args = format!(
        "--cpus 2 --disk path={} --net tap=cofdebian",
        disk.display()
    );
    let mut vm = Vm::debian(&dir, &args, script);
    vm.wait_for("sum ");
    vm.wait_for(".");
    let console = vm.console_so_far();
    let (_, sum) = console.rsplit_once(' ').unwrap();

    host("ip address add 10.77.4.1/24 dev cofdebian; ping -c 3 -i 0.2 -W 10 10.77.4.2");
    let got = host("curl -sS --noproxy '*' http://10.77.4.2/file | sha256sum");
    assert_eq!(got[..64], sum[..64]);
    vm.type_text("\n");
    vm.end().expect(0);
    host(&format!("e2fsck -fn {}", disk.display()));
}

/// How often the guest below starts.
const LIVES: u32 = 20;

/// If it fails, VMs that reboot leave taps, processes, threads or descriptors behind, lose what
/// they wrote before, or do not come up again at some time.
#[test]
fn twenty_reboots_leave_nothing_behind() {
    let dir = TempDir::new("reboots");
    let disk = dir.join("disk");
    fs::write(&disk, format!("{:511}\n", 0)).unwrap();
    // The guest counts its lives on the disk.
    let script = format!(
        r#"read lives </dev/vdc; lives=$((lives + 1))
           [ "$(nproc)" = 2 ] && [ -e /sys/class/net/eth0 ] || exit 1
           printf '%-511d\n' $lives | dd of=/dev/vdc conv=fsync status=none
           echo "life $lives."
           [ $lives -lt {LIVES} ] || exit 0
           reboot; exec sleep 60"#
    );
    // The supervisor: a shell, which says before and after how many descriptors, threads, processes
    // and taps there are.
    let supervisor = r#"
        state() { echo "state $(ls /proc/$$/fd | wc -l) $(ls /proc/$$/task | wc -l)" \
            "$(cat /proc/[0-9]*/cmdline 2>/dev/null | grep -ac coflife)" \
            "$(ls /sys/class/net | grep -c coflife)."; }
        state
        while "$@"; code=$?; [ $code = 80 ]; do :; done
        state
        exit $code"#;
    let debian = format!("--rootfs {},ro", guest_file("debian.ext4").display());
    let args = format!(
        "{debian} --cpus 2 --disk path={} --net tap=coflife%d",
        disk.display()
    );
    let mut command = Command::new("sh");
    command
        .args(["-c", supervisor, "sh", program(), "boot"])
        .args(script_args(&dir, &args, "bash", &script));
    let end = Vm::spawn(command).end_within(patience() * 3).expect(0);
    let count = |text| end.console.matches(text).count();
    assert_eq!(count("life "), LIVES as usize, "{}", end.console);
    let states: Vec<_> = end
        .console
        .lines()
        .filter(|l| l.starts_with("state "))
        .collect();
    assert!(states.len() == 2 && states[0] == states[1], "{states:?}");
    assert!(states[1].ends_with(" 0."), "{states:?}");
}
