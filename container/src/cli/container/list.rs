//! `ps`.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Outcome, print};
use crate::cli::format::{Template, ago, list};
use crate::create;
use crate::state::{Container, Containers, State, Status, timestamp};

/// List containers
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only their IDs
    #[arg(short, long)]
    quiet: bool,
    /// Whole IDs and commands
    #[arg(long)]
    no_trunc: bool,
    /// The youngest so many, whether they run or not
    #[arg(short = 'n', long, value_name = "NUMBER")]
    last: Option<usize>,
    /// The youngest, whether it runs or not
    #[arg(short, long)]
    latest: bool,
    /// Only those with: name=…, id=…, status=…, label=NAME[=VALUE], ancestor=IMAGE, exited=CODE, health=STATUS
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// `json`, or a template such as '{{.ID}} {{.Names}}' or 'table {{.Names}}\t{{.Status}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<Template>,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
#[error(
    "the filter {0:?} is not there; there are name, id, status, label, ancestor, exited and health"
)]
struct FilterError(String);

pub(super) fn ps(args: &PsArgs) -> Outcome {
    let mut all = Vec::new();
    for container in Containers::open()?.list()? {
        let state = container.state()?;
        all.push((container, state));
    }
    match (args.latest, args.last) {
        (true, _) => all.truncate(1),
        (_, Some(count)) => all.truncate(count),
        _ => {
            let by_status = args
                .filter
                .iter()
                .any(|filter| filter.starts_with("status=") || filter.starts_with("exited="));
            if !args.all && !by_status {
                all.retain(|(_, state)| state.status.is_live());
            }
        }
    }
    for filter in &args.filter {
        let (key, value) = filter.split_once('=').unwrap_or((filter, ""));
        if !matches!(
            key,
            "name" | "id" | "status" | "label" | "ancestor" | "exited" | "health"
        ) {
            return Err(FilterError(key.to_owned()).into());
        }
        all.retain(|(container, state)| passes(container, state, key, value));
    }
    let rows: Vec<Value> = all
        .iter()
        .map(|(container, state)| row(container, state, args.no_trunc))
        .collect();
    let columns = [
        ("CONTAINER ID", "ID"),
        ("IMAGE", "Image"),
        ("COMMAND", "Command"),
        ("CREATED", "RunningFor"),
        ("STATUS", "Status"),
        ("PORTS", "Ports"),
        ("NAMES", "Names"),
    ];
    let id = args.quiet.then_some("ID");
    print(&list(&rows, &columns, id, args.format.as_ref())?)?;
    Ok(0)
}

fn passes(container: &Container, state: &State, key: &str, value: &str) -> bool {
    let record = &container.record;
    match key {
        "name" => record.name.contains(value.trim_start_matches(['^', '/'])),
        "id" => record.id.starts_with(value),
        "status" => state.status.name() == value,
        "ancestor" => record.options.image == value || record.image.contains(value),
        "health" => {
            state
                .health
                .as_ref()
                .map_or("none", |health| &health.status)
                == value
        }
        "exited" => state.status == Status::Exited && value.parse() == Ok(state.exit_code),
        _ => {
            let (name, wanted) = value
                .split_once('=')
                .map_or((value, None), |(n, v)| (n, Some(v)));
            let labels = create::labels(record);
            let found = labels.get(name);
            found.is_some_and(|found| wanted.is_none_or(|wanted| found == wanted))
        }
    }
}

fn row(container: &Container, state: &State, whole: bool) -> Value {
    let record = &container.record;
    let command = super::inspect::command_line(container).join(" ");
    let cut = |text: &str, most: usize| match (whole, text.char_indices().nth(most)) {
        (false, Some((at, _))) => format!("{}…", text.get(..at).unwrap_or_default()),
        _ => text.to_owned(),
    };
    let id = if whole {
        record.id.as_str()
    } else {
        record.id.get(..12).unwrap_or(&record.id)
    };
    let ports: Vec<String> = match state.status.is_live() {
        true => state.ports.iter().map(super::inspect::published).collect(),
        false => Vec::new(),
    };
    let labels = create::labels(record);
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    json!({
        "ID": id,
        "Image": record.options.image,
        "Command": format!("\"{}\"", cut(&command, 20)),
        "CreatedAt": record.created,
        "RunningFor": since(Some(&record.created)).map_or_else(String::new, |time| format!("{} ago", time.trim_start())),
        "Status": status(state),
        "State": state.status.name(),
        "Ports": ports.join(", "),
        "Names": record.name,
        "Labels": labels.join(","),
        "Networks": record.options.network.as_ref().map_or("default".into(), |n| n.to_string()),
    })
}

/// How long ago something was, behind a blank; nothing if nobody knows.
fn since(text: Option<&str>) -> Option<String> {
    let then = timestamp(text?)?;
    let seconds = OffsetDateTime::now_utc().unix_timestamp() - then;
    Some(format!(" {}", ago(seconds)))
}

/// Docker's words for it: `Up 5 minutes`, `Exited (0) 3 hours ago`.
fn status(state: &State) -> String {
    let started = since(state.started.as_deref()).unwrap_or_default();
    let finished = since(state.finished.as_deref()).map_or_else(String::new, |time| time + " ago");
    let health = state
        .health
        .as_ref()
        .map(|health| match health.status.as_str() {
            "starting" => " (health: starting)".to_owned(),
            status => format!(" ({status})"),
        })
        .unwrap_or_default();
    match state.status {
        Status::Created => "Created".into(),
        Status::Running => format!("Up{started}{health}"),
        Status::Paused => format!("Up{started} (Paused)"),
        Status::Restarting => format!("Restarting ({}){finished}", state.exit_code),
        Status::Exited => format!("Exited ({}){finished}", state.exit_code),
    }
}
