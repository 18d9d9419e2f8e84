//! The report as Markdown: readable on a terminal, and in the README.

use std::fmt::Write as _;

use crate::containers;
use crate::io;
use crate::report::{Bound, Budget, Lab, Report, Row};

/// Columns of the main table.
const COLUMNS: [&str; 12] = [
    "1 vCPU, virtual ms from process start",
    "first KVM_RUN",
    "kernel's first line",
    "init",
    "exit",
    "KVM exits",
    "to user space",
    "nested faults",
    "monitor RSS, KiB",
    "guest RSS, KiB",
    "of it anonymous",
    "threads",
];

/// The whole report: boots, the host's figure, input and output, and the budgets.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    if let Some(lab) = &report.lab {
        text += &boots(lab);
    }
    if let Some(host) = &report.host {
        let figure = host.first_entry_ms;
        let _ = writeln!(
            text,
            "\nThis host's own KVM, wall time: process start to first KVM_RUN {:.2} ms \
             ({:.2} to {:.2}, {} runs).",
            figure.median, figure.min, figure.max, host.runs
        );
    }
    if let Some(containers) = &report.containers {
        let _ = writeln!(
            text,
            "\n{}",
            containers::table::render(containers).trim_end()
        );
    }
    for set in &report.io {
        let _ = writeln!(text, "\n{}", io::table::render(set).trim_end());
    }
    let _ = writeln!(text, "\n{}", budgets(&report.budgets));
    text
}

/// The rows of boots, and the reasons of their exits.
fn boots(lab: &Lab) -> String {
    let mut text = rows(&lab.rows);
    let _ = writeln!(
        text,
        "\nVirtual time counts instructions, 1 ns each: it compares, and is no hardware's time. \
         Median of {} runs. {}.",
        lab.runs, lab.peer
    );
    for row in &lab.rows {
        let reasons = |counts: &std::collections::BTreeMap<String, u64>| {
            let mut counts: Vec<_> = counts.iter().collect();
            counts.sort_by(|a, b| b.1.cmp(a.1));
            let texts: Vec<_> = counts
                .iter()
                .map(|(reason, n)| format!("{reason} {n}"))
                .collect();
            texts.join(", ")
        };
        let _ = writeln!(text, "\n{}: `{}`", row.label, row.command);
        let _ = writeln!(text, "- exits: {}", reasons(&row.trace.exits));
        let _ = writeln!(text, "- to user space: {}", reasons(&row.trace.user_exits));
    }
    text
}

fn rows(rows: &[Row]) -> String {
    let mut lines = vec![COLUMNS.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        let (stages, memory) = (&row.stages, &row.memory);
        vec![
            row.label.clone(),
            format!("{:.1}", stages.first_entry_ms.median),
            format!("{:.1}", stages.first_line_ms.median),
            format!("{:.1}", stages.init_ms.median),
            stages
                .exit_ms
                .map_or("–".to_owned(), |exit| format!("{:.1}", exit.median)),
            row.exits.to_string(),
            row.trace.user_exits_total().to_string(),
            row.nested_page_faults.to_string(),
            memory.monitor_rss_kib.to_string(),
            memory.guest_rss_kib.to_string(),
            memory.guest_anonymous_kib.to_string(),
            memory.threads.to_string(),
        ]
    }));
    grid(&lines)
}

/// The budgets, the broken ones marked.
fn budgets(budgets: &[Budget]) -> String {
    let header = ["budget", "limit", "goal", "is", ""]
        .map(str::to_owned)
        .to_vec();
    let mut lines = vec![header];
    lines.extend(budgets.iter().map(|budget| {
        let sign = match budget.bound {
            Bound::AtMost => "≤",
            Bound::AtLeast => "≥",
        };
        let limit = |value: f64| format!("{sign} {value} {}", budget.unit);
        vec![
            budget.name.clone(),
            limit(budget.limit),
            budget.goal.map(limit).unwrap_or_default(),
            value(budget),
            if budget.held { "kept" } else { "**BROKEN**" }.to_owned(),
        ]
    }));
    grid(&lines)
}

/// The value, rounded for people.
pub fn value(budget: &Budget) -> String {
    match budget.value {
        None => "not measured".to_owned(),
        Some(value) if value.fract() == 0.0 => format!("{value}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// A Markdown table whose columns are as wide as they must be; all but the first to the right.
pub fn grid(lines: &[Vec<String>]) -> String {
    let Some(header) = lines.first() else {
        return String::new();
    };
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            let width = width(column);
            let _ = match column {
                0 => write!(text, "| {cell:<width$} |"),
                _ => write!(text, " {cell:>width$} |"),
            };
        }
        text.push('\n');
        if number == 0 {
            let rule = |column| match column {
                0 => format!("|{}|", "-".repeat(width(column) + 2)),
                _ => format!("{}:|", "-".repeat(width(column) + 1)),
            };
            text.extend((0..header.len()).map(rule));
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget;
    use crate::report::tests::{report, row};
    use crate::rows::DEFAULT_ROW;

    /// If it fails, the table is none that Markdown understands.
    #[test]
    fn every_line_has_all_columns() {
        let text = rows(&[row("a", 1.0), row("b", 22.0)]);
        assert_eq!(text.lines().count(), 4);
        for line in text.lines() {
            assert_eq!(line.matches('|').count(), COLUMNS.len() + 1, "{line}");
        }
    }

    /// If it fails, a broken promise is not to be seen, or not told from one that is kept.
    #[test]
    fn broken_budgets_stand_out() {
        let mut report = report(vec![row(DEFAULT_ROW, 50.0)]);
        report.budgets = budget::check(&report);
        let text = render(&report);
        let line = |part: &str| {
            text.lines()
                .find(|line| line.contains(part))
                .unwrap()
                .to_owned()
        };
        assert!(line("sooner than").contains("not measured"));
        assert!(line("sooner than").contains("BROKEN"));
        assert!(line("exits to user space in").contains("kept"));
    }
}
