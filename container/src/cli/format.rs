//! How things are shown: templates, tables, times.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::str::FromStr;

use cofferdam::text::{visible, visible_json};
use serde_json::Value;

/// What `--format` takes, as Docker has it: `json`, `table`, or a template of Go's with
/// `{{.Path.To.Field}}`; with `table ` before it, the rows of a table with headings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

impl FromStr for Template {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

/// Why a template gives nothing.
#[derive(Debug, thiserror::Error)]
#[error("the template {template:?} cannot be filled: {why}")]
pub struct TemplateError {
    template: String,
    why: String,
}

impl Template {
    /// The template with a value's fields. Programs get them as they are; a terminal is not to obey
    /// what a container put into them.
    pub fn fill(&self, value: &Value) -> Result<String, TemplateError> {
        if self.0 == "json" {
            return Ok(visible_json(&value.to_string()));
        }
        self.filled(&self.parsed(&self.0)?, value)
    }

    /// What is asked for of each row of a list, lines and all. `columns` are the headings and fields of
    /// the table that is shown where only `table` is asked for.
    pub fn list(&self, rows: &[Value], columns: &[(&str, &str)]) -> Result<String, TemplateError> {
        if self.0 == "table" {
            return Ok(columns_of(rows, columns));
        }
        let Some(row) = self.0.strip_prefix("table ") else {
            let lines: Result<String, TemplateError> = match self.0.as_str() {
                "json" => rows.iter().map(|row| Ok(self.fill(row)? + "\n")).collect(),
                text => {
                    let template = self.parsed(text)?;
                    let line = |row| Ok(self.filled(&template, row)? + "\n");
                    rows.iter().map(line).collect()
                }
            };
            return lines;
        };
        let template = self.parsed(row)?;
        let cells = |row: &Value| {
            let text = self.filled(&template, row)?;
            Ok(text.split('\t').map(str::to_owned).collect())
        };
        let mut lines = vec![cells(&headings(rows, columns))?];
        for row in rows {
            lines.push(cells(row)?);
        }
        Ok(table(&lines))
    }

    fn parsed(&self, text: &str) -> Result<gotmpl::Template, TemplateError> {
        let template = gotmpl::Template::new("--format").missing_key(gotmpl::MissingKey::Error);
        FUNCTIONS
            .iter()
            .fold(template, |template, (name, function)| {
                template.func(name, function)
            })
            .parse(&escapes(text))
            .map_err(|error| self.error(&error))
    }

    fn filled(&self, template: &gotmpl::Template, value: &Value) -> Result<String, TemplateError> {
        let filled = gotmpl::to_value(value).and_then(|value| template.execute_to_string(&value));
        let text = filled.map_err(|error| self.error(&error))?;
        Ok(match io::stdout().is_terminal() {
            true => on_a_terminal(&text),
            false => text,
        })
    }

