//! PID 1 of a container's VM: makes the guest ready, sets containers up as the OCI runtime
//! specification has it, and runs them as the host says by ttrpc over vsock.
//!
//! Under the name `cofferdam-setup` it is the process that becomes a container's.

mod archive;
mod boot;
mod bpf;
mod cgroup;
mod channel;
mod clock;
mod containers;
mod device_rules;
mod error;
mod grow;
mod names;
mod netlink;
mod network;
mod power;
mod processes;
mod rootfs;
mod server;
mod service;
mod setup;
mod spawn;
mod spec;
mod streams;

use std::os::fd::AsFd;
use std::process::exit;
use std::sync::{Arc, OnceLock};

use cofferdam_agent_protocol::service::create_agent;
use cofferdam_agent_protocol::{CONTROL_PORT, STREAM_PORT};
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use containers::Containers;
use error::{Context, Result};
use server::{Listener, greet, serve};
use service::{Service, uptime_us};

/// What the main loop waits for, besides containers, whose keys count from 1.
const CHILDREN: u64 = u64::MAX;
const CALLS: u64 = u64::MAX - 1;
const STREAMS: u64 = u64::MAX - 2;

fn main() {
    if std::env::args().next().as_deref() == Some(spawn::SETUP) {
        setup::main();
    }
    let started_us = uptime_us();
    if std::process::id() != 1 {
        eprintln!("cofferdam-agent: this is PID 1 of a container's VM; see docs/agent.md");
        exit(2);
    }
    let Err(error) = run(started_us);
    // The kernel panics now, and so the monitor says that the guest did; why is on the console.
    eprintln!("cofferdam-agent: {}", error.text());
    exit(1);
}

fn run(started_us: u64) -> Result<std::convert::Infallible> {
    // In this thread and all that it starts.
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().context(|| "block SIGCHLD".into())?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let children = SignalFd::with_flags(&children, flags).context(|| "wait for SIGCHLD".into())?;

    boot::run()?;
    let containers = Arc::new(Containers::new()?);
    let (calls, streams) = (Listener::new(CONTROL_PORT)?, Listener::new(STREAM_PORT)?);
    for (fd, key) in [
        (children.as_fd(), CHILDREN),
        (calls.0.as_fd(), CALLS),
        (streams.0.as_fd(), STREAMS),
    ] {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, key);
        containers
            .epoll
            .add(fd, event)
            .context(|| "wait for the host".into())?;
    }
    let ready_us = Arc::new(OnceLock::new());
    let methods = Arc::new(create_agent(Arc::new(Service {
        containers: containers.clone(),
        started_us,
        ready_us: ready_us.clone(),
        network: std::sync::Mutex::default(),
    })));
    let _ = ready_us.set(uptime_us());

    let mut events = [EpollEvent::empty(); 16];
    loop {
        let count = match containers.epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            result => result.context(|| "wait for events".into())?,
        };
        for event in events.iter().take(count) {
            match event.data() {
                CHILDREN => {
                    while let Ok(Some(_)) = children.read_signal() {}
                    containers.reap();
                }
                CALLS => {
                    while let Some(connection) = calls.accept() {
                        serve(connection, methods.clone());
                    }
                }
                STREAMS => {
                    while let Some(connection) = streams.accept() {
                        greet(connection, containers.clone());
                    }
                }
                key => containers.memory_event(key),
            }
        }
    }
}
