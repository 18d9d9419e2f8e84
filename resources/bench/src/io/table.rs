//! A set as Markdown.

use std::fmt::Write as _;

use crate::report::IoSet;
use crate::table::grid;

/// The figures of a set, a job a line, and the commands.
pub fn render(set: &IoSet) -> String {
    let mut text = grid(&lines(set));
    let _ = writeln!(
        text,
        "\nExits for each operation: all, and those to user space. Times as fast as {}, {}.\n",
        set.peer_row().map_or("the peer", |row| &row.label),
        set.peer
    );
    for row in &set.rows {
        let _ = writeln!(text, "- {}: `{}`", row.label, row.command);
    }
    text
}

fn lines(set: &IoSet) -> Vec<Vec<String>> {
    let mut header = vec![set.title.clone()];
    for row in &set.rows {
        header.push(row.label.clone());
        if row.is_ours() {
            header.push("times as fast".into());
        }
        header.push("exits".into());
    }
    let mut lines = vec![header];
    let jobs = set.rows.first().map_or(&[][..], |row| &row.jobs);
    lines.extend(jobs.iter().map(|job| {
        let mut line = vec![format!("{}, {}", job.label, job.unit)];
        for row in &set.rows {
            let job = set.job(&row.id, &job.id);
            line.push(job.map_or("–".into(), |job| rounded(job.value)));
            if row.is_ours() {
                let speed = job.and_then(|job| set.speed(&row.id, &job.id));
                line.push(speed.map_or("–".into(), |speed| format!("{speed:.2}")));
            }
            line.push(job.map_or("–".into(), |job| {
                let (all, user) = (job.exits_per_operation, job.user_exits_per_operation);
                format!("{all:.2}, {user:.2}")
            }));
        }
        line
    }));
    lines
}

/// Three digits that count.
fn rounded(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::io_set;

    /// If it fails, a column has the figures of another monitor.
    #[test]
    fn every_line_has_all_columns() {
        let lines = lines(&io_set(4.0, 1.0));
        assert_eq!(
            lines[0][1..],
            [
                "<cofferdam>",
                "times as fast",
                "exits",
                "<qemu-microvm>",
                "exits"
            ]
        );
        assert_eq!(
            lines[1][1..],
            ["4.00", "4.00", "3.00, 0.00", "1.00", "3.00, 0.00"]
        );
    }

    /// If it fails, figures are cut where they count or pretend to be exact.
    #[test]
    fn three_digits_are_shown() {
        assert_eq!(
            [rounded(1234.56), rounded(12.345), rounded(1.2345)],
            ["1235", "12.3", "1.23"]
        );
    }
}
