//! `logs` and `events`: files of lines, and what comes.

use std::collections::VecDeque;
use std::fs::File;
use std::thread;
use std::time::Duration;

use cofferdam::text::visible;

use super::attach::show;
use super::{Outcome, print};
use crate::log_file::Lines;
use crate::shim::{LogLine, Stream};
use crate::state::{Containers, Event, Events, timestamp};

/// How long to wait for more to come.
const POLL: Duration = Duration::from_millis(50);

/// Print what a container printed
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// And what it prints from now on, until it ends
    #[arg(short, long)]
    follow: bool,
    /// Only so many of the last lines; or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all")]
    tail: String,
    /// When each line was printed
    #[arg(short, long)]
    timestamps: bool,
    /// Only lines since then (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
}

/// Print what happens to containers
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct EventsArgs {
    /// What happened since then, too (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Nothing that comes: end when the last that happened is printed
    #[arg(long)]
    no_follow: bool,
}

/// What is wrong with an option.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error("{0:?} is no time as RFC 3339 has it: 2026-01-31T12:00:00Z")]
    Time(String),
    #[error("--tail {0:?}: expected a number of lines, or all")]
    Tail(String),
}

fn time(text: &Option<String>) -> Result<Option<i64>, LogError> {
    let parse = |text: &String| timestamp(text).ok_or_else(|| LogError::Time(text.clone()));
    text.as_ref().map(parse).transpose()
}

pub(super) fn logs(args: &Args) -> Outcome {
    let container = Containers::open()?.find(&args.name)?;
    let since = time(&args.since)?;
    let tail = match args.tail.as_str() {
        "all" | "-1" => None,
        text => Some(
            text.parse::<usize>()
                .map_err(|_| LogError::Tail(text.to_owned()))?,
        ),
    };
    let Some(mut lines) = Lines::open(&container.log())? else {
        return Ok(0);
    };
    let shown = |line: &LogLine| match since {
        Some(since) => timestamp(&line.time).is_some_and(|time| time >= since),
        None => true,
    };
    let mut last = VecDeque::new();
    while let Some(line) = lines.next_line::<LogLine>()? {
        if !shown(&line) {
            continue;
        }
        let Some(tail) = tail else {
            show_line(&line, args.timestamps);
            continue;
        };
        last.push_back(line);
        if last.len() > tail {
            last.pop_front();
        }
    }
    for line in &last {
        show_line(line, args.timestamps);
    }
    if !args.follow {
        return Ok(0);
    }
    loop {
        // Before the last look, or what it printed last might be missed.
        let live = container.state().is_ok_and(|state| state.status.is_live());
        while let Some(line) = lines.next_line::<LogLine>()? {
            show_line(&line, args.timestamps);
        }
        if !live {
            break;
        }
        thread::sleep(POLL);
    }
    Ok(0)
}

fn show_line(line: &LogLine, timestamps: bool) {
    let is_error = line.stream == Stream::Stderr;
    if timestamps {
        show(format!("{} ", line.time).as_bytes(), is_error);
    }
    show(line.log.as_bytes(), is_error);
}

pub(super) fn events(args: &EventsArgs) -> Outcome {
    let since = time(&args.since)?;
    let path = Events::path();
    // So that there is a file to follow.
    File::options().create(true).append(true).open(&path)?;
    let lines = match since.is_none() && !args.no_follow {
        true => Some(Lines::at_end(&path)?),
        false => Lines::open(&path)?,
    };
    let Some(mut lines) = lines else {
        return Ok(0);
    };
    loop {
        while let Some(event) = lines.next_line::<Event>()? {
            if since.is_none_or(|since| event.time_ns / 1_000_000_000 >= i128::from(since)) {
                print(&line(&event))?;
            }
        }
        if args.no_follow {
            return Ok(0);
        }
        thread::sleep(POLL);
    }
}

fn line(event: &Event) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(event.time_ns).ok();
    let format = time::format_description::well_known::Rfc3339;
    let time = time
        .and_then(|time| time.format(&format).ok())
        .unwrap_or_default();
    let code = event
        .exit_code
        .map(|code| format!("exitCode={code}, "))
        .unwrap_or_default();
    let Event {
        action,
        id,
        name,
        image,
        ..
    } = event;
    let line = format!("{time} container {action} {id} ({code}image={image}, name={name})");
    visible(&line) + "\n"
}
