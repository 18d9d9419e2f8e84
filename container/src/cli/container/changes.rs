//! `diff` and `commit`: what a container changed of its image's files.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cofferdam::text::visible_bytes;
use cofferdam_agent_protocol::api;
use oci_spec::runtime::Spec;

use super::control::{ControlError, failed, host, request};
use super::{Failed, Outcome, print};
use crate::copy::Exchange;
use crate::image::reference::Reference;
use crate::image::{Store, archive, commit};
use crate::options::{Isolation, Options};
use crate::shim::wire::Request;
use crate::state::{self, Container, Containers, Events, Now, Status, new_id};

/// Print what a container changed of its image's files
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct DiffArgs {
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
}

/// Make an image of a container
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CommitArgs {
    /// Who made it: `NAME <ADDRESS>`
    #[arg(short, long, value_name = "TEXT")]
    author: Option<String>,
    /// What `history` says about it
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// A Dockerfile instruction for the image's configuration, such as `CMD ["sh"]`
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Freeze a container that runs meanwhile; `--pause=false` does not
    #[arg(short, long, default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    /// Name or ID
    #[arg(value_name = "CONTAINER")]
    name: String,
    /// The image's name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    image: Option<String>,
}

/// What a container changed, as a layer, given to `take`.
fn changes<T>(
    container: &Container,
    pause: bool,
    take: impl FnOnce(&mut dyn Read) -> Result<T, archive::Error>,
) -> Result<T, Failed> {
    if container.record.options.isolation == Isolation::Process {
        return on_the_host(container, take);
    }
    let host = host(container).map_err(failed)?;
    let _frozen = match pause && host.is_live && container.state()?.status == Status::Running {
        true => Some(Frozen::new(container).map_err(failed)?),
        false => None,
    };
    let mut asked = api::ChangesRequest::new();
    (asked.id, asked.token) = (container.record.id.clone(), new_id());
    let token = asked.token.clone();
    let call = |agent: &cofferdam_agent_protocol::Client| agent.changes(asked);
    let exchange = Exchange::agent(&host.agent, &token, call)?;
    Ok(exchange.receive(|mut layer| take(&mut layer))?)
}

/// Of a container on the host's kernel, whose overlay is the host's.
fn on_the_host<T>(
    container: &Container,
    take: impl FnOnce(&mut dyn Read) -> Result<T, archive::Error>,
) -> Result<T, Failed> {
    let upper = container.dir.join("process/upper");
    let points = mount_points(container)?;
    let exchange = Exchange::here("read what it wrote", move |layer| match upper.exists() {
        true => commit::write_layer(&upper, &points, layer),
        // It never ran.
        false => tar::Builder::new(layer).finish(),
    })?;
    Ok(exchange.receive(|mut layer| take(&mut layer))?)
}

/// A container that stands still until this is dropped.
struct Frozen<'a>(&'a Container);

impl<'a> Frozen<'a> {
    fn new(container: &'a Container) -> Result<Self, ControlError> {
        request(container, &Request::Pause)?;
        Ok(Self(container))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = request(self.0, &Request::Resume) {
            eprintln!("cofferdam: {}", crate::describe(&error));
        }
    }
}

pub(super) fn diff(args: &DiffArgs) -> Outcome {
    let container = Containers::open()?.find(&args.name)?;
    let store = Store::open_default()?;
    let base = store.find(&container.record.image)?;
    let mut found = changes(&container, false, |layer| {
        commit::diff(&store, &base, layer)
    })?;
    found.sort_by(|(_, a), (_, b)| a.cmp(b));
    let points = mount_points(&container)?;
    let above: BTreeSet<&Path> = points.iter().flat_map(|point| point.ancestors()).collect();
    // Changed, it seems, if only because a place was made in it for what is mounted there.
    let is_ours = |change, path: &PathBuf| {
        change == commit::Change::Changed && above.contains(path.as_path())
    };
    let others = found
        .iter()
        .filter(|(change, path)| !is_ours(*change, path));
    let above_others: BTreeSet<&Path> = others.flat_map(|(_, path)| path.ancestors()).collect();
    let mut text = String::new();
    for (change, path) in &found {
        if is_ours(*change, path) && !above_others.contains(path.as_path()) {
            continue;
        }
        let _ = writeln!(
            text,
            "{} {}",
            change.letter(),
            visible_bytes(path.as_os_str().as_bytes())
        );
    }
    print(&text)?;
    Ok(0)
}

