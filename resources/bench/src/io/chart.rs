//! The sets as a picture: how many times as fast as the peer Cofferdam is at each job.

use crate::report::IoSet;
use crate::rows::DEFAULT_ROW;
use crate::svg::{MARGIN, RULE, SMALL, WIDTH, count, line, rect, text};

/// Where the scale begins.
const LEFT: f64 = 330.0;
/// Room for the figure behind the longest bar.
const RIGHT: f64 = 60.0;
/// Height of the head, of a set's name, and of a job.
const HEAD: f64 = 64.0;
const TITLE: f64 = 26.0;
const ROW: f64 = 18.0;
const BAR: f64 = 12.0;
/// Faster, and slower.
const COLOURS: [&str; 2] = ["#4477aa", "#ee6677"];

/// Draws below `top`; returns where the picture ends. Bars begin at the peer's speed, and each step
/// of the scale is twice the one before.
pub fn draw(svg: &mut String, sets: &[IoSet], top: f64) -> f64 {
    let what = "Input and output: times as fast as QEMU microvm";
    text(
        svg,
        MARGIN,
        top + 10.0,
        "font-size=\"18\" font-weight=\"bold\"",
        what,
    );
    let note = "Cofferdam as it comes against the peer's device as it comes, in counted time; each \
                step of the scale is a factor of two";
    text(svg, MARGIN, top + 30.0, "fill=\"#666\"", note);
    let speeds: Vec<_> = sets.iter().map(speeds).collect();
    let (least, most) = range(&speeds);
    let scale = (WIDTH - LEFT - RIGHT - MARGIN) / (most - least);
    let x = |speed: f64| LEFT + (speed.log2() - least) * scale;
    let bottom = top + HEAD + height(&speeds);
    let mut step = least;
    while step <= most {
        let at = x(step.exp2());
        line(svg, (at, top + HEAD), (at, bottom), RULE);
        let attributes = format!("text-anchor=\"middle\" {SMALL}");
        text(
            svg,
            at,
            top + HEAD - 8.0,
            &attributes,
            &format!("{}", step.exp2()),
        );
        step += 1.0;
    }
    line(svg, (x(1.0), top + HEAD), (x(1.0), bottom), "#888");
    let mut y = top + HEAD;
    for (set, speeds) in sets.iter().zip(&speeds) {
        text(svg, MARGIN, y + 18.0, "font-weight=\"bold\"", &set.title);
        y += TITLE;
        for (label, speed) in speeds {
            bar(svg, label, *speed, y, (x(1.0), x(*speed)));
            y += ROW;
        }
    }
    bottom + MARGIN
}

/// The jobs of a set whose speed is known, by their names.
fn speeds(set: &IoSet) -> Vec<(&str, f64)> {
    let ours = set.rows.iter().find(|row| row.id == DEFAULT_ROW);
    let jobs = ours.map_or(&[][..], |row| &row.jobs).iter();
    jobs.filter_map(|job| {
        let speed = set.speed(DEFAULT_ROW, &job.id)?;
        (speed.is_finite() && speed > 0.0).then_some((job.label.as_str(), speed))
    })
    .collect()
}

/// The powers of two that the scale goes from and to; 1 and 2 are always on it.
fn range(speeds: &[Vec<(&str, f64)>]) -> (f64, f64) {
    let powers = speeds.iter().flatten().map(|(_, speed)| speed.log2());
    let (least, most) = powers.fold((0.0_f64, 1.0_f64), |(least, most), power| {
        (least.min(power), most.max(power))
    });
    (least.floor(), most.ceil())
}

fn height(speeds: &[Vec<(&str, f64)>]) -> f64 {
    let heights = speeds.iter().map(|set| TITLE + ROW * count(set.len()));
    heights.sum()
}

/// A job from the peer's speed to ours, which is written behind it.
fn bar(svg: &mut String, label: &str, speed: f64, y: f64, (one, ours): (f64, f64)) {
    let baseline = y + 10.0;
    let attributes = "text-anchor=\"end\" font-size=\"12\"";
    text(svg, LEFT - 10.0, baseline, attributes, label);
    let (from, to) = (one.min(ours), one.max(ours));
    let colour = COLOURS[usize::from(speed < 1.0)];
    rect(svg, from, y, (to - from, BAR), colour);
    let attributes = "font-size=\"12\" font-weight=\"bold\"";
    text(svg, to + 6.0, baseline, attributes, &format!("{speed:.2}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::io_set;

    /// If it fails, a job that is slower than the peer's looks faster, or lies outside.
    #[test]
    fn the_scale_holds_all_speeds() {
        assert_eq!(range(&[]), (0.0, 1.0));
        let (slow, fast) = (io_set(0.3, 1.0), io_set(9.0, 1.0));
        assert_eq!(range(&[speeds(&slow), speeds(&fast)]), (-2.0, 4.0));
        let mut svg = String::new();
        let bottom = draw(&mut svg, &[slow, fast], 100.0);
        assert!(svg.contains(COLOURS[0]) && svg.contains(COLOURS[1]));
        assert!(svg.contains(">0.30<") && svg.contains(">9.00<"));
        assert!(bottom > 100.0 + ROW * 32.0);
        assert!(!svg.contains("NaN"));
    }

    /// If it fails, a job that took no time, or a set without a peer, spoils the picture.
    #[test]
    fn what_has_no_speed_is_left_out() {
        let mut set = io_set(2.0, 1.0);
        set.rows[0].jobs[0].time_ms.median = 0.0;
        assert_eq!(speeds(&set).len(), set.rows[0].jobs.len() - 1);
        set.rows.truncate(1);
        assert_eq!(speeds(&set), []);
    }
}
