//! The table on the terminal.

use super::report::{Better, Cell, Column, Group, Report, Row, digits};
use super::verdict;

/// No column of words is wider.
const WIDEST: usize = 44;

/// The table. `colour`: the best numbers stand out.
pub fn render(report: &Report, colour: bool) -> String {
    let mut reasons = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    let labels = report.columns.iter().map(|column| column.label.clone());
    lines.push(Line {
        cells: std::iter::once(String::new()).chain(labels).collect(),
        style: Style::Heading,
        best: None,
    });
    for group in Group::ALL {
        lines.push(Line {
            cells: vec![group.title().to_owned()],
            style: Style::Heading,
            best: None,
        });
        let rows = report.group(group);
        lines.extend(rows.map(|row| line(report, row, &mut reasons)));
    }
    let mut text = head(report);
    text.push_str(&lay_out(&lines, report.columns.len(), colour));
    if !reasons.is_empty() {
        text.push('\n');
    }
    for (number, reason) in reasons.iter().enumerate() {
        text.push_str(&format!("  [{}] not measured: {reason}\n", number + 1));
    }
    text
}

fn head(report: &Report) -> String {
    let (image, host) = (&report.image, &report.host);
    let lab = match host.lab {
        true => {
            ", in the lab: emulated, 10 to 30 times slower than hardware; only ratios mean something"
        }
        false => "",
    };
    let verdict = verdict::sentence(report).map_or_else(String::new, |text| text + "\n\n");
    format!(
        "{verdict}{}: {} layer(s), {} KiB as EROFS images, {} KiB as they came\n\
         {} runs on {} ({} CPU(s), Linux {}{lab})\n\n",
        image.name,
        image.layers,
        digits(image.erofs_bytes as f64 / 1024.0),
        digits(image.blobs_bytes as f64 / 1024.0),
        report.runs,
        host.cpu,
        host.cpus,
        host.kernel,
    )
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Heading,
    Row,
}

struct Line {
    cells: Vec<String>,
    style: Style,
    /// The cell that stands out.
    best: Option<usize>,
}

fn line(report: &Report, row: &Row, reasons: &mut Vec<String>) -> Line {
    let title = match row.unit.as_str() {
        "" => format!("  {}", row.title),
        unit => format!("  {}, {unit}", row.title),
    };
    let mut cells = vec![title];
    cells.extend(report.cells(row).map(|(_, cell)| show(cell, reasons)));
    Line {
        cells,
        style: Style::Row,
        best: best(report, row).map(|at| at + 1),
    }
}

/// A cell in words; why there is no figure goes to the footnotes.
fn show(cell: &Cell, reasons: &mut Vec<String>) -> String {
    match cell {
        Cell::Spread { median, min, max } => {
            format!("{} ({} – {})", digits(*median), digits(*min), digits(*max))
        }
        Cell::Number { value } => digits(*value),
        Cell::Text { text } => text.clone(),
        Cell::Missing { not_measured } => {
            let known = reasons.iter().position(|reason| reason == not_measured);
            let number = known.unwrap_or_else(|| {
                reasons.push(not_measured.clone());
                reasons.len() - 1
            });
            format!("– [{}]", number + 1)
        }
    }
}

/// The best number of a row, if there is one to compare it with.
pub fn best(report: &Report, row: &Row) -> Option<usize> {
    let better = row.better?;
    let values = report.cells(row).map(|(_, cell)| cell.value());
    let values: Vec<_> = values
        .enumerate()
        .filter_map(|(at, value)| Some((at, value?)))
        .collect();
    let by = |a: &(usize, f64), b: &(usize, f64)| a.1.total_cmp(&b.1);
    let best = match better {
        Better::Less => values.iter().copied().min_by(by),
        Better::More => values.iter().copied().max_by(by),
    }?;
    let is_alone = values.iter().filter(|(_, value)| *value == best.1).count() == 1;
    (values.len() > 1 && is_alone).then_some(best.0)
}

fn lay_out(lines: &[Line], columns: usize, colour: bool) -> String {
    let length = |text: &str| text.chars().count();
    let width = |at: usize| {
        let all = lines.iter().filter_map(|line| line.cells.get(at));
        all.map(|text| length(text)).max().unwrap_or(0).min(WIDEST)
    };
    let widths: Vec<_> = (0..=columns).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let mut whole = String::new();
        for (at, cell) in line.cells.iter().enumerate() {
            let gap = widths
                .get(at)
                .map_or(0, |width| width.saturating_sub(length(cell)));
            let painted = match (colour, line.style, line.best == Some(at)) {
                (true, Style::Heading, _) => format!("\x1b[1m{cell}\x1b[0m"),
                (true, _, true) => format!("\x1b[32m{cell}\x1b[0m"),
                _ => cell.clone(),
            };
            let between = if at == 0 { "" } else { "  " };
            whole.push_str(&format!("{between}{painted}{}", " ".repeat(gap)));
        }
        if number > 1 && line.style == Style::Heading {
            text.push('\n');
        }
        text.push_str(whole.trim_end());
        text.push('\n');
    }
    text
}

/// A column's label with what it means.
pub fn describe(column: &Column) -> String {
    format!("{}: cofferdam run {}", column.label, column.options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::example;

    /// If it fails, people read a figure in another one's column.
    #[test]
    fn columns_are_aligned() {
        let text = render(&example(), false);
        let of = |part: &str| {
            text.lines()
                .find(|line| line.contains(part))
                .unwrap()
                .to_owned()
        };
        let at = |line: &str, part: &str| line.find(part).map(|at| line[..at].chars().count());
        let heading = of("VM (Cofferdam)");
        let row = of("kernel release");
        assert_eq!(
            at(&heading, "VM (Cofferdam)"),
            at(&row, "6.12.48"),
            "{text}"
        );
        assert!(!text.contains('\x1b'));
        assert!(text.contains("[2] not measured: it would be"), "{text}");
    }

    /// If it fails, the worse figure is praised.
    #[test]
    fn the_best_stands_out() {
        let report = example();
        let row = |id: &str| report.rows.iter().find(|row| row.id == id).unwrap();
        assert_eq!(best(&report, row("first_output")), Some(0));
        assert_eq!(best(&report, row("host_calls")), Some(2));
        assert_eq!(best(&report, row("kernel")), None);
        assert!(render(&report, true).contains("\x1b[32m"));
    }
}
