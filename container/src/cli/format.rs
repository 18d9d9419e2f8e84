//! How things are shown: templates, tables, times.

use std::convert::Infallible;
use std::io::{self, IsTerminal};
use std::str::FromStr;

use cofferdam::text::{visible, visible_json};
use serde_json::Value;

/// A part of what Docker's `--format` takes: `json`, or text with `{{.Path.To.Field}}` and
/// `{{json .Path}}` in it.
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
pub enum TemplateError {
    /// A field that is not there.
    #[error("the template asks for {0:?}, which is not there")]
    Field(String),
    /// More of Go's templates than we know.
    #[error("the template has {0:?}; only fields ({{{{.Name}}}}) and {{{{json .Name}}}} are there")]
    Action(String),
}

impl Template {
    /// The template with a value's fields. Programs get them as they are; a terminal is not to obey
    /// what a container put into them.
    pub fn fill(&self, value: &Value) -> Result<String, TemplateError> {
        self.fill_for(value, io::stdout().is_terminal())
    }

    fn fill_for(&self, value: &Value, is_terminal: bool) -> Result<String, TemplateError> {
        if self.0 == "json" {
            return Ok(visible_json(&value.to_string()));
        }
        let mut text = String::new();
        // `table` is a heading for a table that a single column is not worth.
        let mut rest = self.0.trim_start_matches("table ");
        while let Some((before, after)) = rest.split_once("{{") {
            text.push_str(&escapes(before));
            let Some((action, behind)) = after.split_once("}}") else {
                return Err(TemplateError::Action(after.to_owned()));
            };
            let field = filled(action.trim(), value)?;
            text.push_str(&if is_terminal { visible(&field) } else { field });
            rest = behind;
        }
        text.push_str(&escapes(rest));
        Ok(text)
    }
}

fn escapes(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn filled(action: &str, value: &Value) -> Result<String, TemplateError> {
    let (as_json, path) = match action.strip_prefix("json ") {
        Some(path) => (true, path.trim()),
        None => (false, action),
    };
    let Some(path) = path.strip_prefix('.') else {
        return Err(TemplateError::Action(action.to_owned()));
    };
    let mut found = value;
    for name in path.split('.').filter(|name| !name.is_empty()) {
        if name.contains(|c: char| !c.is_alphanumeric() && c != '_') {
            return Err(TemplateError::Action(action.to_owned()));
        }
        found = found
            .get(name)
            .ok_or_else(|| TemplateError::Field(path.to_owned()))?;
    }
    Ok(match found {
        Value::String(text) if !as_json => text.clone(),
        Value::Null if !as_json => "<nil>".into(),
        other => visible_json(&other.to_string()),
    })
}

/// A JSON document for people and programs, with a line end.
pub fn document(value: &Value) -> String {
    format!("{}\n", visible_json(&format!("{value:#}")))
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
        let value = json!({"State": {"Status": "running", "Pid": 7}, "Args": ["a"], "N": null});
        let fill = |text: &str| text.parse::<Template>().unwrap().fill(&value);
        for (text, expected) in [
            ("{{.State.Status}}", "running"),
            ("{{ .State.Pid }}/{{json .State.Status}}", "7/\"running\""),
            ("{{json .Args}}\\t{{.N}}", "[\"a\"]\t<nil>"),
            ("plain", "plain"),
        ] {
            assert_eq!(fill(text).unwrap(), expected);
        }
        assert_eq!(fill("json").unwrap(), value.to_string());
        let value = json!({"E": "\u{1b}[2J\n"});
        let field: Template = "{{.E}}\\n{{json .E}}".parse().unwrap();
        let shown = |is_terminal| field.fill_for(&value, is_terminal).unwrap();
        assert_eq!(shown(true), "\\x1b[2J\\n\n\"\\u001b[2J\\n\"");
        assert_eq!(shown(false), "\u{1b}[2J\n\n\"\\u001b[2J\\n\"");
        for bad in [
            "{{.Nothing}}",
            "{{range .Args}}",
            "{{.Args",
            "{{.State | len}}",
        ] {
            assert!(fill(bad).is_err(), "{bad}");
        }
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
