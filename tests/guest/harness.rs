//! A monitor in a test: started, watched through its console, ended.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

/// How long a guest may take for anything; far more than it needs, since the lab is slow.
pub fn patience() -> Duration {
    let seconds = env::var("COFFERDAM_TEST_PATIENCE").ok();
    Duration::from_secs(seconds.map_or(240, |seconds| seconds.parse().unwrap()))
}

/// The program under test.
pub fn program() -> &'static str {
    static PATH: LazyLock<PathBuf> =
        LazyLock::new(|| without_blanks(Path::new(env!("CARGO_BIN_EXE_cofferdam"))));
    PATH.to_str().unwrap()
}

/// A path to a file that has no blanks, whatever the checkout's has: tests put it into lines that are
/// split at them.
fn without_blanks(file: &Path) -> PathBuf {
    let (directory, name) = (file.parent().unwrap(), file.file_name().unwrap());
    if !directory.to_str().unwrap().contains(char::is_whitespace) {
        return file.to_owned();
    }
    static LINKS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let mut links = LINKS.lock().unwrap_or_else(PoisonError::into_inner);
    let number = links.iter().position(|known| known == directory);
    let number = number.unwrap_or_else(|| {
        links.push(directory.to_owned());
        links.len() - 1
    });
    let link = env::temp_dir().join(format!("cofferdam-link-{}-{number}", std::process::id()));
    if !link.is_symlink() {
        symlink(directory, &link).unwrap();
    }
    link.join(name)
}

/// A file that `make guest` built: the kernel, an image, an initrd.
pub fn guest_file(name: &str) -> PathBuf {
    let dir = env::var_os("COFFERDAM_TEST_GUEST").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("target/x86_64-unknown-linux-gnu/share/cofferdam")
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is not there; run `make test`",
        path.display()
    );
    without_blanks(&path)
}

/// A directory of the test's own, gone at its end.
pub struct TempDir(PathBuf);

impl TempDir {
    /// `name` is that of no other test.
    pub fn new(name: &str) -> Self {
        Self::within(&env::temp_dir(), name)
    }

    /// As [`TempDir::new`], in a directory of the test's choice.
    pub fn within(parent: &Path, name: &str) -> Self {
        let path = parent.join(format!("cofferdam-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How a VM ended, and all it said.
#[derive(Debug)]
pub struct End {
    /// The exit code; `None` if a signal ended the monitor.
    pub code: Option<i32>,
    /// All of the console.
    pub console: String,
    /// All of standard error: the log.
    pub log: String,
}

impl End {
    /// Fails the test unless the monitor ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "log:\n{}\nconsole:\n{}",
            self.log,
            self.console
        );
        self
    }
}

/// A running monitor. Killed when dropped.
pub struct Vm {
    child: Child,
    /// What its standard input is the other end of. Dropped, that is at its end.
    pub input: Option<File>,
    console: Stream,
    log: Stream,
}

/// What comes out of a pipe, read by a thread of its own.
struct Stream {
    pieces: Receiver<Vec<u8>>,
    text: Vec<u8>,
    /// Where that ends which was waited for last.
    seen: usize,
}

impl Stream {
    fn new(mut pipe: impl Read + Send + 'static) -> Self {
        let (sender, pieces) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            pieces,
            text: Vec::new(),
            seen: 0,
        }
    }

    /// Waits until `text` has appeared after what was waited for before.
    fn wait_for(&mut self, text: &str) -> Result<(), &'static str> {
        let until = Instant::now() + patience();
        loop {
            let new = &self.text[self.seen..];
            let at = new
                .windows(text.len())
                .position(|part| part == text.as_bytes());
            if let Some(at) = at {
                self.seen += at + text.len();
                return Ok(());
            }
            match self
                .pieces
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            {
                Ok(piece) => self.text.extend(piece),
                Err(RecvTimeoutError::Timeout) => return Err("in time"),
                Err(RecvTimeoutError::Disconnected) => return Err("before the end"),
            }
        }
    }

