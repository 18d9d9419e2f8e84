//! virtio-net in a guest, on taps of the host.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::harness::{TempDir, Vm, host, program, script_args, wait_until};

/// A property of a network interface of the host.
fn interface(name: &str, what: &str) -> String {
    let path = format!("/sys/class/net/{name}/{what}");
    fs::read_to_string(path).unwrap().trim().to_owned()
}

fn exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// If it fails, the tap that we make is not as the guest's interface, data sent either way arrives
/// changed or not at all, frames are cut into packets one by one, or the tap outlives the VM.
#[test]
fn on_a_tap_that_we_make() {
    let dir = TempDir::new("newtap");
    let script = r#"
        echo "eth0 $(cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu | xargs)."
        ip address add 10.77.1.2/24 dev eth0
        mkdir /tmp/www; dd if=/dev/urandom of=/tmp/www/file bs=64k count=64 2>/dev/null
        httpd -p 80 -h /tmp/www; echo ready; read line
        nc 10.77.1.1 7000 </dev/null >/tmp/back; cmp /tmp/back /tmp/www/file"#;
    let net = "--cpus 2 --net tap=cofftest%d,mac=02:00:00:00:00:77,mtu=1400 --log-level info";
    let mut vm = Vm::script(&dir, net, script);
    vm.wait_for_log("net: tap ");
    vm.wait_for_log(",");
    let log = vm.log_so_far();
    let (_, tap) = log.rsplit_once(' ').unwrap();
    let tap = tap.trim_end_matches(',');
    assert!(tap.starts_with("cofftest"), "{tap}");

    host(&format!("ip address add 10.77.1.1/24 dev {tap}"));
    vm.wait_for("eth0 02:00:00:00:00:77 1400.");
    assert_eq!(interface(tap, "mtu"), "1400");
    vm.wait_for("ready");
    host("ping -c 3 -i 0.2 -W 10 10.77.1.2");

    let got = dir.join("got");
    let url = "http://10.77.1.2/file";
    host(&format!(
        "curl -sS --noproxy '*' -o {} {url}",
        got.display()
    ));
    let content = fs::read(&got).unwrap();
    assert_eq!(content.len(), 64 << 16);
    let [bytes, frames] =
        ["bytes", "packets"].map(|unit| interface(tap, &format!("statistics/rx_{unit}")));
    let [bytes, frames]: [u64; 2] = [bytes.parse().unwrap(), frames.parse().unwrap()];
    assert!(
        bytes / frames > 3 * 1400,
        "{bytes} bytes in {frames} frames: no offload"
    );

    let listener = TcpListener::bind("10.77.1.1:7000").unwrap();
    vm.type_text("\n");
    let (mut client, _) = listener.accept().unwrap();
    client.write_all(&content).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let _ = client.read(&mut [0]);
    vm.end().expect(0);
    assert!(!exists(tap));
}

/// A tap that the test has opened, as a parent process would for its VM.
fn open_tap(name: &str) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request = [0; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request[16..20].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the ioctl reads and writes a `struct ifreq`, which has 40 bytes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    file
}

