//! A monitor in a test: started, watched through its console, ended.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

/// How long a guest may take for anything; far more than it needs, since the lab is slow.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_cofferdam");

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
        "{} is not there; run `make guest`",
        path.display()
    );
    path
}

/// A directory of the test's own, gone at its end.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("cofferdam-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

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
    pub stdin: Option<ChildStdin>,
    console: Stream,
    log: Stream,
}

/// What comes out of a pipe, read by a thread of its own.
struct Stream {
    pieces: Receiver<Vec<u8>>,
    text: Vec<u8>,
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
        }
    }

    /// Waits until `text` has appeared after the first `from` bytes; where it ends.
    fn wait_for(&mut self, text: &str, from: usize, until: Instant) -> Result<usize, &'static str> {
        loop {
            let said = self.text.get(from..).unwrap_or_default();
            if let Some(at) = said
                .windows(text.len())
                .position(|part| part == text.as_bytes())
            {
                return Ok(from + at + text.len());
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
    /// Starts `cofferdam boot` with `args`, split at spaces.
    pub fn start(args: &str) -> Self {
        let args: Vec<&str> = args.split_whitespace().collect();
        Self::start_args(&args)
    }

    /// Starts `cofferdam boot` with `args`.
    pub fn start_args(args: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.arg("boot").args(args);
        Self::spawn(command)
    }

    /// Starts a command that is a monitor, or ends as one.
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("COFFERDAM_GUEST", guest_file("vmlinux").parent().unwrap())
            .spawn()
            .unwrap();
        let console = Stream::new(child.stdout.take().unwrap());
        let log = Stream::new(child.stderr.take().unwrap());
        Self {
            stdin: child.stdin.take(),
            child,
            console,
            log,
        }
    }

    /// Starts the default guest with `args` and runs `command` in it, a script for its shell.
    pub fn script(dir: &TempDir, args: &str, command: &str) -> Self {
        let script = script_disk(dir, command);
        let (args, disk) = (args.to_owned(), format!("path={},ro", script.display()));
        let mut all: Vec<&str> = args.split_whitespace().collect();
        // The script is the second disk: /dev/vdb.
        all.extend(["--disk", &disk, "--cmdline", "quiet -- sh /dev/vdb"]);
        Self::start_args(&all)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for `text` on the console.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        if let Err(why) = self.console.wait_for(text, 0, Instant::now() + PATIENCE) {
            let _ = self.child.kill();
            let log = std::mem::replace(&mut self.log, Stream::new(std::io::empty())).all();
            panic!(
                "{text:?} did not appear {why}; log:\n{log}\nconsole:\n{}",
                String::from_utf8_lossy(&self.console.text)
            );
        }
    }

    /// Waits for `text` in the log.
    #[track_caller]
    pub fn wait_for_log(&mut self, text: &str) {
        if let Err(why) = self.log.wait_for(text, 0, Instant::now() + PATIENCE) {
            panic!(
                "{text:?} did not appear {why}:\n{}",
                String::from_utf8_lossy(&self.log.text)
            );
        }
    }

    /// Types `text` on the console.
    pub fn type_text(&mut self, text: &str) {
        self.stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Sends a signal to the monitor.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the child is ours and not waited for yet, so the number is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Waits for the monitor's end.
    #[track_caller]
    pub fn end(mut self) -> End {
        let until = Instant::now() + PATIENCE;
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
    }
}

/// A disk that is a script: padded with newlines to whole sectors, it can be run from the device.
pub fn script_disk(dir: &TempDir, script: &str) -> PathBuf {
    let path = dir.join("script");
    let mut text = script.as_bytes().to_vec();
    text.push(b'\n');
    text.resize(text.len().next_multiple_of(512), b'\n');
    fs::write(&path, text).unwrap();
    path
}
