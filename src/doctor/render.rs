//! A report as text for people.

use std::io::{self, Write};

use super::{Check, Report, State};

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

impl Report {
    /// Writes a line for each check and one for the outcome.
    ///
    /// # Errors
    /// What `out` returns.
    pub fn write_text(&self, out: &mut impl Write, colour: bool) -> io::Result<()> {
        for check in &self.checks {
            write_check(check, out, colour)?;
        }
        let outcome = if self.can_run_linux { "can" } else { "cannot" };
        writeln!(out, "This host {outcome} run Linux guests.")
    }

    /// Writes one line for the first thing without which no guest runs, or nothing if all is there.
    ///
    /// # Errors
    /// What `out` returns.
    pub fn write_obstacle(&self, out: &mut impl Write) -> io::Result<()> {
        let is_obstacle = |check: &&Check| check.required && check.state == State::Missing;
        let Some(check) = self.checks.iter().find(is_obstacle) else {
            return Ok(());
        };
        write!(out, "{}: {}", check.what, check.detail)?;
        write_mend(check, out)
    }
}

fn write_check(check: &Check, out: &mut impl Write, colour: bool) -> io::Result<()> {
    let (word, tint) = match check.state {
        State::Ok => ("ok", GREEN),
        State::Limited => ("limited", YELLOW),
        State::Missing if check.required => ("missing", RED),
        State::Missing => ("missing", YELLOW),
    };
    let (on, off) = if colour { (tint, PLAIN) } else { ("", "") };
    write!(out, "{:<24}{on}{word:<9}{off}{}", check.what, check.detail)?;
    write_mend(check, out)
}

/// What helps, if anything does, and the end of the line.
fn write_mend(check: &Check, out: &mut impl Write) -> io::Result<()> {
    match &check.mend {
        Some(mend) => writeln!(out, "; mend: {mend}"),
        None => writeln!(out),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Finding;
    use super::*;

    fn text(colour: bool) -> String {
        let report = Report {
            schema: 1,
            can_run_linux: false,
            elapsed_us: 0,
            checks: vec![
                Check::required("kvm", "KVM", Finding::missing("gone").mended_by("load it")),
                Check::optional("tun", "tap networking", Finding::ok("there")),
            ],
        };
        let mut out = Vec::new();
        report.write_text(&mut out, colour).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// If this fails, the columns or the command that mends are not where people look.
    #[test]
    fn each_check_is_a_line() {
        assert_eq!(
            text(false),
            "KVM                     missing  gone; mend: load it\n\
             tap networking          ok       there\n\
             This host cannot run Linux guests.\n"
        );
    }

    /// If this fails, a file gets escape codes, or a terminal none.
    #[test]
    fn colour_only_where_asked() {
        assert!(!text(false).contains('\x1b'));
        assert!(text(true).contains("\x1b[31mmissing  \x1b[0m"));
    }
}
