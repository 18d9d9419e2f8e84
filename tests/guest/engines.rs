//! Container engines that run their containers by our OCI runtime.

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use crate::attach::{self, calculates};
use crate::harness::{Vm, host, wait_until};
use crate::runc::{Runtime, big, code};

/// An engine's client, with options that come before its commands.
pub struct Engine {
    pub runtime: Runtime,
    pub program: Vec<String>,
    /// Options of `run`.
    run: &'static str,
    /// The one that it talks to first.
    pub daemons: Vec<Daemon>,
    /// Held while there is a dockerd: they share a bridge, and rules of the firewall.
    _alone: Option<MutexGuard<'static, ()>>,
}

/// A process that ends with the test.
pub struct Daemon(Child);

impl Daemon {
    /// Starts it, and waits until its socket is there.
    fn start(line: &str, socket: &str, log: &str) -> Self {
        let log = fs::File::create(log).unwrap();
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let daemon = Self(child.unwrap());
        wait_until("its socket", || fs::exists(socket).unwrap());
        daemon
    }

    /// As no daemon expects it.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// Held by who has a dockerd, and by who must not have one beside him.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// containerd with directories of the test's own, and its socket.
pub fn containerd(runtime: &Runtime) -> (Daemon, String) {
    let path = |name: &str| runtime.path(name);
    let socket = path("containerd.sock");
    // Of one that was killed.
    let _ = fs::remove_file(&socket);
    let line = format!(
        "containerd --root {} --state {} --address {socket} --log-level warn",
        path("cd-root"),
        path("cd-state")
    );
    let daemon = Daemon::start(&line, &socket, &path("containerd.log"));
    (daemon, socket)
}

/// Docker's, with directories of the test's own.
pub fn dockerd(runtime: &Runtime, containerd_socket: &str) -> Daemon {
    let path = |name: &str| runtime.path(name);
    let (config, socket) = (path("daemon.json"), path("docker.sock"));
    let json = serde_json::json!({"runtimes": {"cofferdam": {"path": runtime.program}}});
    fs::write(&config, json.to_string()).unwrap();
    // Of one that was killed.
    let _ = fs::remove_file(&socket);
    let line = format!(
        "dockerd --config-file {config} --data-root {} --exec-root {} --pidfile {} -s vfs \
         -H unix://{socket} --containerd {containerd_socket}",
        path("root"),
        path("exec"),
        path("docker.pid")
    );
    Daemon::start(&line, &socket, &path("docker.log"))
}

/// A disk in compressed memory, mounted: there, zeros take no room. A file in the lab's memory itself would
/// be the container's by its cgroup, and could not be written back.
struct Disk {
    device: String,
    path: String,
}

impl Disk {
    fn new(path: String) -> Self {
        let device = host("modprobe zram && zramctl --find --size 1500M");
        let device = device.trim().to_owned();
        host(&format!(
            "mkfs.ext4 -q {device}; mkdir {path}; mount {device} {path}"
        ));
        Self { device, path }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let Self { device, path } = self;
        host(&format!("umount {path}; zramctl --reset {device}"));
    }
}

impl Engine {
    /// Podman with directories of its own.
    pub fn podman(name: &str) -> Self {
        Self::podman_of(Runtime::new(name), "", "cgroupfs")
    }

    /// Podman with a manager of cgroups, behind a command that runs it somewhere.
    pub fn podman_of(runtime: Runtime, before: &str, manager: &str) -> Self {
        let line = format!(
            "{before} podman --root {} --runroot {} --storage-driver vfs --cgroup-manager {manager} \
             --events-backend file --runtime {}",
            runtime.path("root"),
            runtime.path("runroot"),
            runtime.program
        );
        let engine = Self {
            program: line.split_whitespace().map(str::to_owned).collect(),
            runtime,
            run: "",
            daemons: Vec::new(),
            _alone: None,
        };
        engine.import();
        engine
    }

