//! `stop`, `kill`, `pause`, `wait`, `rm` and their kin.

use super::control::{ControlError, failed, request, start_shim};
use super::{Failed, Outcome, each, print, signal};
use crate::create;
use crate::shim::wire::{Frame, Request};
use crate::state::{Container, Containers, StateError};

/// Containers by name.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Names {
    /// Names or IDs
    #[arg(value_name = "CONTAINER", required = true)]
    names: Vec<String>,
}

/// Stop containers: a signal, and KILL after a while
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct StopArgs {
    /// Seconds until KILL [default: the container's --stop-timeout]
    #[arg(short, long, visible_alias = "time", value_name = "SECONDS")]
    timeout: Option<u32>,
    /// The signal [default: the container's, the image's, or TERM]
    #[arg(short, long, value_parser = signal)]
    signal: Option<i32>,
    /// Names or IDs
    #[arg(value_name = "CONTAINER", required = true)]
    names: Vec<String>,
}

/// Send a signal to containers
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct KillArgs {
    /// The signal
    #[arg(short, long, default_value = "KILL", value_parser = signal)]
    signal: i32,
    /// Names or IDs
    #[arg(value_name = "CONTAINER", required = true)]
    names: Vec<String>,
}

/// Remove containers
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RmArgs {
    /// Also those that run, which are killed
    #[arg(short, long)]
    force: bool,
    /// Their unnamed volumes, too; they always go with their container
    #[arg(short, long)]
    volumes: bool,
    /// Names or IDs
    #[arg(value_name = "CONTAINER", required = true)]
    names: Vec<String>,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
enum LifeError {
    #[error("container {0} is {1}; stop it, or remove it with --force")]
    Live(String, &'static str),
}

pub(super) fn stop(args: &StopArgs) -> Outcome {
    let containers = Containers::open()?;
    each(&args.names, |name| {
        stop_one(&containers.find(name)?, args)?;
        Ok(print(&format!("{name}\n"))?)
    })
}

pub(super) fn restart(args: &StopArgs) -> Outcome {
    let containers = Containers::open()?;
    each(&args.names, |name| {
        let container = containers.find(name)?;
        stop_one(&container, args)?;
        start_shim(&container)
            .map_err(failed)?
            .start()
            .map_err(failed)?;
        Ok(print(&format!("{name}\n"))?)
    })
}

fn stop_one(container: &Container, args: &StopArgs) -> Result<(), Failed> {
    if !container.state()?.status.is_live() {
        return Ok(());
    }
    let stop = Request::Stop {
        signal: args.signal.unwrap_or_else(|| stop_signal(container)),
        timeout: args
            .timeout
            .unwrap_or(container.record.options.stop_timeout),
    };
    match request(container, &stop) {
        // It ended by itself meanwhile.
        Ok(_) | Err(ControlError::NotRunning(_)) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// The signal that stops it: the user's, or the image's.
fn stop_signal(container: &Container) -> i32 {
    let record = &container.record;
    let of_image = record.image_config.config().as_ref();
    let of_image = of_image.and_then(|config| config.stop_signal().as_deref());
    let name = record.options.stop_signal.as_deref().or(of_image);
    name.and_then(|name| signal(name).ok()).unwrap_or(15)
}

pub(super) fn kill(args: &KillArgs) -> Outcome {
    let containers = Containers::open()?;
    let kill = Request::Kill {
        signal: args.signal,
    };
    each(&args.names, |name| {
        request(&containers.find(name)?, &kill).map_err(failed)?;
        Ok(print(&format!("{name}\n"))?)
    })
}

pub(super) fn pause(names: &Names) -> Outcome {
    ask_each(names, &Request::Pause)
}

pub(super) fn unpause(names: &Names) -> Outcome {
    ask_each(names, &Request::Resume)
}

fn ask_each(names: &Names, what: &Request) -> Outcome {
    let containers = Containers::open()?;
    each(&names.names, |name| {
        request(&containers.find(name)?, what).map_err(failed)?;
        Ok(print(&format!("{name}\n"))?)
    })
}

pub(super) fn wait(names: &Names) -> Outcome {
    let containers = Containers::open()?;
    each(&names.names, |name| {
        let code = wait_for(&containers.find(name)?)?;
        Ok(print(&format!("{code}\n"))?)
    })
}

/// Waits until a container has ended; gives its exit code.
fn wait_for(container: &Container) -> Result<i32, Failed> {
    let attach = Request::Attach {
        output: false,
        input: false,
    };
    match request(container, &attach) {
        Ok(mut answered) => {
            while let Ok(Some(frame)) = Frame::read(&mut answered.reader) {
                if let Frame::End(code) = frame {
                    return Ok(code);
                }
            }
        }
        Err(ControlError::NotRunning(_) | ControlError::Failed(_)) => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(container.state()?.exit_code)
}

pub(super) fn rm(args: &RmArgs) -> Outcome {
    let containers = Containers::open()?;
    each(&args.names, |name| {
        match containers.find(name) {
            Ok(container) => remove(&container, args.force)?,
            // As Docker: it is not there any more, which was wanted.
            Err(StateError::Unknown(_)) if args.force => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        Ok(print(&format!("{name}\n"))?)
    })
}

fn remove(container: &Container, force: bool) -> Result<(), Failed> {
    let status = container.state()?.status;
    if status.is_live() {
        if !force {
            let name = container.record.name.clone();
            return Err(LifeError::Live(name, status.name()).into());
        }
        let kill = Request::Stop {
            signal: 9,
            timeout: 0,
        };
        match request(container, &kill) {
            Ok(_) | Err(ControlError::NotRunning(_)) => {}
            Err(error) => return Err(failed(error)),
        }
        // With --rm its shim has done it.
        if !container.dir.exists() {
            return Ok(());
        }
    }
    let lock = container.lock()?;
    Ok(create::remove(container, &lock)?)
}
