//! What is there in all, on this host and of this program.

use serde_json::{Value, json};

use super::ask::confirmed;
use super::container::{self, Failed, Outcome, print};
use super::format::{Template, list};
use super::image::size;
use crate::image::Store;
use crate::options::Isolation;
use crate::paths;
use crate::state::{Containers, Status};
use crate::usage;
use crate::volume::Volumes;

/// `cofferdam system COMMAND`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show what images, containers and volumes take of the disk
    Df(Df),
    /// Print what happens to containers
    Events(container::EventsArgs),
    /// Show what is there in all
    Info(Show),
    /// Remove containers that do not run, networks without containers, and images that nobody needs
    Prune(Prune),
}

/// How it is shown.
#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// `json`, or a template such as '{{.Images}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<Template>,
}

/// How it is shown.
#[derive(Debug, clap::Args)]
pub(super) struct Df {
    /// `json`, or a template such as '{{.Type}} {{.Size}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<Template>,
}

/// What goes.
#[derive(Debug, clap::Args)]
pub(super) struct Prune {
    /// Also images with a name, if no container uses them
    #[arg(short, long)]
    all: bool,
    /// Also volumes without a name that no container has
    #[arg(long)]
    volumes: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Does it.
pub(super) fn run(command: &Command) -> Outcome {
    match command {
        Command::Df(args) => df(args),
        Command::Events(args) => container::events(args),
        Command::Info(args) => info(args),
        Command::Prune(args) => prune(args),
    }
}

/// `cofferdam info`.
pub(super) fn info(args: &Show) -> Outcome {
    let containers = Containers::open()?.list()?;
    let states: Vec<Status> = containers
        .iter()
        .filter_map(|container| Some(container.state().ok()?.status))
        .collect();
    let count = |wanted: &[Status]| states.iter().filter(|one| wanted.contains(one)).count();
    let host = rustix::system::uname();
    let memory = cofferdam_agent_protocol::procfs::memory("MemTotal");
    let about = json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "Containers": containers.len(),
        "ContainersRunning": count(&[Status::Running, Status::Restarting]),
        "ContainersPaused": count(&[Status::Paused]),
        "ContainersStopped": count(&[Status::Created, Status::Exited]),
        "Images": Store::open_default()?.list()?.len(),
        "Volumes": Volumes::at(&paths::data()).list()?.len(),
        "Isolation": Isolation::default(),
        "Driver": "erofs",
        "LoggingDriver": "json-file",
        "CofferdamRootDir": paths::data(),
        "CofferdamRunDir": paths::run(),
        "KernelVersion": host.release().to_string_lossy(),
        "Architecture": host.machine().to_string_lossy(),
        "NCPU": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "MemTotal": memory,
    });
    if let Some(template) = &args.format {
        return Ok(print(&(template.fill(&about)? + "\n")).map(|()| 0)?);
    }
    let text = |field: &str| match &about[field] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let lines = [
        format!("Version: {}", text("Version")),
        format!("Containers: {}", text("Containers")),
        format!(" Running: {}", text("ContainersRunning")),
        format!(" Paused: {}", text("ContainersPaused")),
        format!(" Stopped: {}", text("ContainersStopped")),
        format!("Images: {}", text("Images")),
        format!("Volumes: {}", text("Volumes")),
        format!("Data: {}", text("CofferdamRootDir")),
        format!("Sockets: {}", text("CofferdamRunDir")),
        format!(
            "Host: Linux {} {}, {} CPUs, {}",
            text("KernelVersion"),
            text("Architecture"),
            text("NCPU"),
            size(memory)
        ),
        "'cofferdam doctor' says what this host can do.".to_owned(),
    ];
    print(&(lines.join("\n") + "\n"))?;
    Ok(0)
}

/// `cofferdam version`.
pub(super) fn version(args: &Show) -> Outcome {
    let about = json!({
        "Client": {
            "Version": env!("CARGO_PKG_VERSION"),
            "Os": std::env::consts::OS,
            "Arch": std::env::consts::ARCH,
        },
    });
    let text = match &args.format {
        Some(template) => template.fill(&about)?,
        None => format!(
            "cofferdam {} on {}/{}; there is no server",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH
        ),
    };
    print(&(text + "\n"))?;
    Ok(0)
}

