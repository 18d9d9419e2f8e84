//! virtio-net on passt: a network for a guest whose monitor has no privilege.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{TempDir, Vm, host, program, script_args, wait_until};

/// What the host offers, on its loopback interface: a file by TCP, an echo by UDP, and a name
/// server that knows one address for all names.
const SERVERS: &str = r#"
import socket, sys, threading
def udp(port, answer):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", port))
    def serve():
        while True:
            data, peer = s.recvfrom(65536)
            s.sendto(answer(data), peer)
    threading.Thread(target=serve).start()
def dns(query):
    end = query.index(b"\0", 12) + 5
    is_a = query[end - 4:end - 2] == b"\0\1"
    head = query[:2] + b"\x85\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([192, 0, 2, 77])
    return head + query[12:end] + (answer if is_a else b"")
udp(53, dns)
udp(7002, lambda data: b"echo of " + data)
s = socket.create_server(("127.0.0.1", 7001))
content = open(sys.argv[1], "rb").read()
while True:
    c = s.accept()[0]
    c.sendall(content)
    c.close()
"#;

/// Becomes a monitor of user 65534 with no capability, in a network that has one interface with an
/// address and nothing behind it. Arguments: a directory, then the command.
const WORLD: &str = r#"
dir=$1; shift
ip link set lo up
ip link add up0 type dummy; ip link set up0 up
ip address add 10.88.0.2/24 dev up0; ip route add default via 10.88.0.1
echo nameserver 127.0.0.1 >"$dir/resolv"; mount --bind "$dir/resolv" /etc/resolv.conf
mount -t tmpfs none /mnt; mknod -m 666 /mnt/kvm c 10 232; mount --bind /mnt/kvm /dev/kvm
python3 "$dir/servers.py" "$dir/content" >/dev/null 2>&1 </dev/null &
# The guest's files may lie where that user does not get to.
mkdir "$dir/guest"
for file in "$COFFERDAM_GUEST"/vmlinux "$COFFERDAM_GUEST"/debian.ext4; do
    name=$dir/guest/${file##*/}
    touch "$name"; mount --bind "$(readlink -f "$file")" "$name"
done
export COFFERDAM_GUEST="$dir/guest"
chmod a+rx "$dir"
exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all "$@"
"#;

/// Brings Debian's interface up as DHCP says.
const DHCP: &str = r#"
    cat >/tmp/dhcp <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "dhcp: $ip router $router dns $dns mtu $(cat /sys/class/net/eth0/mtu)."
END
    chmod +x /tmp/dhcp; ip link set eth0 up
    busybox udhcpc -i eth0 -n -q -s /tmp/dhcp 2>/dev/null
"#;

/// A VM in such a world, and a directory for both.
fn vm(dir: &TempDir, net: &str, script: &str) -> Vm {
    let content: Vec<u8> = (0..4u32 << 18).flat_map(u32::to_le_bytes).collect();
    fs::write(dir.join("content"), content).unwrap();
    fs::write(dir.join("servers.py"), SERVERS).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-ec", WORLD, "sh"]);
    command.arg(dir.join("")).args([program(), "boot"]);
    let rootfs = dir.join("guest/debian.ext4");
    let args = format!("--rootfs {},ro {net}", rootfs.display());
    command.args(script_args(
        dir,
        &args,
        "bash",
        &format!("{DHCP}\n{script}"),
    ));
    Vm::spawn(command)
}

/// The passt of a monitor, which has the servers for a child, too.
fn passt_of(vm: &Vm) -> String {
    let children = format!("/proc/{0}/task/{0}/children", vm.pid());
    let children = fs::read_to_string(children).unwrap();
    let is_passt = |pid: &&str| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        name.starts_with("passt")
    };
    children
        .split_whitespace()
        .find(is_passt)
        .unwrap()
        .to_owned()
}

