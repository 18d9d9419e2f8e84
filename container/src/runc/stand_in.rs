//! Processes of the host's that look like the guest's, for a moment. `docker top` has the runtime say which
//! processes of the host's are a container's, and the host's `ps` show these. So for each of the guest's there
//! is one with its command line, name and user, which does nothing and has nothing, and soon ends.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use cofferdam_agent_protocol::api::ProcessInfo;
use rustix::process::DumpableBehavior;

/// The environment variable that makes this program one.
const VARIABLE: &str = "COFFERDAM_STAND_IN";
/// How long it is there: far longer than it takes an engine to look.
const TIME: Duration = Duration::from_secs(10);
/// So many at most, whatever the guest says.
const MAX: usize = 256;
/// Bytes of a command line; what is longer is cut off.
const MAX_ARGUMENTS: usize = 4096;
/// A group that has no rights.
const NOGROUP: u32 = 65534;

/// Starts one for each process. Gives their numbers on the host.
pub(super) fn start(processes: &[ProcessInfo]) -> Vec<u32> {
    let all = processes.iter().take(MAX);
    all.filter_map(|process| start_one(process).ok()).collect()
}

fn start_one(process: &ProcessInfo) -> io::Result<u32> {
    let mut words = arguments(process).into_iter();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(words.next().unwrap_or_default())
        .args(words)
        .env_clear()
        .env(VARIABLE, "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    // The user of the same number, with no group of his.
    let child = command.gid(NOGROUP).uid(process.uid).spawn();
    Ok(child?.id())
}

/// The command line, in bounds, as one may be given.
fn arguments(process: &ProcessInfo) -> Vec<String> {
    let mut left = MAX_ARGUMENTS;
    let mut words = Vec::new();
    for word in &process.command {
        let word: String = word.chars().filter(|letter| *letter != '\0').collect();
        // Each takes a byte for its end, so that empty ones are bounded, too.
        left = match left.checked_sub(word.len() + 1) {
            Some(left) => left,
            None => break,
        };
        words.push(word);
    }
    words
}

/// Whether this process is one.
pub fn is_one() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// What it does.
pub fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    if let Some(name) = Path::new(&program).file_name() {
        // Without it, it has ours.
        let written = File::options().write(true).open("/proc/self/comm");
        let _ =
            written.and_then(|mut file| io::Write::write_all(&mut file, name.as_encoded_bytes()));
    }
    // The user whose number it has shall not take it for his.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    thread::sleep(TIME);
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(words: &[&str]) -> ProcessInfo {
        let mut process = ProcessInfo::new();
        process.command = words.iter().map(|&word| word.to_owned()).collect();
        process
    }

    /// If it fails, a guest has the host start what it cannot, or more of it than it should.
    #[test]
    fn command_lines_are_bounded() {
        assert_eq!(arguments(&process(&["a\0b", "", "c"])), ["ab", "", "c"]);
        let long = "x".repeat(MAX_ARGUMENTS - 10);
        assert_eq!(arguments(&process(&["sh", &long, &long])), ["sh", &*long]);
        assert_eq!(
            arguments(&process(&vec![""; MAX_ARGUMENTS + 10])).len(),
            MAX_ARGUMENTS
        );
        assert!(arguments(&process(&[])).is_empty());
    }
}
