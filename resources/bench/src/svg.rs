//! The report as a picture: bars for the stages of a boot, the counts below, and what there is of
//! input and output. One file that refers to nothing outside itself.

use std::fmt::Write as _;

use crate::io::chart;
use crate::report::{Lab, Report, Row};

/// Width of the picture, and of the edge that stays empty.
pub const WIDTH: f64 = 960.0;
pub const MARGIN: f64 = 24.0;
/// The colour of grid lines, and the attributes of small text.
pub const RULE: &str = "#ddd";
pub const SMALL: &str = "font-size=\"11\" fill=\"#666\"";
/// Where the bars begin, and the columns of the table.
const LEFT: f64 = 216.0;
/// Room for the figure behind the longest bar.
const RIGHT: f64 = 90.0;
/// Height of the head, of a row of bars, and of a row of the table.
const HEAD: f64 = 104.0;
const BAR_ROW: f64 = 34.0;
const BAR: f64 = 20.0;
const TABLE_ROW: f64 = 24.0;

/// The stages and their colours, which people with any colour vision can tell apart.
const STAGES: [(&str, &str); 4] = [
    ("monitor, to the first KVM_RUN", "#4477aa"),
    ("to the kernel's first line", "#66ccee"),
    ("to init's first output", "#ccbb44"),
    ("power-off, to the process's end", "#bbbbbb"),
];
const COUNTS: [&str; 6] = [
    "KVM exits",
    "to user space",
    "nested faults",
    "monitor RSS, KiB",
    "guest RSS, KiB",
    "threads",
];

/// Draws what was measured.
pub fn render(report: &Report) -> String {
    let mut drawn = String::new();
    let mut height = MARGIN;
    if let Some(lab) = &report.lab {
        height = boots(&mut drawn, lab);
    }
    if !report.io.is_empty() {
        height = chart::draw(&mut drawn, &report.io, height + 12.0);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" \
         font-size=\"13\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{drawn}</svg>\n"
    )
}

/// Draws the boots at the top; returns where they end.
fn boots(svg: &mut String, lab: &Lab) -> f64 {
    let rows = &lab.rows;
    let bars_end = HEAD + BAR_ROW * count(rows.len());
    let table_top = bars_end + 62.0;
    let height = table_top + TABLE_ROW * (count(rows.len()) + 1.0) + 46.0;
    text(
        svg,
        MARGIN,
        34.0,
        "font-size=\"18\" font-weight=\"bold\"",
        "From process start to init",
    );
    let memory = lab.guest_memory_mib;
    let what = format!(
        "1 vCPU, {memory} MiB, the same kernel and init, quiet console; virtual milliseconds, \
         which count instructions and are no hardware's"
    );
    text(svg, MARGIN, 54.0, "fill=\"#666\"", &what);
    legend(svg);
    let longest = rows.iter().map(end).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT - MARGIN) / longest;
    axis(svg, longest, scale, bars_end);
    for (number, row) in rows.iter().enumerate() {
        bar(svg, row, HEAD + BAR_ROW * count(number), scale);
    }
    table(svg, rows, table_top);
    let note = "Exits and faults until init's line is out; memory while the guest idles, guest \
                memory told apart by KVM's memory slots.";
    text(svg, MARGIN, height - 18.0, SMALL, note);
    height
}

/// A small number as a coordinate.
pub fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(0.0, f64::from)
}

/// When the last stage of the row ends.
fn end(row: &Row) -> f64 {
    row.stages.exit_ms.unwrap_or(row.stages.init_ms).median
}

/// Adds text whose baseline begins, or as the attributes say, at `x`.
pub fn text(svg: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>"
    );
}

/// Adds a straight line.
pub fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// Adds a filled rectangle.
pub fn rect(svg: &mut String, x: f64, y: f64, size: (f64, f64), fill: &str) {
    let (width, height) = size;
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
         fill=\"{fill}\"/>"
    );
}

fn legend(svg: &mut String) {
    for (number, (name, colour)) in STAGES.iter().enumerate() {
        let x = MARGIN + 230.0 * count(number);
        rect(svg, x, 68.0, (12.0, 12.0), colour);
        text(svg, x + 18.0, 79.0, "font-size=\"12\"", name);
    }
}