    fn all(mut self) -> String {
        self.text.extend(self.pieces.iter().flatten());
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

impl Vm {
    /// Starts `cofferdam boot` with `args`.
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.arg("boot").args(args);
        Self::spawn(command)
    }

    /// Starts a command that is a monitor, or becomes one, between pipes.
    pub fn spawn(mut command: Command) -> Self {
        let (input, ours) = io::pipe().unwrap();
        let (console, output) = io::pipe().unwrap();
        command.stdin(input).stdout(output);
        Self::spawn_between(command, OwnedFd::from(ours).into(), console)
    }

    /// Starts a command whose standard input and output are given; these are their other ends.
    pub fn spawn_between(
        mut command: Command,
        input: File,
        console: impl Read + Send + 'static,
    ) -> Self {
        command
            .stderr(Stdio::piped())
            .env("COFFERDAM_GUEST", guest_file("vmlinux").parent().unwrap());
        let mut child = command.spawn().unwrap();
        let log = Stream::new(child.stderr.take().unwrap());
        Self {
            child,
            input: Some(input),
            console: Stream::new(console),
            log,
        }
    }

    /// Starts the default guest with `args`, split at spaces, and runs `script` in its shell.
    pub fn script(dir: &TempDir, args: &str, script: &str) -> Self {
        let mut command = Command::new(program());
        command
            .arg("boot")
            .args(script_args(dir, args, "sh", script));
        Self::spawn(command)
    }

    /// As [`Vm::script`], on Debian.
    pub fn debian(dir: &TempDir, args: &str, script: &str) -> Self {
        let rootfs = format!("--rootfs {},ro {args}", guest_file("debian.ext4").display());
        let mut command = Command::new(program());
        command
            .arg("boot")
            .args(script_args(dir, &rootfs, "bash", script));
        Self::spawn(command)
    }

    /// The monitor's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `text` on the console, after what was waited for before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        if let Err(why) = self.console.wait_for(text) {
            let _ = self.child.kill();
            let log = std::mem::replace(&mut self.log, Stream::new(std::io::empty())).all();
            panic!(
                "{text:?} did not appear {why}; log:\n{log}\nconsole:\n{}",
                String::from_utf8_lossy(&self.console.text)
            );
        }
    }

    /// Waits for `text` in the log, after what was waited for before.
    #[track_caller]
    pub fn wait_for_log(&mut self, text: &str) {
        if let Err(why) = self.log.wait_for(text) {
            panic!(
                "{text:?} did not appear {why}; log:\n{}\nconsole:\n{}",
                String::from_utf8_lossy(&self.log.text),
                String::from_utf8_lossy(&self.console.text)
            );
        }
    }

    /// The console up to what was waited for.
    pub fn console_so_far(&self) -> String {
        String::from_utf8_lossy(&self.console.text[..self.console.seen]).into_owned()
    }

    /// The log up to what was waited for.
    pub fn log_so_far(&self) -> String {
        String::from_utf8_lossy(&self.log.text[..self.log.seen]).into_owned()
    }

    /// Types `text` on the console.
    pub fn type_text(&mut self, text: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(text.as_bytes()).unwrap();
    }

    /// Sends a signal to the monitor.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the child is ours and not waited for yet, so the number is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Waits for the monitor's end.
    #[track_caller]
    pub fn end(self) -> End {
        self.end_within(patience())
    }

    /// Waits for the end of a monitor, or of a succession of them, that may take longer.
    #[track_caller]
    pub fn end_within(mut self, patience: Duration) -> End {
        let until = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() > until {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break None;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let take =
            |stream: &mut Stream| std::mem::replace(stream, Stream::new(std::io::empty())).all();
        let (console, log) = (take(&mut self.console), take(&mut self.log));
        assert!(
            status.is_some(),
            "no end in time; log:\n{log}\nconsole:\n{console}"
        );
        End {
            code: status.and_then(|status| status.code()),
            console,
            log,
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // Of a VM that a test was not done with: what it said may tell why.
            let [log, console] = [&mut self.log, &mut self.console]
                .map(|stream| std::mem::replace(stream, Stream::new(std::io::empty())).all());
            eprintln!("log:\n{log}\nconsole:\n{console}");
        }
    }
}

/// The options for a guest that runs `script` in a shell of this name.
///
/// The script is the disk /dev/vdb; disks among the `args`, which are split at spaces, come after
/// it. Debian's `sh` is busybox where busybox starts it, and has few of Debian's own tools.
pub fn script_args(dir: &TempDir, args: &str, shell: &str, script: &str) -> Vec<String> {
    let disk = format!("path={},ro", script_disk(dir, script).display());
    let mut all = vec!["--disk", &disk];
    all.extend(args.split_whitespace());
    let command = format!("quiet -- {shell} /dev/vdb");
    all.extend(["--cmdline", &command]);
    all.into_iter().map(str::to_owned).collect()
}

/// A disk that is a script: filled up with newlines to whole sectors, it can be run from the device.
pub fn script_disk(dir: &TempDir, script: &str) -> PathBuf {
    let path = dir.join("script");
    let mut text = script.as_bytes().to_vec();
    text.push(b'\n');
    text.resize(text.len().next_multiple_of(512), b'\n');
    fs::write(&path, text).unwrap();
    path
}

/// Runs a command of the host to its end and returns its output.
#[track_caller]
pub fn host(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}:\n{text}{errors}");
    text
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + patience();
    while !condition() {
        assert!(Instant::now() < until, "{what}: not in time");
        thread::sleep(Duration::from_millis(50));
    }
}
