//! virtio-vsock between programs of a Debian guest (socat, python3) and of the host.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{TempDir, Vm, patience, wait_until};

/// Connections to and from the guest.
const MANY: u32 = 1000;

/// MiB that go each way through one connection. The lab moves few a second, so a GiB each way is for
/// a run by hand: `COFFERDAM_TEST_VSOCK_MIB=1024`.
fn bulk() -> usize {
    match std::env::var("COFFERDAM_TEST_VSOCK_MIB") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 32,
    }
}

fn start(dir: &TempDir, script: &str) -> (Vm, PathBuf) {
    let path = dir.join("v");
    let args = format!("--vsock cid=33,uds={}", path.display());
    (Vm::debian(dir, &args, script), path)
}

/// A connection to a port of the guest's, at which somebody will listen sooner or later.
fn connect(path: &Path, port: u32) -> UnixStream {
    let mut connection = None;
    wait_until("a connection", || {
        connection = try_to_connect(path, port).ok();
        connection.is_some()
    });
    connection.unwrap()
}

fn try_to_connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patience()))?;
    stream.set_write_timeout(Some(patience()))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = [0; "OK 1073741824\n".len()];
    stream.read_exact(&mut answer)?;
    assert!(answer.starts_with(b"OK ") && answer.ends_with(b"\n"));
    Ok(stream)
}

/// Where the guest's connections to `port` arrive.
fn listen(path: &Path, port: u32) -> UnixListener {
    UnixListener::bind(format!("{}_{port}", path.display())).unwrap()
}

fn round_trip(stream: &mut UnixStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

fn descriptors(vm: &Vm) -> usize {
    fs::read_dir(format!("/proc/{}/fd", vm.pid()))
        .unwrap()
        .count()
}

/// KiB of the monitor's own memory: all of its mappings but the guest's memory, which is by far the
/// largest.
fn own_memory(vm: &Vm) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", vm.pid())).unwrap();
    let number = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let (mut size, mut sum) = (0, 0);
    for line in maps.lines() {
        if line.starts_with("Size:") {
            size = number(line).unwrap();
        } else if line.starts_with("Rss:") && size < 64 << 10 {
            sum += number(line).unwrap();
        }
    }
    sum
}

/// If it fails, connections are refused or mixed up, leave descriptors of the monitor's behind, or
/// the socket stays when the VM is gone.
#[test]
fn a_thousand_connections_each_way() {
    let script = r#"
cat >/tmp/server <<'EOF'
import socket
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
s.bind((socket.VMADDR_CID_ANY, 1000))
s.listen(64)
print("serving", flush=True)
while True:
    c, peer = s.accept()
    assert peer[0] == 2, peer
    while data := c.recv(4096):
        c.sendall(data)
    c.close()
EOF
cat >/tmp/client <<'EOF'
import socket, sys
for i in range(int(sys.argv[1])):
    c = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    c.connect((2, 3000))
    text = b"%d from the guest" % i
    c.sendall(text)
    assert c.recv(100) == text
    c.close()
try:
    c = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    c.connect((2, 3999))
except ConnectionResetError:
    print("refused", flush=True)
EOF
python3 /tmp/server & server=$!
read many; python3 /tmp/client $many || exit 1
read line; kill $server; echo bye"#;
    let dir = TempDir::new("vsock");
    let (mut vm, path) = start(&dir, script);
    vm.wait_for("serving");
    round_trip(&mut connect(&path, 1000), b"warm");
    let before = descriptors(&vm);
    let time = Instant::now();
    for i in 0..MANY {
        let mut stream = connect(&path, 1000);
        round_trip(&mut stream, format!("{i} from the host").as_bytes());
    }
    println!("{MANY} connections to the guest: {:?}", time.elapsed());
    wait_until("descriptors as before", || descriptors(&vm) <= before);

    let listener = listen(&path, 3000);
    let server = thread::spawn(move || {
        for i in 0..MANY {
            let (mut stream, _) = listener.accept().unwrap();
            let expected = format!("{i} from the guest").into_bytes();
            let mut text = vec![0; expected.len()];
            stream.read_exact(&mut text).unwrap();
            assert_eq!(text, expected);
            stream.write_all(&text).unwrap();
        }
    });
    let time = Instant::now();
    vm.type_text(&format!("{MANY}\n"));
    server.join().unwrap();
    println!("{MANY} connections from the guest: {:?}", time.elapsed());
    vm.wait_for("refused");
    wait_until("descriptors as before", || descriptors(&vm) <= before);

    // Nobody listens at this port of the guest's.
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"CONNECT 1999\n").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);

    vm.type_text("\n");
    vm.wait_for("bye");
    vm.end().expect(0);
    assert!(!path.exists());
}