/// Things of one kind on the disk.
#[derive(Debug, Default)]
struct Kind {
    all: usize,
    active: usize,
    bytes: u64,
    /// Of those that nobody uses.
    free: u64,
}

impl Kind {
    fn add(&mut self, is_active: bool, bytes: u64) {
        self.all += 1;
        self.bytes += bytes;
        match is_active {
            true => self.active += 1,
            false => self.free += bytes,
        }
    }

    fn row(&self, name: &str) -> Value {
        let percent = self.free * 100 / self.bytes.max(1);
        json!({
            "Type": name,
            "TotalCount": self.all.to_string(),
            "Active": self.active.to_string(),
            "Size": size(self.bytes),
            "Reclaimable": format!("{} ({percent}%)", size(self.free)),
        })
    }
}

fn df(args: &Df) -> Outcome {
    let containers = Containers::open()?.list()?;
    let store = Store::open_default()?;
    let mut kinds = [Kind::default(), Kind::default(), Kind::default()];
    let [images, own, volumes] = &mut kinds;
    for image in store.list()? {
        let id = image.manifest.config.digest.to_string();
        let is_used = containers.iter().any(|c| c.record.image == id);
        images.add(is_used, store.size(&image));
    }
    for container in &containers {
        let is_live = container.state().is_ok_and(|state| state.status.is_live());
        own.add(is_live, usage::of_tree(&container.dir));
    }
    for volume in Volumes::at(&paths::data()).list()? {
        let is_used = containers.iter().any(|c| c.has_volume(&volume.name));
        volumes.add(is_used, usage::of_tree(&volume.mountpoint));
    }
    let rows: Vec<Value> = ["Images", "Containers", "Local Volumes"]
        .into_iter()
        .zip(&kinds)
        .map(|(name, kind)| kind.row(name))
        .collect();
    let columns = [
        ("TYPE", "Type"),
        ("TOTAL", "TotalCount"),
        ("ACTIVE", "Active"),
        ("SIZE", "Size"),
        ("RECLAIMABLE", "Reclaimable"),
    ];
    print(&list(&rows, &columns, None, args.format.as_ref())?)?;
    Ok(0)
}

fn prune(args: &Prune) -> Outcome {
    let images = match args.all {
        true => "all images that no container uses",
        false => "all images without a name",
    };
    let mut what = vec![
        "all containers that do not run",
        "all networks without containers",
    ];
    if args.volumes {
        what.push("all volumes without a name that no container has");
    }
    what.push(images);
    if !args.force && !confirmed(&what.join(", "))? {
        return Ok(0);
    }
    let before = taken()?;
    container::prune::remove_stopped()?;
    container::network::remove_unused()?;
    if args.volumes {
        container::volume::remove_unused(false)?;
    }
    let of_images = Store::open_default()?.prune(args.all, |_| true)?;
    super::image::say(&of_images)?;
    let freed = before.saturating_sub(taken()?) + of_images.bytes;
    print(&format!("Total reclaimed space: {}\n", size(freed)))?;
    Ok(0)
}

/// Bytes that containers and volumes take.
fn taken() -> Result<u64, Failed> {
    let containers = Containers::open()?.list()?;
    let volumes = Volumes::at(&paths::data()).list()?;
    let own: u64 = containers.iter().map(|c| usage::of_tree(&c.dir)).sum();
    Ok(own
        + volumes
            .iter()
            .map(|v| usage::of_tree(&v.mountpoint))
            .sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, `system df` says that there is something to gain where there is nothing.
    #[test]
    fn what_is_free_is_told_from_what_is_used() {
        let mut kind = Kind::default();
        kind.add(true, 3_000);
        kind.add(false, 1_000);
        let row = kind.row("Images");
        assert_eq!(
            (&row["TotalCount"], &row["Active"]),
            (&json!("2"), &json!("1"))
        );
        assert_eq!(
            (&row["Size"], &row["Reclaimable"]),
            (&json!("4kB"), &json!("1kB (25%)"))
        );
        assert_eq!(Kind::default().row("x")["Reclaimable"], "0B (0%)");
    }
}
