//! The report as a picture: bars for the stages of a boot, and the counts below. One file that
//! refers to nothing outside itself.

use std::fmt::Write as _;

use crate::report::{Lab, Row};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// Where the bars begin, and the columns of the table.
const LEFT: f64 = 210.0;
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

/// Draws the boots.
pub fn render(lab: &Lab) -> String {
    let rows = &lab.rows;
    let bars_end = HEAD + BAR_ROW * count(rows.len());
    let table_top = bars_end + 62.0;
    let height = table_top + TABLE_ROW * (count(rows.len()) + 1.0) + 46.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" \
         font-size=\"13\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    text(
        &mut svg,
        MARGIN,
        34.0,
        "font-size=\"18\" font-weight=\"bold\"",
        "From process start to init",
    );
    let memory = lab.guest_memory_mib;
    let what = format!(
        "1 vCPU, {memory} MiB, the same kernel and initramfs, quiet console; virtual milliseconds, \
         which count instructions and are no hardware's"
    );
    text(&mut svg, MARGIN, 54.0, "fill=\"#666\"", &what);
    legend(&mut svg);
    let longest = rows.iter().map(end).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - RIGHT - MARGIN) / longest;
    axis(&mut svg, longest, scale, bars_end);
    for (number, row) in rows.iter().enumerate() {
        bar(&mut svg, row, HEAD + BAR_ROW * count(number), scale);
    }
    table(&mut svg, rows, table_top);
    let note = "Exits and faults until init's line is out; memory while the guest idles, guest \
                memory told apart by KVM's memory slots.";
    text(
        &mut svg,
        MARGIN,
        height - 18.0,
        "font-size=\"11\" fill=\"#666\"",
        note,
    );
    svg.push_str("</svg>\n");
    svg
}

/// A small number as a coordinate.
fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(0.0, f64::from)
}

/// When the last stage of the row ends.
fn end(row: &Row) -> f64 {
    row.stages.exit_ms.unwrap_or(row.stages.init_ms).median
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>"
    );
}

fn rect(svg: &mut String, x: f64, y: f64, size: (f64, f64), fill: &str) {
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
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"#ddd\"/>",
            HEAD - 8.0
        );
        let attributes = "text-anchor=\"middle\" font-size=\"11\" fill=\"#666\"";
        text(svg, x, bottom + 15.0, attributes, &format!("{time}"));
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
        let _ = writeln!(
            svg,
            "<line x1=\"{MARGIN}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>",
            y - 16.0,
            WIDTH - MARGIN
        );
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
    use crate::report::tests::{lab, row};

    /// If it fails, the picture is no XML, refers to something outside, or lacks a row.
    #[test]
    fn the_picture_is_whole_and_alone() {
        let svg = render(&lab(vec![row("a", 50.0), row("b", 120.0)]));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("&lt;a>") && svg.contains("init 120.0"));
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
        assert!(render(&lab(Vec::new())).contains("</svg>"));
    }
}
