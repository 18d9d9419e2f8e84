//! `logs` and `events`: files of lines, and what comes.

use std::collections::VecDeque;
use std::fs::File;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use cofferdam::text::visible;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::attach::show;
use super::{Outcome, print};
use crate::cli::format::Template;
use crate::cli::when::When;
use crate::log_file::Lines;
use crate::options::LogDriver;
use crate::shim::{LogLine, Stream};
use crate::state::{Containers, Event, Events};

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
    /// Only lines since then: so long ago (10m, 1h30m), a date, a time (2026-01-31T12:00:00Z), or seconds
    /// since 1970
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// Only lines until then, written likewise
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
}

/// Print what happens to containers
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct EventsArgs {
    /// What happened since then, too: so long ago (10m, 1h30m), a date, a time (2026-01-31T12:00:00Z), or
    /// seconds since 1970
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// What happens until then, and then end
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
    /// Only those with: event=…, container=NAME or ID, image=…; of several with one key, any
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<EventFilter>,
    /// `json`, or a template such as '{{.Action}} {{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<Template>,
    /// Nothing that comes: end when the last that happened is printed
    #[arg(long)]
    no_follow: bool,
}

/// What is wrong with an option.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error("container {0} was made with --log-driver none: nothing is kept of what it prints")]
    None(String),
    #[error("container {0} prints to the host's journal: 'journalctl CONTAINER_NAME={0}' shows it")]
    Journal(String),
    #[error("--tail {0:?}: expected a number of lines, or all")]
    Tail(String),
}

pub(super) fn logs(args: &Args) -> Outcome {
    let container = Containers::open()?.find(&args.name)?;
    let name = || container.record.name.clone();
    match container.record.options.log_driver {
        LogDriver::JsonFile => {}
        LogDriver::None => return Err(LogError::None(name()).into()),
        LogDriver::Journald => return Err(LogError::Journal(name()).into()),
    }
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
    let time = |line: &LogLine| When::of(&line.time);
    let shown = |line: &LogLine| args.since.is_none_or(|since| time(line) >= Some(since));
    let is_late = |line: &LogLine| args.until.is_some_and(|until| time(line) > Some(until));
    let mut last = VecDeque::new();
    while let Some(line) = lines.next_line::<LogLine>()? {
        if is_late(&line) {
            break;
        }
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
            if is_late(&line) {
                return Ok(0);
            }
            if shown(&line) {
                show_line(&line, args.timestamps);
            }
        }
        if !live || is_over(args.until) {
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

/// Whether nothing that comes is before it.
fn is_over(until: Option<When>) -> bool {
    until.is_some_and(|When(until)| OffsetDateTime::now_utc().unix_timestamp_nanos() > until)
}

/// Which events are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct EventFilter {
    key: String,
    value: String,
}

impl FromStr for EventFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key @ ("event" | "container" | "image" | "type"), value)) => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("there are event=…, container=…, image=… and type=container".into()),
        }
    }
}

impl EventFilter {
    fn lets(&self, event: &Event) -> bool {
        let value = self.value.as_str();
        match self.key.as_str() {
            "event" => event.action == value,
            "container" => event.name == value || event.id.starts_with(value),
            "image" => event.image == value,
            _ => value == "container",
        }
    }
}

/// Whether there is, for each key that is filtered by, one filter that lets it through.
fn passes(filters: &[EventFilter], event: &Event) -> bool {
    filters.iter().all(|filter| {
        let mut same = filters.iter().filter(|other| other.key == filter.key);
        same.any(|filter| filter.lets(event))
    })
}

pub(in crate::cli) fn events(args: &EventsArgs) -> Outcome {
    let path = Events::path();
    // So that there is a file to follow.
    File::options().create(true).append(true).open(&path)?;
    let lines = match args.since.is_none() && args.until.is_none() && !args.no_follow {
        true => Some(Lines::at_end(&path)?),
        false => Lines::open(&path)?,
    };
    let Some(mut lines) = lines else {
        return Ok(0);
    };
    loop {
        // Before the last look, or what happened last might be missed.
        let is_over = args.no_follow || is_over(args.until);
        while let Some(event) = lines.next_line::<Event>()? {
            let is_late = args.until.is_some_and(|until| When(event.time_ns) > until);
            let is_early = args.since.is_some_and(|since| When(event.time_ns) < since);
            if is_late || is_early || !passes(&args.filter, &event) {
                continue;
            }
            match &args.format {
                Some(template) => print(&(template.fill(&document(&event))? + "\n"))?,
                None => print(&line(&event))?,
            }
        }
        if is_over {
            return Ok(0);
        }
        thread::sleep(POLL);
    }
}

/// By Docker's names.
fn document(event: &Event) -> Value {
    let mut attributes = json!({"image": event.image, "name": event.name});
    if let Some(code) = event.exit_code {
        attributes["exitCode"] = code.to_string().into();
    }
    let nanoseconds = i64::try_from(event.time_ns).unwrap_or(i64::MAX);
    json!({
        "Type": "container",
        "Action": event.action,
        "ID": event.id,
        "Name": event.name,
        "Image": event.image,
        "Actor": {"ID": event.id, "Attributes": attributes},
        "time": nanoseconds / 1_000_000_000,
        "timeNano": nanoseconds,
    })
}

fn line(event: &Event) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(event.time_ns).ok();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, scripts that wait for an event get others, or none.
    #[test]
    fn events_are_filtered() {
        let event = Event {
            time_ns: 1,
            action: "die".into(),
            id: "abc123".into(),
            name: "web".into(),
            image: "busybox".into(),
            exit_code: Some(3),
        };
        let lets = |filters: &[&str]| {
            let filters: Vec<EventFilter> = filters.iter().map(|f| f.parse().unwrap()).collect();
            passes(&filters, &event)
        };
        assert!(lets(&[]) && lets(&["event=die"]) && lets(&["event=start", "event=die"]));
        assert!(lets(&["container=web", "event=die"]) && lets(&["container=abc"]));
        assert!(!lets(&["container=db", "event=die"]) && !lets(&["image=x"]));
        assert!("colour=red".parse::<EventFilter>().is_err());
        assert_eq!(document(&event)["Actor"]["Attributes"]["exitCode"], "3");
    }
}
