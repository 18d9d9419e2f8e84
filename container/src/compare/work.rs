//! Work inside.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::thread;

use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use super::report::Cell;
use super::side::{Program, Side};
use super::{Cells, CompareError, Measure};
use crate::networks::{DEFAULT, Networks};
use crate::paths;

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

/// Has the probe send to a port of ours at the bridge, which containers of all kinds can have.
pub fn bridge(measure: &Measure<'_>) -> Result<Cells, CompareError> {
    let gateway = Networks::at(&paths::data()).find(DEFAULT)?.gateway;
    send(measure, "bridge", gateway, DEFAULT)
}

/// Has the probe send to a port of ours at the host's loopback.
pub fn passt(measure: &Measure<'_>) -> Result<Cells, CompareError> {
    if measure.subject.side != Side::Vm {
        let why = "--network passt is for VMs";
        return Ok(vec![("passt", Cell::missing(why))]);
    }
    send(measure, "passt", Ipv4Addr::LOCALHOST, "passt")
}

fn send(
    measure: &Measure<'_>,
    row: &'static str,
    address: Ipv4Addr,
    network: &str,
) -> Result<Cells, CompareError> {
    let io = |source| CompareError::Io {
        action: "listen for the container",
        source,
    };
    let listener = listen(address).map_err(io)?;
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
        let options = ["--network", network];
        let done = measure
            .subject
            .run(&options, Program::Probe(&["send", &port, TIME]))?;
        let number = done.number("network");
        numbers.push(number.ok_or_else(|| CompareError::Container(done.excuse()))?);
    }
    Ok(vec![(row, Cell::spread(numbers))])
}

/// Listens at some port of an address, which the host may not have yet: a bridge is there while a
/// container is on it.
fn listen(address: Ipv4Addr) -> io::Result<TcpListener> {
    let socket = net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    net::sockopt::set_ip_freebind(&socket, true)?;
    net::bind(&socket, &SocketAddrV4::new(address, 0))?;
    net::listen(&socket, 16)?;
    Ok(socket.into())
}
