//! What all the figures come to: a sentence, and three numbers that say most.

use super::report::{Cell, Report, digits};

/// One of the numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number {
    /// Of the VM, large.
    pub vm: String,
    /// What it is about.
    pub about: &'static str,
    /// The same as a process.
    pub process: String,
}

/// The three, as far as they were measured.
pub fn numbers(report: &Report) -> Vec<Number> {
    [calls(report), panic(report), start(report)]
        .into_iter()
        .flatten()
        .collect()
}

/// The sentence; none where nothing was measured in a VM and as a process.
pub fn sentence(report: &Report) -> Option<String> {
    let (vm, process) = (
        value(report, "host_calls", VM)?,
        least(report, "host_calls")?,
    );
    let reach = match vm {
        0.0 => "none of the host's system calls is in reach".to_owned(),
        some => format!("{} of the host's system calls are in reach", digits(some)),
    };
    let price = match ratio(report) {
        Some((times, label)) if times >= 1.0 => {
            format!(
                "; its start takes {} times as long as that of the {label}",
                digits(times)
            )
        }
        Some((_, label)) => format!("; it starts sooner than the {label}"),
        None => String::new(),
    };
    Some(format!(
        "In a VM {reach}, as a process {}{price}.",
        digits(process.value)
    ))
}

const VM: &str = "vm";

fn cell<'a>(report: &'a Report, row: &str, column: &str) -> Option<&'a Cell> {
    let mut rows = report.rows.iter();
    rows.find(|one| one.id == row)?.cells.get(column)
}

fn value(report: &Report, row: &str, column: &str) -> Option<f64> {
    cell(report, row, column)?.value()
}

/// Of a way to run it as a process.
struct Process<'a> {
    value: f64,
    label: &'a str,
}

/// The best that a process has in a row, where less is better: a VM is not to look good beside the worst.
fn least<'a>(report: &'a Report, row: &str) -> Option<Process<'a>> {
    let columns = report.columns.iter().filter(|column| column.id != VM);
    let all = columns.filter_map(|column| {
        Some(Process {
            value: value(report, row, &column.id)?,
            label: &column.label,
        })
    });
    all.min_by(|a, b| a.value.total_cmp(&b.value))
}

fn calls(report: &Report) -> Option<Number> {
    let process = least(report, "host_calls")?;
    Some(Number {
        vm: digits(value(report, "host_calls", VM)?),
        about: "host's system calls in reach",
        process: format!("{}: {}", process.label, digits(process.value)),
    })
}

fn panic(report: &Report) -> Option<Number> {
    let is_compared = report.columns.iter().any(|column| column.id != VM);
    match cell(report, "panic", VM)? {
        // Only who was alive afterwards could say it.
        Cell::Text { text } if text.contains("the host runs on") => Some(Number {
            vm: "the host lives".into(),
            about: "when the container's kernel panics",
            process: match is_compared {
                true => "a process has the host's kernel: all would end".into(),
                false => "only its VM ends".into(),
            },
        }),
        _ => None,
    }
}

fn start(report: &Report) -> Option<Number> {
    let vm = value(report, "first_output", VM)?;
    let process = least(report, "first_output")?;
    Some(Number {
        vm: format!("{} ms", digits(vm)),
        about: match report.host.lab {
            true => "from start to first output, in the slow lab",
            false => "from start to first output",
        },
        process: format!("{}: {} ms", process.label, digits(process.value)),
    })
}

/// How many times as long the start of a VM takes, and as that of which process.
fn ratio(report: &Report) -> Option<(f64, &str)> {
    let process = least(report, "first_output").filter(|process| process.value > 0.0)?;
    let vm = value(report, "first_output", VM)?;
    Some((vm / process.value, process.label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::tests::example;

    /// If it fails, the report opens with something else than was measured, or says it of what was not.
    #[test]
    fn the_verdict_is_what_was_measured() {
        let mut report = example();
        assert_eq!(
            sentence(&report).unwrap(),
            "In a VM none of the host's system calls is in reach, as a process 350; its start takes 2.67 \
             times as long as that of the process (runc)."
        );
        let large = |report: &Report| -> Vec<String> {
            numbers(report)
                .into_iter()
                .map(|number| number.vm)
                .collect()
        };
        assert_eq!(large(&report), ["0", "the host lives", "2,400 ms"]);
        assert_eq!(numbers(&report)[0].process, "process (runc): 350");
        // Beside the fastest process, not the first.
        let start = report.rows.iter_mut().find(|row| row.id == "first_output");
        start
            .unwrap()
            .cells
            .insert("crun".into(), Cell::number(100.0));
        assert!(
            sentence(&report)
                .unwrap()
                .contains("24 times as long as that of the process (crun)")
        );
        // Without a process there is nothing to compare.
        let mut alone = report.clone();
        alone.columns.retain(|column| column.id == "vm");
        assert_eq!(
            (sentence(&alone), large(&alone)),
            (None, vec!["the host lives".to_owned()])
        );
        assert_eq!(numbers(&alone)[0].process, "only its VM ends");
        report.rows.retain(|row| row.id == "panic");
        for row in &mut report.rows {
            row.cells.insert("vm".into(), Cell::missing("no time"));
        }
        assert_eq!((sentence(&report), numbers(&report)), (None, Vec::new()));
    }
}