/// If it fails, a guest without a privileged host has no network, no names, publishes nothing, or
/// data arrives changed; or the end of passt takes the monitor along or is not seen in the guest.
#[test]
fn without_privilege() {
    let dir = TempDir::new("passt");
    let script = r#"
        mkdir /tmp/www
        socat -u TCP:10.88.0.1:7001 CREATE:/tmp/www/file; echo "tcp $(stat -c %s /tmp/www/file)."
        echo ping | socat -t 20 - UDP:10.88.0.1:7002 | head -1
        busybox nslookup some.example 10.88.0.1 | sed -n 's/^Address: *\(192.*\)/name \1./p'
        busybox httpd -p 80 -h /tmp/www; socat UDP-RECVFROM:53,fork EXEC:cat & sleep 1
        echo ready; read line
        while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
        echo "link down"; read line"#;
    let net = "--net passt,publish=8080:80+127.0.0.1:5353:53/udp,mac=02:00:00:00:00:88 \
               --log-level info";
    let mut vm = vm(&dir, net, script);
    vm.wait_for_log("net: passt, ");
    vm.wait_for("dhcp: 10.88.0.2 router 10.88.0.1 dns 10.88.0.1 mtu 65520.");
    vm.wait_for("tcp 4194304.");
    vm.wait_for("echo of ping");
    vm.wait_for("name 192.0.2.77.");
    vm.wait_for("ready");

    let enter = format!("nsenter --net --target {}", vm.pid());
    let got = dir.join("got");
    host(&format!(
        "{enter} curl -sS --noproxy '*' -o {} http://127.0.0.1:8080/file",
        got.display()
    ));
    let same = fs::read(&got).unwrap() == fs::read(dir.join("content")).unwrap();
    assert!(same, "what came back is not what was sent");
    let datagram = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(60); \
                    s.sendto(b\"hello\", (\"127.0.0.1\", 5353)); print(s.recv(9).decode())";
    let echo = host(&format!("{enter} python3 -c '{datagram}'"));
    assert_eq!(echo.trim(), "hello");

    vm.type_text("\n");
    host(&format!("kill -9 {}", passt_of(&vm)));
    vm.wait_for("link down");
    vm.type_text("\n");
    let log = vm.end().expect(0).log;
    assert_eq!(log.matches("link is down").count(), 1, "{log}");
    assert!(log.contains("passt ended (signal: 9"), "{log}");
}

/// If it fails, a monitor that is killed leaves its passt behind, with the ports that it holds.
#[test]
fn passt_goes_with_its_monitor() {
    let dir = TempDir::new("passtend");
    let mut vm = vm(&dir, "--net passt", "echo up; read line");
    vm.wait_for("up");
    let passt = Path::new("/proc").join(passt_of(&vm));
    assert!(passt.exists());
    vm.signal(libc::SIGKILL);
    assert_eq!(vm.end().code, None);
    wait_until("the end of passt", || !passt.exists());
}

/// If it fails, a user is left to guess why there is no network, or has a VM without one.
#[test]
fn what_keeps_passt_from_starting_is_told() {
    let dir = TempDir::new("passtnot");
    let refused = |net: &str, path: Option<&str>, words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "sh",
            "-ec",
            "ip link set lo up; exec env \"$@\"",
            "sh",
        ]);
        command.args(path.map(|path| format!("PATH={path}")));
        command.args([program(), "boot"]);
        command.args(script_args(&dir, net, "sh", "true"));
        let end = Vm::spawn(command).end().expect(3);
        for word in words {
            assert!(end.log.contains(word), "{word}: {}", end.log);
        }
    };
    refused(
        "--net passt",
        Some("/nowhere"),
        &["install the package passt"],
    );
    // A network of nothing but a loopback interface.
    refused(
        "--net passt",
        None,
        &["passt ended at its start", "interface"],
    );
    let publish = "--net passt,publish=192.0.2.1:80:80";
    refused(publish, None, &["cannot publish 192.0.2.1:80:80/tcp"]);
}
