//! The report of `cofferdam compare` in a real browser.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cofferdam-container");
const REPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/compare.json");

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("cofferdam-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(mut command: Command) -> Output {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; resources/setup tests installs what is missing")
    });
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

fn browse(dir: &Path, page: &Path, args: &[&str]) -> Output {
    let mut command = Command::new("chromium");
    // Its own sandbox is not for root; what it opens here is ours.
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
    ]);
    command.arg(format!("--user-data-dir={}", dir.join("profile").display()));
    // It makes its crash handler's and others' files there.
    command.env("HOME", dir).args(args);
    command.arg(format!("file://{}", page.display()));
    run(command)
}

/// How often each colour is in a picture.
fn colours(path: &Path) -> HashMap<[u8; 3], usize> {
    let decoder = png::Decoder::new(std::io::BufReader::new(File::open(path).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    assert_eq!(info.bit_depth, png::BitDepth::Eight);
    let samples = info.color_type.samples();
    let mut colours = HashMap::new();
    for pixel in bytes[..info.buffer_size()].chunks_exact(samples) {
        *colours.entry([pixel[0], pixel[1], pixel[2]]).or_default() += 1;
    }
    colours
}

/// If it fails, the report does not say what was measured, or shows nothing, in a browser.
#[test]
fn a_browser_shows_the_report() {
    let dir = Dir::new("report");
    let (page, picture) = (dir.0.join("report.html"), dir.0.join("report.png"));
    let mut compare = Command::new(PROGRAM);
    compare
        .args(["compare", "--from", REPORT, "--html"])
        .arg(&page);
    let table = run(compare).stdout;
    assert!(String::from_utf8(table).unwrap().contains("6.12.48"));

    let shown = browse(&dir.0, &page, &["--dump-dom"]).stdout;
    let shown = String::from_utf8(shown).unwrap();
    for part in [
        "VM (Cofferdam)",
        "start to first output",
        "2,400",
        "6.12.48",
        "it would be the host's kernel",
        "its VM ends, exit code 137",
        "busybox&lt;script&gt;",
    ] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    // As the browser understood it, not as it is written.
    assert_eq!(shown.matches("<rect").count(), 7, "{shown}");
    assert!(!shown.contains("<script"), "{shown}");

    let screenshot = format!("--screenshot={}", picture.display());
    browse(&dir.0, &page, &[&screenshot, "--window-size=1200,1800"]);
    let colours = colours(&picture);
    // Bars of each column, on the page's background, in words.
    for bar in [[0xeb, 0x68, 0x34], [0x1b, 0xaf, 0x7a], [0x2a, 0x78, 0xd6]] {
        let pixels = colours.get(&bar).copied().unwrap_or(0);
        assert!(pixels > 1000, "{bar:x?}: {pixels} pixels");
    }
    assert!(colours[&[0xfc, 0xfc, 0xfb]] > 500_000);
    assert!(colours[&[0x1c, 0x1c, 0x1a]] > 100, "there are no words");
}
