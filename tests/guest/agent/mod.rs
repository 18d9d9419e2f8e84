//! The agent, driven by its protocol's client as a container's shim does it.

mod files;
mod life;
mod setup;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use cofferdam_agent_protocol::api::{
    self, ContainerRequest, CopyRequest, CreateRequest, Empty, Event, ExecRequest,
    NextEventRequest, PoweroffRequest, ProcessRequest, ResizeRequest, SignalRequest, Size, Streams,
    UpdateRequest, WaitResponse,
};
use cofferdam_agent_protocol::stream::Name;
use cofferdam_agent_protocol::{CONTROL_PORT, Client, ClientError, STORAGE, STREAM_PORT};
use serde_json::{Value, json};

use crate::harness::{TempDir, Vm, guest_file, host, patience};

/// A VM with the agent, and the images of a container.
struct Guest {
    client: Client,
    hello: api::HelloResponse,
    vm: Mutex<Vm>,
    socket: PathBuf,
    _dir: TempDir,
}

impl Guest {
    /// `name` is that of no other test.
    fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    fn start_with(name: &str, args: &[&str]) -> Self {
        let dir = TempDir::new(&format!("agent-{name}"));
        let socket = dir.join("vsock");
        let vsock = format!("cid=3,uds={}", socket.display());
        let image = format!("file={},ro", guest_file("rootfs.erofs").display());
        let root = format!("{},pmem,ro", guest_file("agent.erofs").display());
        let mut all = vec!["--rootfs", &root, "--pmem", &image, "--vsock", &vsock];
        all.extend(args);
        let vm = Vm::start(&all);
        let until = Instant::now() + patience();
        let (client, hello) = Client::connect_until(&socket, until, || true).unwrap();
        Self {
            client,
            hello,
            vm: Mutex::new(vm),
            socket,
            _dir: dir,
        }
    }

    /// A container whose root is the busybox image under a tmpfs, with all three streams or a
    /// terminal, up to where it can be started.
    fn create(&self, id: &str, spec: &Value) -> Result<Process<'_>, ClientError> {
        self.create_on(id, spec, rootfs(), Vec::new())
    }

    /// As [`Guest::create`], with another root and with storages.
    fn create_on(
        &self,
        id: &str,
        spec: &Value,
        rootfs: api::Rootfs,
        storages: Vec<api::Storage>,
    ) -> Result<Process<'_>, ClientError> {
        let process = self.process(id, "", spec["process"]["terminal"] == true);
        let mut request = CreateRequest::new();
        request.id = id.to_owned();
        request.spec = spec.to_string().into_bytes();
        request.streams = Some(process.announced.clone()).into();
        request.rootfs = Some(rootfs).into();
        request.storages = storages;
        request.size = Some(size(30, 90)).into();
        self.client.create(request)?;
        Ok(process)
    }

    /// Makes and starts one.
    fn run(&self, id: &str, spec: &Value) -> Process<'_> {
        let process = self.create(id, spec).unwrap();
        self.start_it(id).unwrap();
        process
    }

    fn start_it(&self, id: &str) -> Result<Empty, ClientError> {
        let mut request = ContainerRequest::new();
        request.id = id.to_owned();
        self.client.start(request)
    }

    /// One more process.
    fn exec(&self, id: &str, exec: &str, process: &Value) -> Result<Process<'_>, ClientError> {
        let streams = self.process(id, exec, process["terminal"] == true);
        let mut request = ExecRequest::new();
        request.id = id.to_owned();
        request.exec = exec.to_owned();
        request.process = process.to_string().into_bytes();
        request.streams = Some(streams.announced.clone()).into();
        self.client.exec(request)?;
        Ok(streams)
    }

    /// The streams of a process that is to be.
    fn process(&self, id: &str, exec: &str, terminal: bool) -> Process<'_> {
        let mut announced = Streams::new();
        announced.token = format!("{id}/{exec}");
        (announced.stdin, announced.stdout, announced.stderr) = (true, true, !terminal);
        let stream = |name| self.client.stream(name, &announced.token).unwrap();
        Process {
            guest: self,
            id: id.to_owned(),
            exec: exec.to_owned(),
            stdin: stream(Name::Stdin),
            stdout: stream(Name::Stdout),
            stderr: (!terminal).then(|| stream(Name::Stderr)),
            announced,
        }
    }

    fn signal(&self, id: &str, signal: i32, all: bool) -> Result<Empty, ClientError> {
        let mut request = SignalRequest::new();
        request.id = id.to_owned();
        request.signal = signal.unsigned_abs();
        request.all = all;
        self.client.signal(request)
    }

    fn delete(&self, id: &str) -> Result<Empty, ClientError> {
        let mut request = ProcessRequest::new();
        request.id = id.to_owned();
        self.client.delete(request)
    }

    fn event(&self, after: u64) -> Event {
        let mut request = NextEventRequest::new();
        request.after = after;
        self.client.next_event(request).unwrap()
    }

    /// Runs a shell script in a container of its own, which it then deletes; gives its output.
    fn script(&self, id: &str, mut spec: Value, script: &str) -> String {
        spec["process"]["args"] = json!(["sh", "-c", script]);
        let mut process = self.run(id, &spec);
        let output = process.output();
        assert_eq!(process.wait().exit_code, 0, "{output}");
        self.delete(id).unwrap();
        output
    }

    /// The end of it all.
    fn power_off(self) {
        let mut request = PoweroffRequest::new();
        request.grace_ms = 2000;
        // The machine may be gone before the answer.
        let _ = self.client.poweroff(request);
        self.vm.into_inner().unwrap().end().expect(0);
    }
}

/// A process in a guest, and the host's ends of its streams.
struct Process<'a> {
    guest: &'a Guest,
    id: String,
    exec: String,
    stdin: UnixStream,
    stdout: UnixStream,
    stderr: Option<UnixStream>,
    announced: Streams,
}

impl Process<'_> {
    fn name(&self) -> ProcessRequest {
        let mut request = ProcessRequest::new();
        request.id = self.id.clone();
        request.exec = self.exec.clone();
        request
    }

    fn wait(&self) -> WaitResponse {
        self.guest.client.wait(self.name()).unwrap()
    }

    /// All that it prints until its end, on standard error too.
    fn output(&mut self) -> String {
        let mut bytes = Vec::new();
        self.stdout.read_to_end(&mut bytes).unwrap();
        if let Some(stderr) = &mut self.stderr {
            stderr.read_to_end(&mut bytes).unwrap();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads what it prints up to `text`.
    fn read_until(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        let mut byte = [0];
        while !all.ends_with(text.as_bytes()) {
            let count = self.stdout.read(&mut byte).unwrap();
            let found = String::from_utf8_lossy(&all);
            assert!(count == 1, "no {text:?} before the end: {found}");
            all.extend(byte);
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}

fn rootfs() -> api::Rootfs {
    let mut overlay = api::Overlay::new();
    overlay.lower.push("/dev/pmem1".to_owned());
    overlay.upper = Some(api::overlay::Upper::Tmpfs(api::Tmpfs::new()));
    let mut rootfs = api::Rootfs::new();
    rootfs.kind = Some(api::rootfs::Kind::Overlay(overlay));
    rootfs
}

fn size(rows: u32, columns: u32) -> Size {
    let mut size = Size::new();
    (size.rows, size.columns) = (rows, columns);
    size
}

/// What Docker gives containers.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

fn process(args: &[&str]) -> Value {
    json!({
        "args": args,
        "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "capabilities": {
            "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
        },
    })
}

/// A configuration as engines write it.
fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                           {"type": "cgroup"}, {"type": "network"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/nothing"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        },
    })
}
