//! The report as one HTML file: charts and all, nothing from elsewhere, light and dark.

use super::report::{Better, Cell, Group, Report, Row, digits};
use super::text::{best, describe};
use super::{chart, stack, verdict};

const STYLE: &str = "\
:root{color-scheme:light dark;--page:#fcfcfb;--ink:#1c1c1a;--soft:#6b6a66;--line:#dddcd8;--card:#fff;\
--runc:#eb6834;--crun:#1baf7a;--vm:#2a78d6;--good:#0b6b3a}\
@media(prefers-color-scheme:dark){:root{--page:#161615;--ink:#ecebe7;--soft:#a2a19b;--line:#3a3a37;\
--card:#1f1f1d;--runc:#d95926;--crun:#199e70;--vm:#3987e5;--good:#5cc98f}}\
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:76rem;background:var(--page);color:var(--ink);\
font:15px/1.5 system-ui,sans-serif}\
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}h2{font-size:1.15rem;margin:2.5rem 0 .75rem}\
p{margin:.25rem 0;color:var(--soft)}.verdict{font-size:1.15rem;color:var(--ink);margin:.5rem 0 1rem}\
.large{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(17rem,100%),1fr));gap:1rem;margin:0 0 1.5rem}\
.large div{padding:1rem;background:var(--card);border:1px solid var(--line);border-top:4px solid \
var(--vm);border-radius:6px}.large b{display:block;font-size:2rem;line-height:1.2}\
.large small{display:block;color:var(--soft)}\
.legend span{display:inline-block;margin-right:1rem}.legend i{display:inline-block;width:.8em;\
height:.8em;border-radius:2px;margin-right:.4em}i.runc{background:var(--runc)}\
i.crun{background:var(--crun)}i.vm{background:var(--vm)}\
.part0{fill:#6d4fc2;background:#6d4fc2}.part1{fill:#a58be0;background:#a58be0}\
.part2{fill:#d0a13a;background:#d0a13a}.part3{fill:var(--soft);background:var(--soft)}\
p.flat{color:var(--ink);font-size:13.5px}code{font:13px ui-monospace,monospace}\
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(22rem,100%),1fr));gap:1rem}\
figure{margin:0;padding:.75rem 1rem;background:var(--card);border:1px solid var(--line);\
border-radius:6px}\
figcaption{font-weight:600}figcaption span{font-weight:400;color:var(--soft)}\
svg{display:block;width:100%;height:auto;margin:.4rem 0 .2rem}figure p{font-size:12.5px}\
text{font-size:12px;fill:var(--ink)}.none{fill:var(--soft);font-style:italic}\
.axis{stroke:var(--line)}.spread{stroke:var(--ink);stroke-width:1.5;opacity:.75}\
rect.runc{fill:var(--runc)}rect.crun{fill:var(--crun)}rect.vm{fill:var(--vm)}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13.5px}\
th,td{text-align:left;vertical-align:top;padding:.35rem .75rem .35rem 0;\
border-bottom:1px solid var(--line)}td{font-variant-numeric:tabular-nums}\
th small,td small{display:block;font-weight:400;color:var(--soft)}td.best{color:var(--good);\
font-weight:600}tr.group th{padding-top:1.25rem}\
@media(max-width:40rem){table{table-layout:fixed}th,td{overflow-wrap:anywhere;padding-right:.5rem}\
th small{display:none}}";

