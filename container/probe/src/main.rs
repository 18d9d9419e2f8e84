//! `cofferdam-probe`: what `cofferdam compare` runs in containers. One static program, so that it runs
//! in any image; it says what it finds in lines of a name and a value.
//!
//! It takes no part in what it measures: the host times it, and believes of a guest's words only what
//! a table can hold.

mod calls;
mod harm;
mod look;
mod work;

use std::env;
use std::fmt::Display;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// What a mistaken command line ends with.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["hello"] => say("hello", 1),
        ["idle"] => idle(),
        ["look"] => look::look(),
        ["calls"] => calls::count(),
        ["work", directory, millis] => work::work(directory.as_ref(), duration(millis)),
        ["send", port, millis] => work::send(port, duration(millis)),
        ["pulse"] => harm::pulse(),
        ["fork", most, millis] => harm::fork(most.parse().unwrap_or(0), duration(millis)),
        ["eat", mib] => harm::eat(mib.parse().unwrap_or(0)),
        ["panic", boot] => harm::panic(boot),
        _ => {
            eprintln!("cofferdam-probe: it is a part of `cofferdam compare`");
            return ExitCode::from(USAGE);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cofferdam-probe: {}: {error}", args.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn duration(millis: &str) -> Duration {
    Duration::from_millis(millis.parse().unwrap_or(0))
}

/// Says one thing, at once.
fn say(name: &str, value: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{name} {value}")?;
    out.flush()
}

/// Says how much memory it takes itself, and then does nothing until its input ends.
fn idle() -> io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .map_or("0", |rest| rest.trim().trim_end_matches(" kB"));
    say("rss_kib", rss)?;
    let mut byte = [0];
    while io::stdin().read(&mut byte)? > 0 {}
    // Without an input: until it is killed.
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
