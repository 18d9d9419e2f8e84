//! What makes up the memory of an idle container: one bar a column, in parts.

use std::fmt::Write as _;

use super::chart::{BAR, LEFT, LONGEST, STEP, WIDTH};
use super::html::escape;
use super::report::{Column, Report, digits};

/// The parts by their rows, and what they are called; the rest is the container's own.
const PARTS: [(&str, &str); 3] = [
    ("guest", "the guest"),
    ("monitor", "the monitor"),
    ("shim", "the shim"),
];
const REST: &str = "its processes";
/// The row of all together.
pub const WHOLE: &str = "processes";

/// Whether a row is a part of the bar, and needs no chart of its own.
pub fn is_part(row: &str) -> bool {
    row == WHOLE || PARTS.iter().any(|(id, _)| *id == row)
}

fn value(report: &Report, column: &Column, id: &str) -> Option<f64> {
    let mut rows = report.rows.iter();
    rows.find(|row| row.id == id)?
        .cells
        .get(&column.id)?
        .value()
}

fn whole(report: &Report, column: &Column) -> Option<f64> {
    value(report, column, WHOLE)
}

/// A bar's parts, in MiB, with their places among [`PARTS`]; none of a column without figures.
fn parts(report: &Report, column: &Column) -> Vec<(usize, f64)> {
    let value = |id: &str| value(report, column, id);
    let Some(whole) = whole(report, column) else {
        return Vec::new();
    };
    let named = PARTS.iter().enumerate();
    let mut all: Vec<(usize, f64)> = named
        .filter_map(|(at, (id, _))| Some((at, value(id)?)))
        .collect();
    let known: f64 = all.iter().map(|(_, part)| part).sum();
    all.push((PARTS.len(), (whole - known).max(0.0)));
    all
}

/// The figure; nothing where no column has figures.
pub fn render(report: &Report) -> Option<String> {
    let bars: Vec<_> = report
        .columns
        .iter()
        .map(|column| (column, parts(report, column)))
        .collect();
    let sum = |parts: &[(usize, f64)]| parts.iter().map(|(_, part)| part).sum::<f64>();
    let most = bars.iter().map(|(_, parts)| sum(parts)).fold(0.0, f64::max);
    if most <= 0.0 {
        return None;
    }
    let mut svg = String::new();
    let mut spoken = Vec::new();
    for (at, (column, parts)) in (0_u32..).zip(&bars) {
        let top = at * STEP + 4;
        let base = top + BAR / 2 + 4;
        let label = escape(&column.label);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\" class=\"name\">{label}</text>",
            LEFT - 8.0
        );
        let mut from = LEFT;
        for (part, value) in parts {
            let length = value / most * LONGEST;
            let _ = writeln!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{top}\" width=\"{length:.1}\" height=\"{BAR}\" \
                 class=\"part{part}\"/>"
            );
            from += length;
        }
        let text = match parts.is_empty() {
            true => "not measured".to_owned(),
            false => digits(whole(report, column).unwrap_or_default()),
        };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{base}\">{text}</text>",
            from + 6.0
        );
        spoken.push(format!("{label} {text}"));
    }
    let height = u32::try_from(bars.len()).ok()? * STEP + 4;
    let names = PARTS.iter().map(|(_, name)| *name).chain([REST]);
    let legend: String = names
        .enumerate()
        .map(|(at, name)| format!("<span><i class=\"part{at}\"></i>{name}</span>"))
        .collect();
    Some(format!(
        "<figure id=\"memory\">\n<figcaption>memory of an idle container <span>MiB, less is \
         better</span></figcaption>\n<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"memory of an idle container, MiB: {}\">\n{svg}</svg>\n<p \
         class=\"legend\">{legend}</p>\n<p>of all its processes on the host, with their share of what they \
         have with others (PSS); the guest is what its kernel, the agent and the workload have \
         touched</p>\n</figure>\n",
        spoken.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::example;
    use crate::compare::report::{Cell, Group, Row};

    /// If it fails, the bar shows more or less memory than was measured.
    #[test]
    fn parts_make_the_whole() {
        let mut report = example();
        assert_eq!(render(&report), None);
        for (id, value) in [
            ("processes", 32.0),
            ("shim", 2.0),
            ("monitor", 5.0),
            ("guest", 24.0),
        ] {
            report.rows.push(Row {
                id: id.into(),
                group: Group::Size,
                title: id.into(),
                unit: "MiB".into(),
                better: None,
                note: String::new(),
                cells: [("vm".to_owned(), Cell::number(value))].into(),
            });
        }
        let vm = report
            .columns
            .iter()
            .find(|column| column.id == "vm")
            .unwrap();
        assert_eq!(
            parts(&report, vm),
            [(0, 24.0), (1, 5.0), (2, 2.0), (3, 1.0)]
        );
        let figure = render(&report).unwrap();
        assert!(
            figure.contains(">32</text>") && figure.contains("the monitor"),
            "{figure}"
        );
        assert!(figure.contains(">not measured</text>"), "{figure}");
        // 24 of 32 of the longest bar.
        assert!(figure.contains("width=\"160.5\""), "{figure}");
    }
}
