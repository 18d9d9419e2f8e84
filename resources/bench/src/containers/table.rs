//! Containers as Markdown.

use std::fmt::Write as _;

use crate::io::jobs::float;
use crate::report::Containers;
use crate::table::grid;

/// The figures, and the commands.
pub fn render(containers: &Containers) -> String {
    let header = ["virtual ms from process start", "first output", "end"];
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    lines.extend(containers.rows.iter().map(|row| {
        let whole = row
            .whole_ms
            .map_or("–".into(), |figure| format!("{:.1}", figure.median));
        vec![
            row.label.clone(),
            format!("{:.1}", row.first_output_ms.median),
            whole,
        ]
    }));
    let mut text = grid(&lines);
    text.push('\n');
    for row in &containers.rows {
        let _ = writeln!(text, "- {}: `{}`", row.label, row.command);
    }
    let (idle, image) = (&containers.idle, &containers.image);
    let mib = |kib: u64| format!("{:.1}", float(kib) / 1024.0);
    let header = [
        "MiB for each idle container",
        "all in",
        "guest",
        "monitor",
        "shim",
    ];
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    lines.push(vec![
        format!("of {}", idle.containers),
        mib(idle.host_kib),
        mib(idle.guest_kib),
        mib(idle.monitor_kib),
        mib(idle.shim_kib),
    ]);
    let _ = writeln!(text, "\n{}", grid(&lines));
    let _ = writeln!(
        text,
        "The image: {} KiB as tar, {} KiB as EROFS, {} KiB beside it, {} KiB of blobs. Its pages in \
         memory, for all containers: {} KiB, mapped {} KiB.",
        image.files_kib,
        image.erofs_kib,
        image.beside_kib,
        image.blobs_kib,
        idle.image_pss_kib,
        idle.image_rss_kib,
    );
    text
}