/// The page.
pub fn render(report: &Report) -> String {
    let title = format!("{}: process and VM, side by side", report.image.name);
    let title = escape(&title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    page.push_str(&verdict(report));
    page.push_str(&head(report));
    for group in Group::ALL {
        page.push_str(&charts(report, group));
    }
    page.push_str(&table(report));
    page.push_str("</body>\n</html>\n");
    page
}

/// What it comes to, before everything else.
fn verdict(report: &Report) -> String {
    let sentence = verdict::sentence(report).map_or_else(String::new, |text| {
        format!("<p class=\"verdict\">{}</p>\n", escape(&text))
    });
    let cards: String = verdict::numbers(report)
        .iter()
        .map(|number| {
            format!(
                "<div><b>{}</b>{}<small>{}</small></div>\n",
                escape(&number.vm),
                number.about,
                escape(&number.process)
            )
        })
        .collect();
    match cards.as_str() {
        "" => sentence,
        _ => format!("{sentence}<div class=\"large\">\n{cards}</div>\n"),
    }
}

fn head(report: &Report) -> String {
    let (image, host) = (&report.image, &report.host);
    let lab = match host.lab {
        true => {
            " It is the lab, an emulated machine 10 to 30 times slower than hardware: compare the \
             columns, and take no figure for a machine's."
        }
        false => "",
    };
    let mut text = format!(
        "<p>Measured by Cofferdam {} at {}, {} times each, on {} ({} CPUs, {} MiB, Linux {}).{lab}</p>\n\
         <p>The image has {} layer(s): {} KiB as they came, {} KiB as EROFS images.</p>\n",
        escape(&report.version),
        escape(&report.time),
        report.runs,
        escape(&host.cpu),
        host.cpus,
        host.memory_kib / 1024,
        escape(&host.kernel),
        image.layers,
        digits(image.blobs_bytes as f64 / 1024.0),
        digits(image.erofs_bytes as f64 / 1024.0),
    );
    for column in &report.columns {
        text.push_str(&format!(
            "<p class=\"legend\"><span><i class=\"{}\"></i>{}</span></p>\n",
            escape(&column.id),
            escape(&describe(column))
        ));
    }
    text.push_str(
        "<p>A line across a bar goes from the least to the most that was measured.</p>\n",
    );
    text
}

/// The rows of a group that have numbers.
fn charts(report: &Report, group: Group) -> String {
    let stacked = match group {
        Group::Size => stack::render(report),
        _ => None,
    };
    let is_stacked = stacked.is_some();
    let mut text = stacked.unwrap_or_default();
    for row in report.group(group) {
        if is_stacked && stack::is_part(&row.id) {
            continue;
        }
        let Some(svg) = chart::render(report, row) else {
            continue;
        };
        text.push_str(&format!(
            "<figure id=\"{}\">\n<figcaption>{} <span>{}{}</span></figcaption>\n{svg}<p>{}</p>\n\
             </figure>\n",
            escape(&row.id),
            escape(&row.title),
            escape(&row.unit),
            match row.better {
                Some(Better::Less) => ", less is better",
                Some(Better::More) => ", more is better",
                None => "",
            },
            escape(&row.note),
        ));
    }
    match text.as_str() {
        "" => text,
        _ => format!(
            "<h2>{}</h2>\n<div class=\"grid\">\n{text}</div>\n",
            group.title()
        ),
    }
}

/// All rows with all figures.
fn table(report: &Report) -> String {
    let mut text =
        "<h2>All figures</h2>\n<div class=\"scroll\">\n<table>\n<thead><tr><th></th>".to_owned();
    for column in &report.columns {
        text.push_str(&format!("<th>{}</th>", escape(&column.label)));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for group in Group::ALL {
        let span = report.columns.len() + 1;
        text.push_str(&format!(
            "<tr class=\"group\"><th colspan=\"{span}\">{}</th></tr>\n",
            group.title()
        ));
        for row in report.group(group) {
            text.push_str(&line(report, row));
        }
    }
    text.push_str("</tbody>\n</table>\n</div>\n");
    text
}

fn line(report: &Report, row: &Row) -> String {
    let unit = match row.unit.as_str() {
        "" => String::new(),
        unit => format!(", {unit}"),
    };
    let mut text = format!(
        "<tr><th scope=\"row\">{}{}<small>{}</small></th>",
        escape(&row.title),
        escape(&unit),
        escape(&row.note)
    );
    let best = best(report, row);
    for (at, (_, cell)) in report.cells(row).enumerate() {
        let class = if best == Some(at) {
            " class=\"best\""
        } else {
            ""
        };
        text.push_str(&format!("<td{class}>{}</td>", show(cell)));
    }
    text.push_str("</tr>\n");
    text
}

fn show(cell: &Cell) -> String {
    match cell {
        Cell::Spread { median, min, max } => format!(
            "{}<small>{} to {}</small>",
            digits(*median),
            digits(*min),
            digits(*max)
        ),
        Cell::Number { value } => digits(*value),
        Cell::Text { text } => escape(text),
        Cell::Missing { not_measured } => {
            format!("–<small>not measured: {}</small>", escape(not_measured))
        }
    }
}

/// Text that is no markup: images have names, and guests say words.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::example;

    /// If it fails, an image's name or a guest's word is run by the reader's browser, or the page wants
    /// something from elsewhere.
    #[test]
    fn the_page_is_its_own_and_tame() {
        let page = render(&example());
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;"), "{page}");
        let (verdict, table) = (page.find("class=\"large\""), page.find("<table>"));
        assert!(verdict.unwrap() < table.unwrap(), "{page}");
        for column in ["runc", "crun", "vm"] {
            assert!(
                page.contains(&format!("<i class=\"{column}\"></i>")),
                "{column}"
            );
        }
        for foreign in ["http:", "https:", "url(", "src=", "@import", "<link"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }
}
