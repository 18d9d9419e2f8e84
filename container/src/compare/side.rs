//! One way to run the image: containers with our probe in them, by the command that users type.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use cofferdam::text::visible;

use super::CompareError;
use crate::options::Runtime;
use crate::state::{Container, Containers};

/// How long anything may take; far more than it needs, for hosts are slow and guests hang.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long a neighbour may take to end.
const LAST: Duration = Duration::from_secs(30);
/// Where the probe is in a container.
const PROBE: &str = "/.cofferdam-probe";

/// A way to run the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// On the host's kernel.
    Process(Runtime),
    /// On one of its own.
    Vm,
}

impl Side {
    /// All there are.
    pub const ALL: [Self; 3] = [
        Self::Process(Runtime::Runc),
        Self::Process(Runtime::Crun),
        Self::Vm,
    ];

    /// In JSON.
    pub fn id(self) -> &'static str {
        match self {
            Self::Process(runtime) => runtime.program(),
            Self::Vm => "vm",
        }
    }

    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Process(Runtime::Runc) => "process (runc)",
            Self::Process(Runtime::Crun) => "process (crun)",
            Self::Vm => "VM (Cofferdam)",
        }
    }

    /// What `cofferdam run` is told.
    pub fn options(self) -> Vec<&'static str> {
        match self {
            Self::Process(runtime) => {
                vec!["--isolation", "process", "--runtime", runtime.program()]
            }
            Self::Vm => vec!["--isolation", "vm"],
        }
    }
}

/// What runs in a container.
#[derive(Clone, Copy, Debug)]
pub enum Program<'a> {
    /// A program of the image's, with its arguments.
    Image(&'a [&'a str]),
    /// Our probe, with its arguments.
    Probe(&'a [&'a str]),
}

/// The image, run in one way.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The image's name.
    pub image: &'a str,
    /// Our probe's program.
    pub probe: &'a Path,
    /// The way.
    pub side: Side,
}

/// A container that ended.
#[derive(Debug)]
pub struct Run {
    /// From before the command was started to its first output.
    pub first_output: Duration,
    /// And to its end.
    pub whole: Duration,
    /// How it ended; none by a signal.
    pub code: Option<i32>,
    /// What it said, by name.
    pub said: BTreeMap<String, String>,
    /// What went wrong, in its last words.
    pub errors: String,
}

impl Run {
    /// A number that the probe said.
    pub fn number(&self, name: &str) -> Option<f64> {
        // Of a guest: whatever is not a finite number is none.
        let number: f64 = self.said.get(name)?.parse().ok()?;
        number.is_finite().then_some(number)
    }

    /// Why there is no such figure.
    pub fn excuse(&self) -> String {
        match (self.errors.as_str(), self.code) {
            ("", Some(code)) => format!("it ended with {code}"),
            ("", None) => "it was killed".into(),
            (errors, _) => errors.to_owned(),
        }
    }
}

impl Subject<'_> {
    /// The command that runs a program in a container. `options` come before the image.
    fn command(&self, options: &[&str], program: Program<'_>) -> Result<Command, CompareError> {
        let own = std::env::current_exe().map_err(|source| CompareError::Io {
            action: "find this program",
            source,
        })?;
        let mut command = Command::new(own);
        command.arg("run").args(self.side.options());
        command.args(["-u", "0:0"]).args(options);
        // No other network is common to all.
        if !options.contains(&"--network") {
            command.args(["--network", "none"]);
        }
        let (program, args) = match program {
            Program::Image([program, args @ ..]) => (*program, args),
            Program::Image([]) => ("true", &[][..]),
            Program::Probe(args) => {
                let mut volume = OsString::from(self.probe);
                volume.push(format!(":{PROBE}:ro"));
                command.arg("-v").arg(volume);
                (PROBE, args)
            }
        };
        command
            .args(["--entrypoint", program, self.image])
            .args(args);
        Ok(command)
    }

    /// Runs a program to its end in a container that is gone then.
    pub fn run(&self, options: &[&str], program: Program<'_>) -> Result<Run, CompareError> {
        let options = [&["--rm"], options].concat();
        self.run_as(&name(), &options, program)
    }

    /// Runs a program to its end in a container of this name.
    pub fn run_as(
        &self,
        name: &str,
        options: &[&str],
        program: Program<'_>,
    ) -> Result<Run, CompareError> {
        let options = [&["--name", name], options].concat();
        let mut command = self.command(&options, program)?;
        command.stdin(Stdio::null());
        finish(command, name).map_err(|source| CompareError::Io {
            action: "run a container",
            source,
        })
    }

    /// Starts a container in the background, which is removed when the result is dropped.
    pub fn start(&self, program: Program<'_>) -> Result<Started, CompareError> {
        let name = name();
        let run = self.run_as(&name, &["-d", "--rm"], program)?;
        if run.code != Some(0) {
            return Err(CompareError::Container(run.excuse()));
        }
        Ok(Started(Containers::open()?.find(&name)?))
    }

    /// Starts the neighbour.
    pub fn neighbour(&self) -> Result<Neighbour, CompareError> {
        let io = |source| CompareError::Io {
            action: "start the neighbour",
            source,
        };
        let name = name();
        let options = ["--name", &name, "--rm", "-i"];
        let mut command = self.command(&options, Program::Probe(&["pulse"]))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().map_err(io)?;
        let output = child.stdout.take();
        let mut neighbour = Neighbour {
            input: child.stdin.take(),
            lines: lines(output.ok_or_else(|| io(io::ErrorKind::BrokenPipe.into()))?),
            child,
            name,
        };
        // Until it is there.
        neighbour.ask()?;
        Ok(neighbour)
    }
}

