//! Containers: what `cofferdam run` takes, beside `runc run` and `crun run`, and beside a bare boot of
//! the same kernel.

pub mod budget;
pub mod idle;
pub mod measure;
pub mod table;

use std::path::Path;
use std::process::Command;

use crate::rows::Places;

/// The row of a bare boot of the container's kernel, to init's first output.
pub const BOOT_ROW: &str = "boot";
/// Our row.
pub const RUN_ROW: &str = "cofferdam-run";
/// The row of a process that the budget is for: the faster one.
pub const PROCESS_ROW: &str = "crun";
/// Idle containers of one image.
pub const IDLE: u32 = 20;
/// The image, which is made from the lab's own busybox.
const IMAGE: &str = "busybox";
/// All that is written, which is to be on no ramfs.
const WRITES: &str = "/tmp/containers";

/// `cofferdam` with what it needs in its environment.
fn cofferdam(places: &Places, args: &[&str]) -> Command {
    let mut command = with_environment(&places.cofferdam, places);
    command.args(args);
    command
}

/// A program with what ours need in their environment.
fn with_environment(program: &Path, places: &Places) -> Command {
    let mut command = Command::new(program);
    let data = Path::new(WRITES);
    command
        .env("COFFERDAM_DATA", data.join("data"))
        .env("COFFERDAM_RUN", data.join("run"))
        .env("COFFERDAM_GUEST", &places.guest);
    command
}

/// A command for people, without its environment.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let name = |word: &std::ffi::OsStr| {
        let path = Path::new(word);
        let name = path.file_name().filter(|_| path.is_absolute());
        name.unwrap_or(word).to_string_lossy().into_owned()
    };
    words.map(name).collect::<Vec<_>>().join(" ")
}
