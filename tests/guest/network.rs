//! Containers on networks of their own: addresses, names, NAT, published ports.

use std::process::Command;

use crate::container::{Engine, code};
use crate::harness::{host, wait_until};

/// A network beyond the host, which knows no way back to containers, and what the host does with packets that
/// no rule knows: Docker has it drop them, and leaves it so.
struct Outside {
    policy: String,
}

impl Outside {
    fn new() -> Self {
        let policy = host("iptables -S FORWARD | head -n 1");
        host(
            "iptables -P FORWARD ACCEPT; ip netns add outside
             ip link add to-outside type veth peer name eth0 netns outside
             ip address add 198.51.100.1/24 dev to-outside; ip link set to-outside up
             ip -n outside address add 198.51.100.2/24 dev eth0; ip -n outside link set eth0 up
             ip -n outside link set lo up",
        );
        Self { policy }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let script = format!("ip netns del outside; iptables {}", self.policy);
        let _ = Command::new("sh").args(["-c", &script]).status();
    }
}

/// If it fails, containers on a network do not reach each other, by name or at all, nor the world, nor
/// does the world reach their ports; or something of a network stays behind on the host.
#[test]
fn containers_have_a_network() {
    let engine = Engine::new("network");
    let _outside = Outside::new();
    engine.text("network create --subnet 10.123.0.0/24 --label a=b net");
    assert!(engine.text("network ls").contains("10.123.0.0/24"));
    let serve = "echo hello >/tmp/index.html; exec httpd -f -h /tmp";
    engine.script(
        "run -d --name web --network net -p 8123:80 --network-alias www busybox",
        serve,
    );
    let address = engine.text("inspect -f {{.NetworkSettings.IPAddress}} web");
    assert_eq!(address, "10.123.0.2");
    assert!(engine.text("network inspect net").contains("10.123.0.2/24"));

    // Each other, by address and by name.
    let script = "wget -q -O - http://10.123.0.2/; nslookup web; nslookup www.dns.podman
                  ip -o address show dev eth0; ip route";
    let said = engine.script("run --rm --network net --ip 10.123.0.77 busybox", script);
    assert!(said.starts_with("hello\n"), "{said}");
    assert!(said.matches("10.123.0.2\n").count() >= 2, "{said}");
    assert!(
        said.contains("10.123.0.77/24") && said.contains("default via 10.123.0.1"),
        "{said}"
    );

    // The world, which sees the host's address; and the other way round.
    let listen = "ip netns exec outside timeout 200 python3 -c 'import socket
s = socket.create_server((\"198.51.100.2\", 7)); c, a = s.accept(); c.sendall(a[0].encode())'";
    let listener = Command::new("sh").args(["-c", listen]).spawn().unwrap();
    let said = engine.script(
        "run --rm --network net busybox",
        "for i in 1 2 3 4 5 6 7 8 9; do nc 198.51.100.2 7 && break; sleep 1; done",
    );
    assert_eq!(said, "198.51.100.1");
    listener.wait_with_output().unwrap();
    let get = "curl -sS --max-time 60 http://127.0.0.1:8123/";
    assert_eq!(host(get), "hello\n");
    let get = "ip netns exec outside curl -sS --max-time 60 http://198.51.100.1:8123/";
    assert_eq!(host(get), "hello\n");

    // Those who are not on it do not reach it; nobody removes it while it is used.
    let other = engine.shell(
        "run --rm --network none busybox",
        "wget -q -T 5 -O - http://10.123.0.2/",
    );
    assert_ne!(code(&other), 0);
    assert_ne!(code(&engine.run("network rm net")), 0);
    for refused in ["host", "container:web", "nothing"] {
        let end = engine.run(&format!("run --rm --network {refused} busybox true"));
        assert_eq!(code(&end), 125, "{refused}: {end:?}");
    }

    // Restarted it is there again; killed with its shim it leaves nothing.
    engine.text("restart -t 0 web");
    assert_eq!(
        engine.text("inspect -f {{.NetworkSettings.IPAddress}} web"),
        "10.123.0.2"
    );
    wait_until("the server", || {
        host("curl -s --max-time 60 http://127.0.0.1:8123/ || :") == "hello\n"
    });
    let shim = engine.text("inspect -f {{.Cofferdam.Shim}} web");
    host(&format!("kill -9 {shim}"));
    engine.text("rm -f web");
    engine.text("network rm net");
    assert_eq!(
        host("ip -o link show type bridge | grep cofferdam || :"),
        ""
    );
    assert_eq!(
        host("grep cofferdam /proc/self/mountinfo | grep nsfs || :"),
        ""
    );
    assert_eq!(host("iptables -t nat -S | grep 10.123 || :"), "");
}

/// If it fails, a process on the host's kernel is not on the network that VMs are on, so that the two
/// cannot be compared there; or it leaves something of it behind.
#[test]
fn a_process_is_on_a_network_with_vms() {
    let engine = Engine::for_processes("process-network");
    engine.text("network create --subnet 10.124.0.0/24 net");
    let options = "--isolation=process --network net -p 8124:80 --add-host there:198.51.100.9";
    let serve = "echo hello >/tmp/index.html; exec httpd -f -h /tmp";
    engine.script(&format!("run -d --name web {options} busybox"), serve);
    let script = "wget -q -O - http://web/; nslookup web";
    let said = engine.script("run --rm --network net busybox", script);
    assert!(
        said.starts_with("hello\n") && said.contains("10.124.0.2"),
        "{said}"
    );
    let get = "curl -sS --max-time 60 http://127.0.0.1:8124/";
    assert_eq!(host(get), "hello\n");
    assert_eq!(engine.text("port web"), "80/tcp -> 0.0.0.0:8124");
    let script = "wget -q -O - http://127.0.0.1/; cat /etc/hosts /etc/resolv.conf; ip route";
    let said = engine.script("exec web", script);
    for part in [
        "hello\n",
        "198.51.100.9\tthere",
        "nameserver 10.124.0.1",
        "default via 10.124.0.1",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let shim = engine.text("inspect -f {{.Cofferdam.Shim}} web");
    host(&format!("kill -9 {shim}"));
    engine.text("rm -f web");
    engine.text("network rm net");
    let left = host("grep cofferdam /proc/self/mountinfo | grep nsfs || :");
    assert_eq!(left, "");
    assert_eq!(host("iptables -t nat -S | grep 10.124 || :"), "");
}
