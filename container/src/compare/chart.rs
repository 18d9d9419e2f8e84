//! One row of numbers as bars: SVG that stands in HTML and has its colours from there.

use super::html::escape;
use super::report::{Cell, Report, Row, digits};

pub(super) const WIDTH: u32 = 420;
pub(super) const BAR: u32 = 16;
pub(super) const STEP: u32 = 26;
/// Where bars begin, and how long the longest is.
pub(super) const LEFT: f64 = 112.0;
pub(super) const LONGEST: f64 = 214.0;

/// The chart; none for a row without numbers, and a line of text where all are nothing.
pub fn render(report: &Report, row: &Row) -> Option<String> {
    let ends = report.cells(row).filter_map(|(_, cell)| end(cell));
    let most = ends.reduce(f64::max)?;
    if most <= 0.0 {
        let all = escape(&values(report, row));
        return Some(format!("<p class=\"flat\">{all}</p>\n"));
    }
    let scale = LONGEST / most;
    let count = u32::try_from(report.columns.len()).ok()?;
    let height = count * STEP + 4;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n",
        escape(&alternative(report, row))
    );
    for (at, (column, cell)) in (0..).zip(report.cells(row)) {
        let top = f64::from(at * STEP + 4);
        let middle = top + f64::from(BAR) / 2.0;
        let base = middle + 4.0;
        svg.push_str(&format!(
            "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\" class=\"name\">{}</text>\n",
            LEFT - 8.0,
            escape(&column.label)
        ));
        svg.push_str(&bar(cell, &column.id, top, middle, base, scale));
    }
    svg.push_str(&format!(
        "<line x1=\"{LEFT}\" x2=\"{LEFT}\" y1=\"0\" y2=\"{height}\" class=\"axis\"/>\n</svg>\n"
    ));
    Some(svg)
}

/// How far a cell's drawing goes.
fn end(cell: &Cell) -> Option<f64> {
    match cell {
        Cell::Spread { max, .. } => Some(*max),
        other => other.value(),
    }
}

fn bar(cell: &Cell, column: &str, top: f64, middle: f64, base: f64, scale: f64) -> String {
    let Some(value) = cell.value() else {
        return format!(
            "<text x=\"{}\" y=\"{base}\" class=\"none\">{}</text>\n",
            LEFT + 6.0,
            escape(&words(cell))
        );
    };
    let length = value * scale;
    let mut svg = format!(
        "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\" \
         class=\"{column}\"/>\n",
        column = escape(column)
    );
    let mut text = LEFT + length + 6.0;
    if let Cell::Spread { min, max, .. } = cell {
        let (from, to) = (LEFT + min * scale, LEFT + max * scale);
        svg.push_str(&format!(
            "<path d=\"M{from:.1} {middle}H{to:.1}\" class=\"spread\"/>\n"
        ));
        text = text.max(to + 6.0);
    }
    svg.push_str(&format!(
        "<text x=\"{text:.1}\" y=\"{base}\" class=\"value\">{}</text>\n",
        digits(value)
    ));
    svg
}

/// What stands where there is no bar.
fn words(cell: &Cell) -> String {
    match cell {
        Cell::Text { text } => text.clone(),
        _ => "not measured".into(),
    }
}

/// The chart for who does not see it.
fn alternative(report: &Report, row: &Row) -> String {
    format!("{}, {}: {}", row.title, row.unit, values(report, row))
}

fn values(report: &Report, row: &Row) -> String {
    let all = report.cells(row).map(|(column, cell)| {
        let value = cell.value().map_or_else(|| words(cell), digits);
        format!("{} {value}", column.label)
    });
    all.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::example;

    /// If it fails, a chart shows something else than was measured.
    #[test]
    fn bars_are_as_long_as_numbers() {
        let report = example();
        let row = |id: &str| report.rows.iter().find(|row| row.id == id).unwrap();
        let calls = render(&report, row("host_calls")).unwrap();
        assert!(calls.contains("width=\"214.0\""), "{calls}");
        assert!(
            calls.contains("width=\"0.0\" height=\"16\" rx=\"2\" class=\"vm\""),
            "{calls}"
        );
        let network = render(&report, row("passt")).unwrap();
        assert!(network.contains(">not measured<"), "{network}");
        assert_eq!(render(&report, row("kernel")), None);
        let mut none = row("host_calls").clone();
        none.cells
            .values_mut()
            .for_each(|cell| *cell = Cell::number(0.0));
        let flat = render(&report, &none).unwrap();
        assert!(
            !flat.contains("<svg") && flat.contains("VM (Cofferdam) 0"),
            "{flat}"
        );
    }
}
