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
        process(report, "host_calls")?,
    );
    let reach = match vm {
        0.0 => "none of the host's system calls is in reach".to_owned(),
        some => format!("{} of the host's system calls are in reach", digits(some)),
    };
    let price = match ratio(report) {
        Some(times) if times >= 1.0 => format!("; it starts in {} times the time", digits(times)),
        Some(_) => "; it starts sooner".into(),
        None => String::new(),
    };
    Some(format!(
        "In a VM {reach}, as a process {}{price}.",
        digits(process)
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

/// Of the first way to run it as a process that has one.
fn process(report: &Report, row: &str) -> Option<f64> {
    let mut columns = report.columns.iter().filter(|column| column.id != VM);
    columns.find_map(|column| value(report, row, &column.id))
}

fn calls(report: &Report) -> Option<Number> {
    Some(Number {
        vm: digits(value(report, "host_calls", VM)?),
        about: "host's system calls in reach",
        process: format!("as a process {}", digits(process(report, "host_calls")?)),
    })
}

fn panic(report: &Report) -> Option<Number> {
    match cell(report, "panic", VM)? {
        // Only who was alive afterwards could say it.
        Cell::Text { text } if text.contains("the host runs on") => Some(Number {
            vm: "all but it".into(),
            about: "survives when its kernel panics",
            process: "as a process nothing: the kernel is the host's".into(),
        }),
        _ => None,
    }
}

fn start(report: &Report) -> Option<Number> {
    let vm = value(report, "first_output", VM)?;
    let process = process(report, "first_output")?;
    Some(Number {
        vm: format!("{} ms", digits(vm)),
        about: "from start to first output",
        process: format!("as a process {} ms", digits(process)),
    })
}

/// How many times as long the start of a VM takes.
fn ratio(report: &Report) -> Option<f64> {
    let process = process(report, "first_output").filter(|time| *time > 0.0)?;
    Some(value(report, "first_output", VM)? / process)
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
            "In a VM none of the host's system calls is in reach, as a process 350; it starts in 2.67 \
             times the time."
        );
        let all = numbers(&report);
        let large: Vec<&str> = all.iter().map(|number| number.vm.as_str()).collect();
        assert_eq!(large, ["0", "all but it", "2,400 ms"]);
        assert_eq!(all[0].process, "as a process 350");
        report.rows.retain(|row| row.id == "panic");
        for row in &mut report.rows {
            row.cells.insert("vm".into(), Cell::missing("no time"));
        }
        assert_eq!((sentence(&report), numbers(&report)), (None, Vec::new()));
    }
}
