//! The program, run in a test, and guests of a few instructions for it.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take; far more than it needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_cofferdam");

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Fails the test unless the program ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Fails the test unless this is a refusal as it should be: `code`, nothing on standard output,
    /// one or two lines on standard error that have all of `parts`.
    #[track_caller]
    pub fn refused(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!((1..=2).contains(&self.stderr.lines().count()), "{self:?}");
        assert!(self.stderr.starts_with("cofferdam: "), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in {self:?}");
        }
    }
}

/// The program, which finds no default guest here.
pub fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env("COFFERDAM_GUEST", "/nonexistent");
    command
}

/// Runs the program to its end, with nothing to read.
pub fn run(args: &[&str]) -> Run {
    finish(start(program().args(args)))
}

/// Runs `cofferdam boot` with `args`, split at spaces, on a kernel that is all right.
pub fn boot(dir: &Dir, kernel: &str, args: &str) -> Running {
    let kernel = dir.join(kernel);
    let mut command = program();
    command.args(["boot", "--memory", "32M", "--kernel"]);
    start(command.arg(kernel).args(args.split_whitespace()))
}

/// A process that does not outlive its test.
pub struct Running(Child);

impl Running {
    /// Starts a command whose messages are kept.
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.stderr(Stdio::piped()).spawn().unwrap())
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Nobody reads what it prints.
    pub fn close_stdout(&mut self) {
        drop(self.0.stdout.take());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a command whose output and messages are kept, with nothing to read.
pub fn start(command: &mut Command) -> Running {
    Running::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))
}

/// Waits for the end, which must come in time.
#[track_caller]
pub fn finish(mut running: Running) -> Run {
    // More than a pipe holds must not keep it from its end.
    let stdout = running.0.stdout.take();
    let stdout = thread::spawn(move || text(stdout));
    let stderr = running.0.stderr.take();
    let stderr = thread::spawn(move || text(stderr));
    let is_over = eventually(|| running.0.try_wait().unwrap().is_some());
    if !is_over {
        running.0.kill().unwrap();
    }
    let code = running.0.wait().unwrap().code();
    let run = Run {
        code,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    };
    assert!(is_over, "no end in time: {run:?}");
    run
}

/// All that is left in a pipe.
fn text(pipe: Option<impl Read>) -> String {
    let mut text = String::new();
    pipe.map(|mut pipe| pipe.read_to_string(&mut text).unwrap());
    text
}

/// Sends a signal to a process that has not been waited for.
pub fn signal(running: &Running, signal: i32) {
    let pid = i32::try_from(running.id()).unwrap();
    // SAFETY: a system call without memory; the child is ours and not waited for, so the number is
    // still its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Whether `condition` comes true in time.
pub fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Says that a test is left out, and why.
pub fn skip(why: &str) {
    eprintln!("left out: {why}");
}

/// Whether VMs can be made here, if only ones that cannot run Linux.
pub fn has_kvm() -> bool {
    let has = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if !has {
        skip("no /dev/kvm for us");
    }
    has
}

/// Whether we are root.
pub fn is_root() -> bool {
    let is = rustix::process::geteuid().is_root();
    if !is {
        skip("takes root");
    }
    is
}

/// A directory of the test's own, with kernels in it, gone at its end.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cofferdam-cli-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        let dir = Self(path);
        dir.write("off", &kernel(&[out(0x600, 0x34), HALT.to_vec()].concat()));
        dir.write("halt", &kernel(HALT));
        dir
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The path of a file in it, as an argument has it.
    pub fn path(&self, name: &str) -> String {
        self.join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, contents: &[u8]) -> String {
        fs::write(self.join(name), contents).unwrap();
        self.path(name)
    }

    /// The names in it.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `hlt` for ever.
pub const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];

/// `mov dx, port; mov al, value; out dx, al`.
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Where [`kernel`] puts the code.
const ENTRY: u64 = 16 << 20;

/// A kernel: an ELF file for x86-64 with one segment, which is `code`, entered at its start.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    kernel_of(62, code, code.len() as u64)
}

/// The same for another machine, or with more memory than there is in the file.
pub fn kernel_of(machine: u16, code: &[u8], memory: u64) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2, machine, 1, 0] {
        file.extend(u16::to_le_bytes(half));
    }
    for word in [ENTRY, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0; 4]);
    for half in [64, 56, 1, 0, 0, 0] {
        file.extend(u16::to_le_bytes(half));
    }
    // One segment to load, readable, writable, executable.
    file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [HEADERS, ENTRY, ENTRY, code.len() as u64, memory, 1] {
        file.extend(word.to_le_bytes());
    }
    assert_eq!(file.len() as u64, HEADERS);
    file.extend(code);
    file
}