/// A name that no container has.
fn name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("compare-{}-{number}", std::process::id())
}

/// A container that runs until this is dropped.
#[derive(Debug)]
pub struct Started(pub Container);

impl Drop for Started {
    fn drop(&mut self) {
        remove(&self.0.record.name);
    }
}

/// Removes a container, whatever it does.
pub fn remove(name: &str) {
    if let Ok(own) = std::env::current_exe() {
        let _ = Command::new(own).args(["rm", "-f", name]).output();
    }
}

/// A container that says how it fares.
#[derive(Debug)]
pub struct Neighbour {
    child: Child,
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    name: String,
}

impl Neighbour {
    /// Milliseconds of its longest pause since it was asked last.
    pub fn ask(&mut self) -> Result<f64, CompareError> {
        let gone = || CompareError::Container("the neighbour is gone".into());
        let input = self.input.as_mut().ok_or_else(gone)?;
        input.write_all(b"\n").map_err(|_| gone())?;
        loop {
            let line = self.lines.recv_timeout(PATIENCE).map_err(|_| gone())?;
            if let Some(millis) = line.strip_prefix("longest_ms ") {
                return millis.parse().map_err(|_| gone());
            }
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // At the end of its input it ends, and so does the command; if not, it is made to.
        drop(self.input.take());
        let until = Instant::now() + LAST;
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            remove(&self.name);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn lines(output: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// What a command printed, and when; a container that does not end in time is removed.
fn finish(mut command: Command, name: &str) -> io::Result<Run> {
    /// No program of ours says more.
    const MOST: u64 = 1 << 20;
    let started = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let output = thread::spawn(move || -> io::Result<(Duration, String)> {
        let mut pipe = stdout.ok_or(io::ErrorKind::BrokenPipe)?;
        let mut bytes = vec![0];
        let first = pipe.read(&mut bytes)?;
        bytes.truncate(first);
        let at = started.elapsed();
        pipe.take(MOST).read_to_end(&mut bytes)?;
        Ok((at, String::from_utf8_lossy(&bytes).into_owned()))
    });
    let errors = thread::spawn(move || -> io::Result<String> {
        let mut bytes = Vec::new();
        let pipe = stderr.ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.take(MOST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    });
    let (sender, ended) = mpsc::channel::<()>();
    let waited = thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                remove(name);
            }
        });
        let waited = child.wait();
        drop(sender);
        waited
    });
    let whole = started.elapsed();
    let broken = |_| io::Error::other("a thread ended early");
    let (first_output, text) = output.join().map_err(broken)??;
    let errors = errors.join().map_err(broken)??;
    let last = errors.lines().rfind(|line| !line.trim().is_empty());
    Ok(Run {
        first_output,
        whole,
        code: waited?.code(),
        said: parse(&text),
        errors: visible(last.unwrap_or("").trim_start_matches("cofferdam: ")),
    })
}

/// Lines of a name and a value; the last of a name counts.
pub fn parse(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        // Of a guest: not for the terminal as it is.
        let value = value
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect();
        Some((name.to_owned(), value))
    };
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Run {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        finish(command, "no-such-container").unwrap()
    }

    /// If it fails, times are those of something else, or words are lost.
    #[test]
    fn a_run_is_timed_and_heard() {
        let run = shell("echo a 1; sleep 0.2; echo a 2.5; echo no >&2; exit 3");
        assert_eq!((run.code, run.number("a")), (Some(3), Some(2.5)));
        assert!(run.whole - run.first_output >= Duration::from_millis(150));
        assert_eq!(run.excuse(), "no");
        assert_eq!(shell("exit 4").excuse(), "it ended with 4");
    }

    /// If it fails, a guest writes to the user's terminal what it likes, or has figures that are none.
    #[test]
    fn a_guest_is_not_believed() {
        let said = parse("kernel a\x1b[2Jb\nlong x\nx");
        assert_eq!(said["kernel"], "a[2Jb");
        let run = shell("echo a inf; echo b NaN; echo c -");
        assert_eq!(["a", "b", "c"].map(|name| run.number(name)), [None; 3]);
    }
}