/// Grid lines at round times.
fn axis(svg: &mut String, longest: f64, scale: f64, bottom: f64) {
    let step = [5.0, 10.0, 20.0, 50.0, 100.0]
        .into_iter()
        .find(|step| longest / step <= 10.0);
    let step = step.unwrap_or(longest / 10.0);
    let mut time = 0.0;
    while time <= longest {
        let x = LEFT + time * scale;
        line(svg, (x, HEAD - 8.0), (x, bottom), RULE);
        let attributes = format!("text-anchor=\"middle\" {SMALL}");
        text(svg, x, bottom + 15.0, &attributes, &format!("{time}"));
        time += step;
    }
}

/// One monitor's stages, and its time to init written behind them.
fn bar(svg: &mut String, row: &Row, y: f64, scale: f64) {
    let stages = &row.stages;
    let ends = [
        Some(stages.first_entry_ms),
        Some(stages.first_line_ms),
        Some(stages.init_ms),
        stages.exit_ms,
    ];
    text(
        svg,
        LEFT - 10.0,
        y + 15.0,
        "text-anchor=\"end\"",
        &row.label,
    );
    let mut from = 0.0;
    for (end, (_, colour)) in ends.iter().zip(STAGES) {
        let Some(end) = end else { continue };
        // Stages come from runs of their own, so that one may seem to end before it begins.
        let length = (end.median - from).max(0.0);
        rect(svg, LEFT + from * scale, y, (length * scale, BAR), colour);
        from += length;
    }
    let init = format!("init {:.1}", stages.init_ms.median);
    text(
        svg,
        LEFT + from * scale + 8.0,
        y + 15.0,
        "font-weight=\"bold\"",
        &init,
    );
}

fn table(svg: &mut String, rows: &[Row], top: f64) {
    let column = (WIDTH - LEFT - MARGIN) / count(COUNTS.len());
    let right = |number: usize| LEFT + column * (count(number) + 1.0);
    for (number, name) in COUNTS.iter().enumerate() {
        let attributes = "text-anchor=\"end\" font-size=\"12\" fill=\"#666\"";
        text(svg, right(number), top, attributes, name);
    }
    for (number, row) in rows.iter().enumerate() {
        let y = top + TABLE_ROW * (count(number) + 1.0);
        line(svg, (MARGIN, y - 16.0), (WIDTH - MARGIN, y - 16.0), RULE);
        text(svg, LEFT - 10.0, y, "text-anchor=\"end\"", &row.label);
        let counts = [
            row.exits,
            row.trace.user_exits_total(),
            row.nested_page_faults,
            row.memory.monitor_rss_kib,
            row.memory.guest_rss_kib,
            row.memory.threads,
        ];
        for (number, count) in counts.iter().enumerate() {
            text(
                svg,
                right(number),
                y,
                "text-anchor=\"end\"",
                &count.to_string(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{io_set, report, row};

    /// If it fails, the picture is no XML, refers to something outside, or lacks a row.
    #[test]
    fn the_picture_is_whole_and_alone() {
        let mut report = report(vec![row("a", 50.0), row("b", 120.0)]);
        report.io.push(io_set(2.0, 1.0));
        let svg = render(&report);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("&lt;a>") && svg.contains("init 120.0"));
        assert!(svg.contains("virtio-blk") && svg.contains(">2.00<"));
        assert!(!svg.contains("href") && !svg.contains("NaN"));
        for line in svg
            .lines()
            .skip(1)
            .filter(|line| !line.starts_with("</svg"))
        {
            assert!(line.ends_with("/>") || line.ends_with("</text>"), "{line}");
        }
    }

    /// If it fails, a report without rows divides by nothing or loops.
    #[test]
    fn nothing_can_be_drawn() {
        let mut report = report(Vec::new());
        assert!(render(&report).contains("</svg>"));
        report.lab = None;
        assert!(render(&report).contains("</svg>"));
    }
}