/// If it fails, a VM has one interface only, cannot use a tap by its name or by an inherited
/// descriptor, loses its network for good when the tap goes down, or takes the tap with it.
#[test]
fn on_taps_that_are_there() {
    const FD: i32 = 9;
    let dir = TempDir::new("taps");
    host(
        "ip tuntap add cofnamed mode tap; ip address add 10.77.2.1/24 dev cofnamed
          ip link set cofnamed up",
    );
    let inherited = open_tap("cofopen");
    host("ip address add 10.77.3.1/24 dev cofopen; ip link set cofopen up");

    let script = "
        ip address add 10.77.2.2/24 dev eth0
        ip link set eth1 up; ip address add 10.77.3.2/24 dev eth1
        echo ready; read line";
    let mut command = Command::new(program());
    let nets = format!("--net tap=cofnamed --net fd={FD}");
    command
        .arg("boot")
        .args(script_args(&dir, &nets, "sh", script));
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(move || match libc::dup2(inherited.as_raw_fd(), FD) {
            FD => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut vm = Vm::spawn(command);
    vm.wait_for("ready");
    let ping = |address| format!("ping -c 2 -i 0.2 -W 10 {address}");
    host(&ping("10.77.2.2"));
    host(&ping("10.77.3.2"));

    host("ip link set cofnamed down");
    // What the guest sends meanwhile must not stop it.
    vm.wait_for_log("cofnamed");
    host("ip link set cofnamed up");
    wait_until("an answer after the tap was down", || {
        Command::new("sh")
            .args(["-c", &ping("10.77.2.2")])
            .output()
            .unwrap()
            .status
            .success()
    });

    vm.type_text("\n");
    vm.end().expect(0);
    assert!(exists("cofnamed") && !exists("cofopen"));
    host("ip link delete cofnamed");
}

/// Bytes a second that arrive when the host's iperf3 talks to the guest's.
fn throughput(options: &str) -> f64 {
    let report = host(&format!("iperf3 -J -t 8 {options}"));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap()
        / 8.0
}

/// If it fails, a guest sends or receives more than its limit, or much less.
#[test]
fn as_fast_as_the_limits_let_it() {
    let dir = TempDir::new("netlimit");
    let net = "--net tap=cofrate,rate_limit.rx.bytes_per_second=1M,\
               rate_limit.tx.bytes_per_second=2M";
    let script = "ip address add 10.77.4.2/24 dev eth0; ip link set eth0 up
        iperf3 -s -D; sleep 1; echo ready; read line";
    host("ip tuntap add cofrate mode tap; ip address add 10.77.4.1/24 dev cofrate");
    host("ip link set cofrate up");
    let mut vm = Vm::debian(&dir, net, script);
    vm.wait_for("ready");
    // From the guest first: what goes to it leaves a queue before the limit, and acknowledgements
    // would stand in it.
    for (options, limit) in [("-R", 2 << 20), ("", 1 << 20)] {
        let ratio = throughput(&format!("-c 10.77.4.2 {options}")) / f64::from(limit);
        println!("{options:2} {ratio:.3} of the limit");
        assert!(
            (0.9..1.1).contains(&ratio),
            "{options} {ratio:.3} of the limit"
        );
    }
    vm.type_text("\n");
    vm.end().expect(0);
    host("ip link delete cofrate");
}

/// If it fails, a guest with several vCPUs sends through one queue, some of its queues are dead, or a
/// driver that comes and goes under load leaks what the monitor has, or loses its network.
#[test]
fn on_several_queues_whose_driver_comes_and_goes() {
    let dir = TempDir::new("netqueues");
    let script = r#"
        up() { ip address add 10.77.5.2/24 dev eth0; ip link set eth0 up; }
        device=$(basename "$(readlink -f /sys/class/net/eth0/device)")
        echo "queues $(ls /sys/class/net/eth0/queues | xargs)."
        up; iperf3 -s -D; sleep 1; echo ready; read line
        cd /sys/bus/virtio/drivers/virtio_net
        for i in $(seq 200); do
            echo "$device" >unbind; echo "$device" >bind; up
        done
        echo again; read line"#;
    host("ip tuntap add cofqueues mode tap multi_queue; ip address add 10.77.5.1/24 dev cofqueues");
    host("ip link set cofqueues up");
    let mut vm = Vm::debian(&dir, "--cpus 2 --net tap=cofqueues,queues=2", script);
    vm.wait_for("queues rx-0 rx-1 tx-0 tx-1.");
    vm.wait_for("ready");
    for options in ["-P 4", "-P 4 -R"] {
        let rate = throughput(&format!("-c 10.77.5.2 {options}"));
        println!("{options}: {rate:.0} bytes/s");
        assert!(rate > 0.0);
    }
    let held = |what: &str| {
        fs::read_dir(format!("/proc/{}/{what}", vm.pid()))
            .unwrap()
            .count()
    };
    let before = [held("fd"), held("task")];
    let flood = Command::new("sh")
        .args([
            "-c",
            "exec ping -q -i 0.002 -s 1000 10.77.5.2 >/dev/null 2>&1",
        ])
        .spawn();
    vm.type_text("\n");
    vm.wait_for("again");
    flood.unwrap().kill().unwrap();
    thread::sleep(Duration::from_millis(500));
    let held = |what: &str| {
        fs::read_dir(format!("/proc/{}/{what}", vm.pid()))
            .unwrap()
            .count()
    };
    assert_eq!([held("fd"), held("task")], before);
    host("ping -c 3 -i 0.2 -W 10 10.77.5.2");
    vm.type_text("\n");
    let log = vm.end().expect(0).log;
    assert!(!log.contains("until it is reset"), "{log}");
    host("ip link delete cofqueues");
}

/// If it fails, a guest does not see that its tap was deleted, or the log is full of it.
#[test]
fn on_a_tap_that_is_deleted() {
    let dir = TempDir::new("deletedtap");
    let script = r#"
        ip address add 10.77.6.2/24 dev eth0; echo "carrier $(cat /sys/class/net/eth0/carrier)."
        (while true; do ping -c 1 -w 1 10.77.6.1 >/dev/null; done) &
        while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
        echo "link down"; sleep 1"#;
    host("ip tuntap add cofgone mode tap; ip link set cofgone up");
    let mut vm = Vm::script(&dir, "--net tap=cofgone", script);
    vm.wait_for("carrier 1.");
    host("ip link delete cofgone");
    vm.wait_for("link down");
    let log = vm.end().expect(0).log;
    let told = log.matches("tap cofgone is gone: the guest's link is down");
    assert_eq!(told.count(), 1, "{log}");
}