fn mount_points(container: &Container) -> Result<Vec<PathBuf>, Failed> {
    let spec: Spec = state::load(&container.bundle().join("config.json"))?;
    let mounts = spec.mounts().iter().flatten();
    let places = mounts.map(|mount| mount.destination().clone());
    let volumes = container.record.volumes_of_image().into_iter();
    Ok(places.chain(volumes.map(PathBuf::from)).collect())
}

pub(super) fn commit(args: &CommitArgs) -> Outcome {
    let container = Containers::open()?.find(&args.name)?;
    let name: Option<Reference> = args.image.as_deref().map(str::parse).transpose()?;
    let store = Store::open_default()?;
    let record = &container.record;
    let base = store.find(&record.image)?;
    let spec: Spec = state::load(&container.bundle().join("config.json"))?;
    let mut instructions = as_instructions(&record.options);
    instructions.extend(args.change.iter().cloned());
    let process = spec.process().as_ref();
    let arguments = process.and_then(|p| p.args().clone()).unwrap_or_default();
    let about = commit::About {
        author: args.author.clone(),
        message: args.message.clone(),
        created: Now::text(),
        created_by: arguments.join(" "),
        changes: instructions,
    };
    let made = changes(&container, args.pause, |layer| {
        commit::commit(&store, &base, layer, &about, name.as_ref())
    })?;
    Events::write(record, "commit", None);
    print(&format!("{}\n", made.id))?;
    Ok(0)
}

/// What the user asked of the container beyond what its image says, as an image says it: as Docker, it
/// becomes the new image's.
fn as_instructions(options: &Options) -> Vec<String> {
    let list = |all: &[String]| serde_json::json!(all).to_string();
    let pair = |text: &str| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let value = value.replace('\\', "\\\\").replace('"', "\\\"");
        format!("{name}=\"{value}\"")
    };
    let mut all = Vec::new();
    if let Some(program) = &options.entrypoint {
        let program: Vec<String> = Some(program.clone())
            .filter(|p| !p.is_empty())
            .into_iter()
            .collect();
        all.push(format!("ENTRYPOINT {}", list(&program)));
        // The image's arguments were those of another program.
        all.push(format!("CMD {}", list(&options.command)));
    } else if !options.command.is_empty() {
        all.push(format!("CMD {}", list(&options.command)));
    }
    all.extend(options.env.iter().map(|text| format!("ENV {}", pair(text))));
    all.extend(
        options
            .label
            .iter()
            .map(|text| format!("LABEL {}", pair(text))),
    );
    all.extend(options.workdir.iter().map(|dir| format!("WORKDIR {dir}")));
    all.extend(options.user.iter().map(|user| format!("USER {user}")));
    all.extend(
        options
            .stop_signal
            .iter()
            .map(|name| format!("STOPSIGNAL {name}")),
    );
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::change;

    /// If it fails, an image that is made of a container does not run as that did.
    #[test]
    fn options_become_instructions() {
        let options = Options {
            entrypoint: Some("/bin/x y".into()),
            command: vec!["a b".into(), "\"c".into()],
            env: vec!["A=1 \"2\" \\3".into()],
            label: vec!["only".into()],
            workdir: Some("/srv".into()),
            ..Options::default()
        };
        let mut config = serde_json::json!({"config": {"Cmd": ["old"]}});
        for instruction in as_instructions(&options) {
            change::apply(&mut config, &instruction).unwrap();
        }
        let expected = serde_json::json!({
            "Entrypoint": ["/bin/x y"],
            "Cmd": ["a b", "\"c"],
            "Env": ["A=1 \"2\" \\3"],
            "Labels": {"only": ""},
            "WorkingDir": "/srv",
        });
        assert_eq!(config["config"], expected);
    }
}