/// If it fails, data is changed or lost on its way, or a transfer stops when a buffer is full.
#[test]
fn bulk_data_arrives_each_way() {
    let script = r#"
read mib
echo "one $(socat -u -b 65536 VSOCK-LISTEN:2000 - | md5sum | cut -c 1-32)."
head -c 1M /dev/urandom >/tmp/data
for ((i = 0; i < mib; i++)); do cat /tmp/data; done | tee >(md5sum >/tmp/sum) |
    socat -u -b 65536 - VSOCK-CONNECT:2:3000
while [ ! -s /tmp/sum ]; do sleep 0.1; done
echo "two $(cut -c 1-32 /tmp/sum).""#;
    let dir = TempDir::new("vsockbulk");
    let (mut vm, path) = start(&dir, script);
    let listener = listen(&path, 3000);
    let mib = bulk();
    vm.type_text(&format!("{mib}\n"));

    let mut stream = connect(&path, 2000);
    let data: Vec<u8> = (0..1u32 << 18)
        .flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    let mut sum = Sum::new();
    let time = Instant::now();
    for _ in 0..mib {
        stream.write_all(&data).unwrap();
        sum.add(&data);
    }
    drop(stream);
    vm.wait_for(&format!("one {}.", sum.end()));
    println!("{mib} MiB to the guest: {:?}", time.elapsed());

    let (mut stream, _) = listener.accept().unwrap();
    let (mut sum, mut total) = (Sum::new(), 0);
    let mut buffer = vec![0; 1 << 18];
    let time = Instant::now();
    while let count @ 1.. = stream.read(&mut buffer).unwrap() {
        sum.add(&buffer[..count]);
        total += count;
    }
    println!("{mib} MiB from the guest: {:?}", time.elapsed());
    assert_eq!(total, mib << 20);
    vm.wait_for(&format!("two {}.", sum.end()));
    vm.end().expect(0);
}

/// A checksum that a process of its own makes.
struct Sum(std::process::Child);

impl Sum {
    fn new() -> Self {
        let mut command = Command::new("md5sum");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn add(&mut self, data: &[u8]) {
        self.0.stdin.as_mut().unwrap().write_all(data).unwrap();
    }

    fn end(self) -> String {
        let output = self.0.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()[..32].to_owned()
    }
}

/// If it fails, one program that does not read stops all others or fills the monitor's memory, or
/// one that dies leaves the program at the other end waiting.
#[test]
fn who_stalls_or_dies_harms_nobody_else() {
    let script = r#"
socat VSOCK-LISTEN:2002,fork,backlog=32 PIPE &
(cat /dev/zero | socat -u -b 65536 - VSOCK-CONNECT:2:3001; echo "first ended") &
read line
(cat /dev/zero | socat -u -b 65536 - VSOCK-CONNECT:2:3002; echo "second ended") &
read line
socat -u VSOCK-LISTEN:2003 OPEN:/dev/null & victim=$!
read line
kill -9 $victim; echo "third ended"
read line"#;
    let dir = TempDir::new("vsockstall");
    let path = dir.join("v");
    let listener = listen(&path, 3001);
    let (mut vm, path) = start(&dir, script);
    let (mut stalled, _) = listener.accept().unwrap();
    // Until nothing moves any more.
    let before = own_memory(&vm);
    thread::sleep(Duration::from_secs(2));
    let mut others: Vec<_> = (0..20).map(|_| connect(&path, 2002)).collect();
    for round in 0..5 {
        for (i, stream) in others.iter_mut().enumerate() {
            round_trip(stream, format!("{round} of {i}").as_bytes());
        }
    }
    let now = own_memory(&vm);
    assert!(now < before + 1024, "{before} KiB, then {now}");
    // It has only waited.
    stalled.read_exact(&mut vec![0; 4 << 20]).unwrap();
    drop(stalled);
    vm.wait_for("first ended");

    // A process that is killed in the middle.
    let socket = format!("{}_3002", path.display());
    let mut peer = Command::new("socat")
        .args(["-u", &format!("UNIX-LISTEN:{socket}"), "OPEN:/dev/null"])
        .spawn()
        .unwrap();
    wait_until("a listener", || Path::new(&socket).exists());
    vm.type_text("\n");
    thread::sleep(Duration::from_secs(2));
    peer.kill().unwrap();
    peer.wait().unwrap();
    vm.wait_for("second ended");

    vm.type_text("\n");
    let mut stream = connect(&path, 2003);
    stream.write_all(&vec![0; 4 << 20]).unwrap();
    let writer = thread::spawn(move || while stream.write_all(&[0; 4096]).is_ok() {});
    vm.type_text("\n");
    vm.wait_for("third ended");
    writer.join().unwrap();
    // The others never noticed.
    for stream in &mut others {
        round_trip(stream, b"still here");
    }
    vm.type_text("\n");
    vm.end().expect(0);
}
