//! Containers on networks of their own: addresses, names, NAT, published ports.

use std::io::Read;
use std::process::{Command, Stdio};

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
    assert_eq!(host("ip -o address show | grep 10.123 || :"), "");
    assert_eq!(
        host(&format!(
            "grep {} /proc/self/mountinfo | grep nsfs || :",
            engine.path("")
        )),
        ""
    );
    assert_eq!(host("iptables -t nat -S | grep 10.123 || :"), "");
}

/// If it fails, two containers, or one and a program of the host's, seem to have one port, and one of them is
/// dead or dies with the other; or nobody reaches a server by the host's IPv6.
#[test]
fn a_port_is_one_containers() {
    let engine = Engine::new("ports");
    engine.text("network create --subnet 10.125.0.0/24 net");
    let serve = |name: &str, ports: &str| {
        let line = format!("run -d --name {name} --network net {ports} busybox");
        let script = format!("echo {name} >/tmp/index.html; exec httpd -f -h /tmp");
        engine.shell(&line, &script)
    };
    let get = |address: &str| host(&format!("curl -g -s --max-time 60 http://{address}/ || :"));
    let answers = |address: &str, name: &str| {
        wait_until(address, || get(address) == format!("{name}\n"));
    };
    assert_eq!(code(&serve("one", "-p 8125:80 -p 8126:7/udp")), 0);
    for address in ["127.0.0.1:8125", "[::1]:8125"] {
        answers(address, "one");
    }
    // Somebody has it: another container, by whatever address, or a program.
    for ports in [
        "-p 8125:80",
        "-p 127.0.0.1:8125:80",
        "-p 8127:80 -p 8126:7/udp",
        "-p [::1]:8125:80",
    ] {
        let end = serve("two", ports);
        assert_eq!(code(&end), 125, "{ports}: {end:?}");
        let said = String::from_utf8_lossy(&end.stderr).into_owned();
        assert!(
            said.contains("cannot publish") && said.contains("in use"),
            "{said}"
        );
        engine.text("rm two");
        answers("127.0.0.1:8125", "one");
    }
    let listen = "import socket, time
s = socket.create_server((\"127.0.0.1\", 8127)); print(flush=True); time.sleep(1000)";
    let mut program = Command::new("python3")
        .args(["-c", listen])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    program.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    assert_eq!(code(&serve("two", "-p 8127:80")), 125);
    program.kill().unwrap();
    program.wait().unwrap();
    engine.text("start two");
    answers("127.0.0.1:8127", "two");

    // Others' ports do not go with one.
    assert_eq!(code(&serve("three", "-p 127.0.0.1:8128:80")), 0);
    assert_eq!(
        code(&serve("four", "-p 127.0.0.2:8128:80 -p [::1]:8128:80")),
        0
    );
    answers("127.0.0.1:8128", "three");
    engine.text("rm -f three");
    for address in ["127.0.0.2:8128", "[::1]:8128"] {
        answers(address, "four");
    }
    assert_eq!(get("127.0.0.1:8128"), "");

    // That of one whose shim was killed is free, and leads to who has it now.
    let shim = engine.text("inspect -f {{.Cofferdam.Shim}} one");
    host(&format!("kill -9 {shim}"));
    wait_until("its end", || {
        engine.text("inspect -f {{.State.Status}} one") == "exited"
    });
    assert_eq!(code(&serve("five", "-p 8125:80")), 0);
    for address in ["127.0.0.1:8125", "[::1]:8125"] {
        answers(address, "five");
    }
    engine.text("rm one");
    answers("127.0.0.1:8125", "five");
    engine.text("rm -f two four five");
    assert_eq!(get("[::1]:8125"), "");
    assert_eq!(host("iptables -t nat -S | grep 10.125 || :"), "");
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
    let left = host(&format!(
        "grep {} /proc/self/mountinfo | grep nsfs || :",
        engine.path("")
    ));
    assert_eq!(left, "");
    assert_eq!(host("iptables -t nat -S | grep 10.124 || :"), "");
}
