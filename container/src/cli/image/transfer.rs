//! Images from and to files.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Outcome, list};
use crate::hostpath::HostPath;
use crate::image::store::oci::Platform;
use crate::image::{Store, archive, change};

#[derive(Debug, Args)]
pub(in crate::cli) struct Load {
    /// An archive, compressed or not, or the directory of an OCI layout; without it, standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Only names and ids
    #[arg(short, long)]
    quiet: bool,
    /// Which image to take of one for several
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Save {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Where to; without it, standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Import {
    /// A tar, compressed or not; `-` is standard input
    file: PathBuf,
    /// The image's name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    /// A Dockerfile instruction for the image's configuration, such as `CMD ["sh"]`
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// What `history` says about it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// What it runs on
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

/// How much of an archive is read, of how much if that is known; it shows nothing where there is no terminal, and
/// goes when it is done.
fn bar(size: Option<u64>, quiet: bool) -> ProgressBar {
    let (bar, style) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "{bar:30} {bytes:>11} of {total_bytes:11}",
        ),
        None => (ProgressBar::no_length(), "{bytes:>11}"),
    };
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    if quiet {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.with_finish(ProgressFinish::AndClear)
}

/// What is wrong with an archive, and with which.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
struct OfFile {
    path: PathBuf,
    source: archive::Error,
}

fn of(path: &Path) -> impl FnOnce(archive::Error) -> OfFile + '_ {
    |source| OfFile {
        path: path.to_owned(),
        source,
    }
}

/// `cofferdam load`.
pub(super) fn load(wanted: &Load) -> Outcome {
    let store = Store::open_default()?;
    let platform = wanted.platform.clone().unwrap_or_default();
    let loaded = match &wanted.input {
        Some(path) if path.is_dir() => {
            archive::load_directory(&store, path, &platform).map_err(of(path))?
        }
        Some(path) => {
            let file = open(path)?;
            let size = path.metadata().map(|about| about.len()).ok();
            let bar = bar(size, wanted.quiet);
            archive::load(&store, bar.wrap_read(file), &platform).map_err(of(path))?
        }
        None if io::stdin().is_terminal() => {
            return Err("the archive is missing: --input FILE, or from a pipe".into());
        }
        None => {
            let bar = bar(None, wanted.quiet);
            archive::load(&store, bar.wrap_read(io::stdin().lock()), &platform)?
        }
    };
    let mut out = io::stdout().lock();
    for image in loaded {
        for name in &image.names {
            match wanted.quiet {
                true => writeln!(out, "{}", list::familiar(name))?,
                false => writeln!(out, "Loaded image: {}", list::familiar(name))?,
            }
        }
        if image.names.is_empty() {
            match wanted.quiet {
                true => writeln!(out, "{}", image.id)?,
                false => writeln!(out, "Loaded image ID: {}", image.id)?,
            }
        }
    }
    Ok(())
}

/// `cofferdam save`.
pub(super) fn save(wanted: &Save) -> Outcome {
    let store = Store::open_default()?;
    let Some(path) = &wanted.output else {
        if io::stdout().is_terminal() {
            return Err(
                "an archive is nothing for a terminal: --output FILE, or into a pipe".into(),
            );
        }
        archive::save(&store, &wanted.images, BufWriter::new(io::stdout().lock()))?;
        return Ok(());
    };
    HostPath::find(path)?
        .write(|file| Ok(archive::save(&store, &wanted.images, BufWriter::new(file))?))
}

/// `cofferdam import`.
pub(super) fn import(wanted: &Import) -> Outcome {
    let store = Store::open_default()?;
    let name = wanted.name.as_ref().map(|name| name.parse()).transpose()?;
    let platform = wanted.platform.clone().unwrap_or_default();
    let now = OffsetDateTime::now_utc().format(&Rfc3339)?;
    let from = wanted.file.display();
    let message = wanted.message.clone();
    let mut config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "created": now,
        "config": {},
        "history": [{
            "created": now,
            "comment": message.unwrap_or_else(|| format!("Imported from {from}")),
        }],
    });
    for instruction in &wanted.change {
        change::apply(&mut config, instruction)?;
    }
    let image = match wanted.file.as_os_str() == "-" {
        true => archive::import(&store, io::stdin().lock(), config, name.as_ref())?,
        false => archive::import(&store, open(&wanted.file)?, config, name.as_ref())?,
    };
    println!("{}", image.id);
    Ok(())
}

fn open(path: &Path) -> Result<File, Named> {
    File::open(path).map_err(|error| Named::new("cannot open", path, error))
}

/// A failure with the file that it was about.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path:?}")]
struct Named {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Named {
    fn new(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            what,
            path: path.into(),
            source,
        }
    }
}