    fn error(&self, error: &gotmpl::TemplateError) -> TemplateError {
        TemplateError {
            template: self.0.clone(),
            why: match error {
                gotmpl::TemplateError::MissingKey { key } => format!("there is no {key}"),
                other => other.to_string(),
            },
        }
    }
}

/// Lines stay lines, and columns columns; nothing else has a say over the terminal.
fn on_a_terminal(text: &str) -> String {
    let lines = text.split('\n').map(|line| {
        let cells: Vec<String> = line.split('\t').map(visible).collect();
        cells.join("\t")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What stands above the columns: of a field that is in no table, its own name.
fn headings(rows: &[Value], columns: &[(&str, &str)]) -> Value {
    let fields = rows.iter().filter_map(Value::as_object).flatten();
    let mut headings: serde_json::Map<String, Value> = fields
        .map(|(field, _)| (field.clone(), field.to_uppercase().into()))
        .collect();
    for (heading, field) in columns {
        headings.insert((*field).to_owned(), (*heading).into());
    }
    headings.into()
}

fn escapes(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

type Function = fn(&[gotmpl::Value]) -> gotmpl::Result<gotmpl::Value>;

/// Docker's own, beside those of Go (`index`, `len`, `println`, …).
const FUNCTIONS: &[(&str, Function)] = &[
    ("json", |args| match args {
        [value] => Ok(visible_json(&as_json(value).to_string()).into()),
        _ => Err(wrong("json takes one value")),
    }),
    ("join", |args| match args {
        [gotmpl::Value::List(parts), between] => {
            let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
            Ok(parts.join(&between.to_string()).into())
        }
        _ => Err(wrong(
            "join takes a list, and what stands between its parts",
        )),
    }),
    ("split", |args| match args {
        [text, at] => {
            let (text, at) = (text.to_string(), at.to_string());
            let parts: Vec<gotmpl::Value> = text.split(&at).map(gotmpl::Value::from).collect();
            Ok(gotmpl::Value::List(parts.into()))
        }
        _ => Err(wrong("split takes a text, and where it is split")),
    }),
    ("lower", |args| one(args, |text| text.to_lowercase())),
    ("upper", |args| one(args, |text| text.to_uppercase())),
    ("title", |args| {
        one(args, |text| {
            let mut rest = text.chars();
            let first = rest.next().into_iter().flat_map(char::to_uppercase);
            first.chain(rest).collect()
        })
    }),
    ("truncate", |args| match args {
        [text, length] => {
            let length = usize::try_from(length.as_int().unwrap_or_default()).unwrap_or_default();
            let text: String = text.to_string().chars().take(length).collect();
            Ok(text.into())
        }
        _ => Err(wrong("truncate takes a text and a length")),
    }),
];

fn wrong(what: &str) -> gotmpl::TemplateError {
    gotmpl::TemplateError::Exec(what.to_owned())
}

fn one(args: &[gotmpl::Value], change: impl Fn(String) -> String) -> gotmpl::Result<gotmpl::Value> {
    match args {
        [text] => Ok(change(text.to_string()).into()),
        _ => Err(wrong("this function takes one text")),
    }
}

fn as_json(value: &gotmpl::Value) -> Value {
    match value {
        gotmpl::Value::Bool(value) => (*value).into(),
        gotmpl::Value::Int(value) => (*value).into(),
        gotmpl::Value::Uint(value) => (*value).into(),
        gotmpl::Value::Float(value) => (*value).into(),
        gotmpl::Value::String(value) => (**value).into(),
        gotmpl::Value::List(values) => values.iter().map(as_json).collect(),
        gotmpl::Value::Map(fields) => fields
            .iter()
            .map(|(name, value)| (name.to_string(), as_json(value)))
            .collect(),
        _ => Value::Null,
    }
}

/// A list as it was asked for: only the field `id` of each row, a template, or a table of some columns
/// (heading, field).
pub fn list(
    rows: &[Value],
    columns: &[(&str, &str)],
    id: Option<&str>,
    format: Option<&Template>,
) -> Result<String, TemplateError> {
    match (format, id) {
        (Some(template), _) => template.list(rows, columns),
        (None, Some(id)) => Ok(rows.iter().map(|row| cell(row, id) + "\n").collect()),
        (None, None) => Ok(columns_of(rows, columns)),
    }
}

fn cell(row: &Value, field: &str) -> String {
    row[field].as_str().unwrap_or_default().to_owned()
}

fn columns_of(rows: &[Value], columns: &[(&str, &str)]) -> String {
    let heading = columns.iter().map(|(heading, _)| (*heading).to_owned());
    let cells = |row| columns.iter().map(|(_, field)| cell(row, field)).collect();
    let mut lines: Vec<Vec<String>> = vec![heading.collect()];
    lines.extend(rows.iter().map(cells));
    table(&lines)
}

/// A JSON document for people and programs, with a line end.
pub fn document(value: &Value) -> String {
    format!("{}\n", visible_json(&format!("{value:#}")))
}

/// All that is known of several things: a JSON list, or a template for each, a line each.
pub fn documents(all: Vec<Value>, format: Option<&Template>) -> Result<String, TemplateError> {
    match format {
        None => Ok(document(&Value::Array(all))),
        Some(template) => all
            .iter()
            .map(|value| Ok(template.fill(value)? + "\n"))
            .collect(),
    }
}

/// Lines of cells, each column as wide as its widest, with three spaces between them. What is in a cell
/// has no say over the terminal.
pub fn table(lines: &[Vec<String>]) -> String {
    let visible = |line: &Vec<String>| line.iter().map(|cell| visible(cell)).collect();
    let lines: Vec<Vec<String>> = lines.iter().map(visible).collect();
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells
            .map(|cell: &String| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths);
        let padded: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(padded.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// So many seconds, as Docker puts it: `5 minutes`.
pub fn ago(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    match seconds {
        ..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..3600 => format!("{} minutes", seconds / MINUTE),
        3600..7200 => "About an hour".into(),
        7200..172_800 => format!("{} hours", seconds / HOUR),
        172_800..1_209_600 => format!("{} days", seconds / DAY),
        1_209_600..5_184_000 => format!("{} weeks", seconds / (7 * DAY)),
        5_184_000..63_072_000 => format!("{} months", seconds / (30 * DAY)),
        _ => format!("{} years", seconds / (365 * DAY)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// If it fails, scripts that ask for a field get another, or nothing.
    #[test]
    fn templates_are_filled() {
        let value = json!({
            "State": {"Status": "running", "Pid": 7}, "Args": ["a", "b"], "N": null,
            "Ports": {"80/tcp": [{"HostPort": "8080"}]}, "Size": 3.5,
        });
        let fill = |text: &str| text.parse::<Template>().unwrap().fill(&value);
        for (text, expected) in [
            ("{{.State.Status}}", "running"),
            ("{{ .State.Pid }}/{{json .State.Status}}", "7/\"running\""),
            ("{{json .Args}}\\t{{.N}}", "[\"a\",\"b\"]\t<no value>"),
            ("{{index .Args 1}}", "b"),
            ("{{(index (index .Ports \"80/tcp\") 0).HostPort}}", "8080"),
            ("{{range .Args}}<{{.}}>{{end}}", "<a><b>"),
            ("{{range $port, $to := .Ports}}{{$port}}{{end}}", "80/tcp"),
            ("{{if .N}}yes{{else}}no{{end}} {{len .Args}}", "no 2"),
            (
                "{{join .Args \",\"}} {{upper .State.Status}}",
                "a,b RUNNING",
            ),
            (
                "{{.State.Status | title}} {{truncate .State.Status 3}}",
                "Running run",
            ),
            ("{{range split \"x/y\" \"/\"}}{{.}};{{end}}", "x;y;"),
            ("{{printf \"%05d\" .State.Pid}} {{json .Size}}", "00007 3.5"),
            ("plain", "plain"),
        ] {
            assert_eq!(fill(text).unwrap(), expected, "{text}");
        }
        assert_eq!(fill("json").unwrap(), value.to_string());
        assert_eq!(fill("{{json .}}").unwrap(), value.to_string());
        for (bad, why) in [
            ("{{.Nothing}}", "there is no Nothing"),
            ("{{.Args", "unclosed action"),
            ("{{nothing .Args}}", "undefined function"),
        ] {
            let error = fill(bad).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(bad), "{error}");
        }
    }

    /// If it fails, a container has a say over the terminal of whoever looks at it.
    #[test]
    fn a_terminal_obeys_nobody() {
        assert_eq!(on_a_terminal("a\tb\x1b[2J\rc\nd"), "a\tb\\x1b[2J\\rc\nd");
        let value = json!({"E": "\u{1b}[2J\u{9b}"});
        let field: Template = "{{json .E}}".parse().unwrap();
        assert!(!field.fill(&value).unwrap().contains(['\u{1b}', '\u{9b}']));
    }

    /// If it fails, lists that Docker's users ask for have no headings, or others.
    #[test]
    fn lists_have_headings_where_asked() {
        let rows = [
            json!({"ID": "1", "Names": "web", "Extra": "x"}),
            json!({"ID": "22", "Names": "db", "Extra": "y"}),
        ];
        let columns = [("CONTAINER ID", "ID"), ("NAMES", "Names")];
        let shown = |format: &str| {
            let format: Template = format.parse().unwrap();
            list(&rows, &columns, None, Some(&format)).unwrap()
        };
        let whole = "CONTAINER ID   NAMES\n1              web\n22             db\n";
        assert_eq!(shown("table"), whole);
        assert_eq!(list(&rows, &columns, None, None).unwrap(), whole);
        assert_eq!(
            shown("table {{.Names}}\\t{{.Extra}}"),
            "NAMES   EXTRA\nweb     x\ndb      y\n"
        );
        assert_eq!(shown("{{.Names}}"), "web\ndb\n");
        assert_eq!(shown("json").lines().count(), 2);
        assert_eq!(list(&rows, &columns, Some("ID"), None).unwrap(), "1\n22\n");
        let none: Template = "table {{.Names}}".parse().unwrap();
        assert_eq!(list(&[], &columns, None, Some(&none)).unwrap(), "NAMES\n");
    }

    /// If it fails, lists are not readable.
    #[test]
    fn tables_and_times() {
        let lines = [
            vec!["A".to_owned(), "B".into()],
            vec!["long".into(), String::new()],
        ];
        assert_eq!(table(&lines), "A      B\nlong\n");
        let hostile = [vec!["a\x1b[A\rb".to_owned(), "c\nd".into()]];
        assert_eq!(table(&hostile), "a\\x1b[A\\rb   c\\nd\n");
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (7200, "2 hours"),
        ] {
            assert_eq!(ago(seconds), text);
        }
    }
}