    /// Docker, with a containerd of the test's own.
    pub fn docker(runtime: Runtime, containerd_socket: &str, containerd: Daemon) -> Self {
        let alone = alone();
        let dockerd = dockerd(&runtime, containerd_socket);
        let socket = format!("unix://{}", runtime.path("docker.sock"));
        let engine = Self {
            program: vec!["docker".into(), "-H".into(), socket],
            run: "--runtime cofferdam",
            runtime,
            daemons: vec![dockerd, containerd],
            _alone: Some(alone),
        };
        wait_until("Docker", || engine.run("version").status.success());
        engine.import();
        engine
    }

    fn import(&self) {
        self.text(&format!("import {} box", self.runtime.path("box.tar")));
    }

    /// A command of its client, split at spaces.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program[0]);
        let line = line.replacen("run ", &format!("run {} ", self.run), 1);
        command
            .args(&self.program[1..])
            .args(line.split_whitespace());
        command.stdin(Stdio::null());
        command
    }

    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    pub fn shell(&self, line: &str, script: &str) -> Output {
        self.command(line)
            .args(["sh", "-c", script])
            .output()
            .unwrap()
    }

    #[track_caller]
    pub fn text(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// If a container's kernel is the host's, or its streams and exit code are lost, this fails.
    #[track_caller]
    pub fn runs(&self) {
        let end = self.shell(
            "run --rm --network none box",
            "uname -r; echo err >&2; exit 3",
        );
        assert_eq!(code(&end), 3, "{end:?}");
        let release = String::from_utf8_lossy(&end.stdout);
        assert!(release.contains("cofferdam"), "{release}");
        assert_eq!(String::from_utf8_lossy(&end.stderr).trim(), "err");
        assert_eq!(code(&self.run("run --rm --network none box nothing")), 127);
        assert_eq!(
            code(&self.run("run --rm --network none box /www/index.html")),
            126
        );
    }

    /// What is done with a container that runs, `box1`: entered, watched, stopped.
    #[track_caller]
    pub fn manages(&self) {
        let script = "echo first; trap 'exit 7' TERM; while :; do sleep 0.1; done";
        let end = self.shell("run -d --name box1 --network none -m 64m box", script);
        assert!(end.status.success(), "{end:?}");
        wait_until("its output", || self.text("logs box1") == "first");
        assert_eq!(code(&self.shell("exec box1", "exit 5")), 5);
        let mut cat = self.command("exec -i box1 cat");
        let page = fs::File::open(self.runtime.path("rootfs/www/index.html")).unwrap();
        assert_eq!(cat.stdin(page).output().unwrap().stdout, b"page\n");
        let (source, back) = (self.runtime.path("to-copy"), self.runtime.path("back"));
        fs::write(&source, "copied").unwrap();
        self.text(&format!("cp {source} box1:/root/in"));
        assert_eq!(self.text("exec box1 cat /root/in"), "copied");
        self.text(&format!("cp box1:/root/in {back}"));
        assert_eq!(fs::read_to_string(back).unwrap(), "copied");
        assert!(!fs::exists("/root/in").unwrap());
        // The guest's processes, and none of the host's.
        for line in ["top box1", "top box1 -ef"] {
            let top = self.text(line);
            assert!(top.contains("trap 'exit 7' TERM"), "{line}: {top}");
            assert!(!top.contains("shim"), "{line}: {top}");
        }
        let stats = self.text("stats --no-stream box1");
        assert!(stats.contains('%'), "{stats}");
        self.text("pause box1");
        self.text("unpause box1");
        self.text("stop -t 30 box1");
        assert_eq!(self.text("inspect -f {{.State.ExitCode}} box1"), "7");
        self.text("start box1");
        self.text("kill box1");
        wait_until("its end", || {
            self.text("inspect -f {{.State.ExitCode}} box1") == "137"
        });
        self.text("rm box1");
    }

    /// Leaves a container running; the engine's own exit code says that it was left.
    #[track_caller]
    fn leave(mut client: Vm) {
        // One key at a time, as a person types: Podman knows them only so.
        for key in ["\x10", "\x11"] {
            client.type_text(key);
            sleep(Duration::from_millis(200));
        }
        assert!(client.end().code.is_some(), "it is not left");
    }

    /// A container's terminal is left and come back to, again and again.
    #[track_caller]
    fn detaches(&self) {
        self.text("run -dit --name tty --network none box sh");
        for round in 0..3 {
            let mut client = attach::client(self.command("attach tty"));
            calculates(&mut client, 10, round);
            Self::leave(client);
        }
        let mut client = attach::client(self.command("exec -it tty sh"));
        calculates(&mut client, 20, 1);
        Self::leave(client);
        assert_eq!(code(&self.shell("exec tty", "exit 5")), 5);
        let mut client = attach::client(self.command("attach tty"));
        calculates(&mut client, 30, 1);
        client.type_text("exit 6\r");
        // Which code a client ends with is up to the engine.
        client.end();
        wait_until("its end", || {
            self.text("inspect -f {{.State.ExitCode}} tty") == "6"
        });
        self.text("rm tty");
    }

    /// A page comes through a published port of the host's.
    #[track_caller]
    fn publishes(&self, port: u16) {
        self.text(&format!(
            "run -d --name web -p {port}:80 box httpd -f -h /www"
        ));
        wait_until("the page", || {
            host(&format!(
                "curl -s --max-time 5 http://127.0.0.1:{port}/ || :"
            )) == "page\n"
        });
        self.text("rm -f web");
    }
}

/// If it fails, Podman's commands do not do with a VM what they do with a container.
#[test]
fn podman_runs_and_manages() {
    let podman = Engine::podman("podman");
    podman.runs();
    podman.manages();
    podman.detaches();
    let tty = "run --rm -t --network none box";
    let end = podman.shell(tty, "test -t 0 && stty size && exit 4");
    assert_eq!(code(&end), 4, "{end:?}");
    podman.runtime.nothing_is_left();
}

/// If it fails, a container with a user namespace does not run, cannot serve at port 80, or its files
/// have other owners than a plain container's.
#[test]
fn podman_maps_users() {
    let podman = Engine::podman("podman-users");
    let volume = podman.runtime.path("mapped");
    host(&format!("mkdir {volume}; chown 100000:200000 {volume}"));
    let map = "--uidmap 0:100000:5000 --gidmap 0:200000:5000";
    let run = format!("run --rm --network none {map} -v {volume}:/v box");
    let script =
        "id -u; ls -ln / | grep -c ' 0 .* 0 '; ls -d /sys/class/net/lo; touch /v/root /v/other
        chown 7:8 /v/other; ls -ln /v; httpd -h /www && wget -qO- http://127.0.0.1/";
    let end = podman.shell(&run, script);
    assert!(end.status.success(), "{end:?}");
    let said = String::from_utf8_lossy(&end.stdout);
    assert!(
        said.starts_with("0\n") && said.ends_with("\npage\n"),
        "{said}"
    );
    assert!(said.contains(" 7        8 "), "{said}");
    let owners = host(&format!("cd {volume}; stat -c %u:%g root other"));
    assert_eq!(owners, "100000:200000\n100007:200008\n");
    podman.text(&format!(
        "run -d --name box1 --network none {map} box sleep 1000"
    ));
    let end = podman.shell("exec -u 5:6 box1", "id -u; cat /proc/self/uid_map");
    let said = String::from_utf8_lossy(&end.stdout);
    assert!(
        said.starts_with("5\n") && said.contains("100000       5000"),
        "{end:?}"
    );
    podman.text("rm -f -t 0 box1");
    // Its network comes when it is made already.
    podman.text(&format!(
        "run -d --name web {map} -p 18082:80 box httpd -f -h /www"
    ));
    wait_until("the page", || {
        host("curl -s --max-time 5 http://127.0.0.1:18082/ || :") == "page\n"
    });
    let mac =
        podman.text("inspect -f {{range.NetworkSettings.Networks}}{{.MacAddress}}{{end}} web");
    assert!(
        podman.text("exec web ip addr show eth0").contains(&mac),
        "{mac}"
    );
    podman.text("rm -f -t 0 web");
    podman.runtime.nothing_is_left();
}

/// If it fails, nobody reaches a server in Podman's container, or what is written to a volume is lost.
#[test]
fn podman_publishes_and_keeps_volumes() {
    let _alone = big();
    let podman = Engine::podman("podman-net");
    podman.publishes(18080);
    let disk = Disk::new(podman.runtime.path("volume"));
    let volume = &disk.path;
    let run = format!("run --rm --network none -v {volume}:/v box");
    let script = "dd if=/dev/zero of=/v/big bs=1M count=1024 && echo end >>/v/big";
    let end = podman.shell(&run, script);
    assert!(end.status.success(), "{end:?}");
    let sums = host(&format!(
        "(head -c 1073741824 /dev/zero; echo end) | md5sum; md5sum <{volume}/big"
    ));
    let sums: Vec<&str> = sums.lines().collect();
    assert_eq!(sums[0], sums[1]);
    podman.runtime.nothing_is_left();
}

/// If it fails, containerd's shim for runc does not take our runtime, or Docker does not.
#[test]
fn containerd_and_docker_run_and_manage() {
    let runtime = Runtime::new("docker");
    let (containerd, socket) = containerd(&runtime);
    let engine = Engine::docker(runtime, &socket, containerd);
    engine.runs();
    engine.manages();
    engine.detaches();
    engine.publishes(18081);
    // The guest's memory is in the cgroup that Docker reads: tens of MiB, in which 1.5 is not.
    engine.text("run -d --name box1 --network none box sleep 1000");
    let used = engine.text("stats --no-stream --format {{.MemUsage}} box1");
    let mib = used
        .split_once("MiB /")
        .and_then(|(mib, _)| mib.parse::<f64>().ok());
    assert!(mib.is_some_and(|mib| mib > 16.0), "{used}");
    engine.text("rm -f box1");

    let image = engine.runtime.path("image.tar");
    engine.text(&format!("save -o {image} box"));
    let ctr = format!("ctr -a {socket}");
    host(&format!("{ctr} image import --snapshotter native {image}"));
    let run = format!(
        "--snapshotter native --runc-binary {}",
        engine.runtime.program
    );
    let name = "docker.io/library/box:latest";
    let said = host(&format!(
        "code=0; {ctr} run --rm {run} {name} one sh -c 'uname -r; exit 4' || code=$?; echo $code"
    ));
    assert!(
        said.contains("cofferdam") && said.ends_with("4\n"),
        "{said}"
    );
    host(&format!("{ctr} run -d {run} {name} two sleep 1000"));
    let said = host(&format!("{ctr} task exec --exec-id more two echo in exec"));
    assert_eq!(said, "in exec\n");
    host(&format!("{ctr} task kill -s KILL two"));
    wait_until("its end", || {
        host(&format!("{ctr} task ls")).contains("STOPPED")
    });
    host(&format!("{ctr} task rm two || :; {ctr} container rm two"));
    gets_a_network_late(&engine.runtime, &ctr, &format!("{run} {name}"));
    engine.runtime.nothing_is_left();
}

/// With CNI's plugins containerd's client connects a container that is made already.
fn gets_a_network_late(runtime: &Runtime, ctr: &str, image: &str) {
    let config = serde_json::json!({"cniVersion": "0.4.0", "name": "cofferdam-late", "plugins": [
        {"type": "bridge", "bridge": "late0", "isGateway": true, "ipam": {"type": "host-local",
         "subnet": "10.79.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]});
    let dir = runtime.path("cni");
    fs::create_dir(&dir).unwrap();
    fs::write(format!("{dir}/10-late.conflist"), config.to_string()).unwrap();
    host(&format!(
        "mkdir -p /opt/cni/bin /etc/cni/net.d; unshare -m sh -ec '
         mount --bind /usr/lib/cni /opt/cni/bin; mount --bind {dir} /etc/cni/net.d
         {ctr} run -d --cni {image} late httpd -f -h /www'"
    ));
    let said = host(&format!(
        "{ctr} task exec --exec-id look late sh -c 'ip address; ip route'"
    ));
    for part in ["eth0", "10.79.0.2/24", "default via 10.79.0.1"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    wait_until("the page", || {
        host("curl -s --max-time 5 http://10.79.0.2/ || :") == "page\n"
    });
    host(&format!(
        "{ctr} task kill -s KILL late; sleep 1; {ctr} task rm late || :; {ctr} container rm late
         ip link del late0; rm -r /var/lib/cni/networks/cofferdam-late"
    ));
}
