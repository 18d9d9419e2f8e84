//! Work inside.

use std::io::{self, Read};
use std::net::TcpListener;
use std::thread;

use super::report::Cell;
use super::side::{Program, Side};
use super::{Cells, CompareError, Measure};

/// What [`work`] gives.
pub const ROWS: &[&str] = &[
    "cpu", "syscall", "process", "memory", "file", "write", "read",
];
/// Milliseconds of each kind.
const TIME: &str = "400";

/// Has the probe work, several times.
pub fn work(measure: &Measure<'_>) -> Result<Cells, CompareError> {
    let mut figures: Vec<Vec<f64>> = vec![Vec::new(); ROWS.len()];
    for _ in 0..measure.runs {
        let done = measure
            .subject
            .run(&[], Program::Probe(&["work", "/", TIME]))?;
        for (name, numbers) in ROWS.iter().zip(&mut figures) {
            let number = done.number(name);
            let number = number.ok_or_else(|| CompareError::Container(done.excuse()))?;
            numbers.push(number * scale(name));
        }
    }
    Ok(ROWS
        .iter()
        .copied()
        .zip(figures.into_iter().map(Cell::spread))
        .collect())
}

/// From what the probe counts to the row's unit.
fn scale(name: &str) -> f64 {
    match name {
        // A round; the unit is a thousand.
        "cpu" => 1e-3,
        // Hundreds; the unit is a thousand.
        "syscall" => 0.1,
        _ => 1.0,
    }
}

/// Has the probe send to a port of ours.
pub fn network(measure: &Measure<'_>) -> Result<Cells, CompareError> {
    if measure.subject.side != Side::Vm {
        let why = "--isolation=process has only --network none";
        return Ok(vec![("network", Cell::missing(why))]);
    }
    let io = |source| CompareError::Io {
        action: "listen for the guest",
        source,
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(io)?;
    let port = listener.local_addr().map_err(io)?.port().to_string();
    // It goes with this process, or at the end of the last run.
    thread::spawn(move || {
        for stream in listener.incoming() {
            // What a guest sends is read and forgotten.
            let _ = stream.and_then(|mut stream| io::copy(&mut stream.by_ref(), &mut io::sink()));
        }
    });
    let mut numbers = Vec::new();
    for _ in 0..measure.runs {
        let options = ["--network", "passt"];
        let done = measure
            .subject
            .run(&options, Program::Probe(&["send", &port, TIME]))?;
        let number = done.number("network");
        numbers.push(number.ok_or_else(|| CompareError::Container(done.excuse()))?);
    }
    Ok(vec![("network", Cell::spread(numbers))])
}
