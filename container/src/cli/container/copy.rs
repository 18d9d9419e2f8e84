//! `cp`.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::Outcome;
use super::control::{ControlError, Host, failed, host, root};
use crate::copy::{self, CopyError, Files, From, Owner};
use crate::hostpath::{HostPath, HostPathError};
use crate::options::Isolation;
use crate::state::{Container, Containers};

const RULES: &str = "\
A directory is copied into a directory that is there, and becomes one that is not; `SOURCE/.` copies
what is in it. A container's paths begin at its root. `-` is a tar on standard input or output.

On the host no symbolic link is followed, for an earlier copy may have brought it: at the end of TARGET it
is replaced by a file, elsewhere it is an error. --follow-link follows those of a SOURCE on the host.

A container that does not run is set up in a VM for it, and not started; with --isolation=process it
has to run.";

/// Copy files between a container and the host
#[derive(Debug, clap::Args)]
#[command(after_help = RULES)]
pub(in crate::cli) struct Args {
    /// With owners and set-id bits; else all that comes is the user's, all that goes is root's. Warning:
    /// so a container can leave programs on the host that run as root for whoever starts them
    #[arg(short, long)]
    archive: bool,
    /// Follow symbolic links of SOURCE's path, and copy what a link leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing (nor does it otherwise)
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, a path of the host, or -
    #[arg(value_name = "SOURCE")]
    source: String,
    /// CONTAINER:PATH, a path of the host, or -
    #[arg(value_name = "TARGET")]
    target: String,
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
enum CpError {
    #[error("cp is between a container and the host: one of SOURCE and TARGET is CONTAINER:PATH")]
    Sides,
    #[error("there is no {0}")]
    Missing(String),
    #[error("{0} is no directory, and a directory cannot be copied to it")]
    NoDirectory(String),
    #[error("the archive is not written to a terminal; send it to a file or a pipe")]
    Terminal,
    #[error(
        "{0} is a symbolic link, and it is not followed, because a container may have made it with \
         an earlier copy; --follow-link follows it"
    )]
    Link(String),
    #[error("{0} is neither a file nor a directory, and nothing else is replaced")]
    Special(String),
    #[error(transparent)]
    Path(#[from] HostPathError),
    #[error("cannot copy from {0}")]
    From(String, #[source] io::Error),
    #[error("cannot copy to {0}")]
    To(String, #[source] io::Error),
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// One of the two.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Container(&'a str, String),
    Host(&'a str),
    Stream,
}

impl<'a> Place<'a> {
    /// As Docker reads it: what begins with a slash or a dot is the host's, whatever follows.
    fn parse(text: &'a str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            Some((container, path)) if !text.starts_with(['/', '.']) && !container.is_empty() => {
                Self::Container(container, format!("/{}", path.trim_start_matches('/')))
            }
            _ => Self::Host(text),
        }
    }
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Directory,
    Other,
}

/// Where a copy goes: the directory that must be there, and what it is called in it; without a name it
/// is what is in the source that goes there.
#[derive(Debug, PartialEq, Eq)]
struct Goal {
    dir: PathBuf,
    name: Option<PathBuf>,
}

/// Docker's rules. `name` is the source's own, `contents` says that it ends in `/.`.
fn goal(
    is_directory: bool,
    name: &Path,
    contents: bool,
    target: &str,
    found: Found,
) -> Result<Goal, CpError> {
    let path = Path::new(target);
    let within = |name: Option<&Path>| {
        Ok(Goal {
            dir: path.to_owned(),
            name: name.map(Path::to_owned),
        })
    };
    match found {
        Found::Directory if is_directory && contents => within(None),
        Found::Directory => within(Some(name)),
        Found::Other if is_directory || target.ends_with('/') => {
            Err(CpError::NoDirectory(target.to_owned()))
        }
        Found::Nothing if !is_directory && target.ends_with('/') => {
            Err(CpError::Missing(format!("directory {target}")))
        }
        Found::Nothing | Found::Other => {
            let named = path.file_name().map(PathBuf::from);
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            Ok(Goal {
                dir: parent.unwrap_or(Path::new(".")).to_owned(),
                name: Some(named.ok_or_else(|| CpError::Missing(target.to_owned()))?),
            })
        }
    }
}

pub(super) fn cp(args: &Args) -> Outcome {
    let containers = Containers::open()?;
    let places = (Place::parse(&args.source), Place::parse(&args.target));
    let (name, _) = match &places {
        (Place::Container(name, path), Place::Host(_) | Place::Stream)
        | (Place::Host(_) | Place::Stream, Place::Container(name, path)) => (name, path),
        _ => return Err(CpError::Sides.into()),
    };
    let container = containers.find(name)?;
    if places.1 == Place::Stream && io::stdout().is_terminal() {
        return Err(CpError::Terminal.into());
    }
    let holder = Holder::of(&container).map_err(failed)?;
    let files = holder.files().map_err(failed)?;
    let copy = Copy { args, files };
    match &places {
        (Place::Container(_, from), Place::Stream) => copy.get_stream(from)?,
        (Place::Container(_, from), Place::Host(to)) => copy.get_host(from, to)?,
        (Place::Stream, Place::Container(_, to)) => copy.put_stream(to)?,
        (Place::Host(from), Place::Container(_, to)) => copy.put_host(from, to)?,
        _ => return Err(CpError::Sides.into()),
    }
    Ok(0)
}

/// Who has a container's files; dropped, a VM that was there for them alone ends.
pub(super) struct Holder<'a> {
    container: &'a Container,
    /// None of a container on the host's kernel.
    vm: Option<Host>,
}

impl<'a> Holder<'a> {
    pub(super) fn of(container: &'a Container) -> Result<Self, ControlError> {
        let vm = match container.record.options.isolation {
            Isolation::Vm => Some(host(container)?),
            Isolation::Process => None,
        };
        Ok(Self { container, vm })
    }

    pub(super) fn files(&self) -> Result<Files<'_>, ControlError> {
        match &self.vm {
            Some(vm) => Ok(Files::Vm(&vm.agent, &self.container.record.id)),
            None => Ok(Files::Host(root(self.container)?)),
        }
    }
}

struct Copy<'a> {
    args: &'a Args,
    files: Files<'a>,
}

impl Copy<'_> {
    fn stat(&self, path: &str, follow: bool) -> Result<Found, CopyError> {
        let mode = self.files.mode(path, follow)?;
        Ok(match mode.map(|mode| mode & libc::S_IFMT) {
            None => Found::Nothing,
            Some(libc::S_IFDIR) => Found::Directory,
            Some(_) => Found::Other,
        })
    }

    fn receive<T>(
        &self,
        path: &str,
        name: &str,
        take: impl FnOnce(copy::Incoming<'_>) -> T,
    ) -> Result<T, CopyError> {
        let exchange = self.files.copy_out(path, name, self.args.follow_link)?;
        Ok(exchange.receive(take))
    }

    fn get_stream(&self, from: &str) -> Result<(), CpError> {
        let done = self.receive(from, "", |mut archive| {
            copy::pass(&mut archive, &mut io::stdout())
        })?;
        done.map_err(|error| CpError::From(from.to_owned(), error))
    }

    fn get_host(&self, from: &str, to: &str) -> Result<(), CpError> {
        // What ends in a slash is meant as the directory that a link leads to.
        let follow = self.args.follow_link || from.ends_with('/') || from.ends_with("/.");
        let is_directory = match self.stat(from, follow)? {
            Found::Nothing => return Err(CpError::Missing(format!("{from} in the container"))),
            found => found == Found::Directory,
        };
        let own = Path::new(from).file_name().map(PathBuf::from);
        // Of the root there is only what is in it.
        let contents = from.ends_with("/.") || own.is_none();
        let mut place = HostPath::find(Path::new(to))?;
        let found = place
            .kind()?
            .map(|kind| replaceable(to, kind))
            .transpose()?;
        let found = found.unwrap_or(Found::Nothing);
        let goal = goal(is_directory, &own.unwrap_or_default(), contents, to, found)?;
        if let (Found::Directory, Some(name)) = (found, &goal.name) {
            place = place.below(name.as_os_str())?;
        }
        let owner = match self.args.archive {
            true => Owner::Archive,
            false => Owner::Us,
        };
        // A directory's name is not the container's to choose: what it has goes into the target.
        let done = match is_directory {
            true => {
                let top = place.make_directory()?;
                self.receive(from, ".", |archive| {
                    copy::extract_directory(archive, &top, owner)
                })?
            }
            false => {
                let (parent, name) = place.entry()?;
                self.receive(from, "file", |archive| {
                    copy::extract_file(archive, parent, name, owner).map(|()| 0)
                })?
            }
        };
        left_out(done.map_err(|error| CpError::To(to.to_owned(), error))?);
        Ok(())
    }

    fn put_stream(&self, to: &str) -> Result<(), CpError> {
        self.must_be_directory(to)?;
        let mut stdin = io::stdin();
        let exchange = self.files.copy_in(to)?;
        Ok(exchange.send(|archive| copy::pass(&mut stdin, archive))?)
    }

    fn must_be_directory(&self, path: &str) -> Result<(), CpError> {
        match self.stat(path, true)? {
            Found::Directory => Ok(()),
            Found::Other => Err(CpError::NoDirectory(format!("{path} in the container"))),
            Found::Nothing => Err(CpError::Missing(format!(
                "directory {path} in the container"
            ))),
        }
    }

    fn put_host(&self, from: &str, to: &str) -> Result<(), CpError> {
        let path = Path::new(from);
        let failed = |error| CpError::From(from.to_owned(), error);
        let file = match self.args.follow_link {
            true => copy::open(path).map_err(failed)?,
            false => HostPath::find(path)?.open()?,
        };
        let about = file.metadata().map_err(failed)?;
        let is_directory = about.is_dir();
        let as_directory = from.ends_with('/') || from.ends_with("/.");
        if as_directory && !is_directory {
            return Err(match about.is_symlink() {
                true => CpError::Link(from.to_owned()),
                false => CpError::Missing(format!("directory {from}")),
            });
        }
        // `.` and `..` have no name of their own.
        let own = match path.file_name() {
            Some(name) => PathBuf::from(name),
            None => {
                let whole = path.canonicalize().map_err(failed)?;
                whole.file_name().map(PathBuf::from).unwrap_or_default()
            }
        };
        let contents = from.ends_with("/.") || from == "." || own.as_os_str().is_empty();
        let found = self.stat(to, true)?;
        let goal = goal(is_directory, &own, contents, to, found)?;
        let dir = goal.dir.to_string_lossy().into_owned();
        self.must_be_directory(&dir)?;
        let what = From {
            file,
            name: goal.name.as_deref().unwrap_or(Path::new(".")),
            owners: self.args.archive,
            one_file_system: false,
        };
        let mut missing = 0;
        self.files.copy_in(&dir)?.send(|archive| {
            missing = copy::pack(what, archive)?;
            Ok(())
        })?;
        left_out(missing);
        Ok(())
    }
}

/// What is at the target of a copy, if that is anything to copy to or to replace. A link is, but not one
/// to a device, such as `/dev/stdout`.
fn replaceable(target: &str, kind: FileType) -> Result<Found, CpError> {
    let is_special = |path| fs::metadata(path).is_ok_and(|it| !it.is_file() && !it.is_dir());
    match kind {
        FileType::Directory => Ok(Found::Directory),
        FileType::RegularFile => Ok(Found::Other),
        FileType::Symlink if !is_special(target) => Ok(Found::Other),
        _ => Err(CpError::Special(target.to_owned())),
    }
}

fn left_out(count: u64) {
    if count > 0 {
        eprintln!("cofferdam: {count} sockets, devices and FIFOs are not copied");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, files are taken from or brought to the wrong machine.
    #[test]
    fn places_are_the_containers_or_the_hosts() {
        let container = |name, path: &str| Place::Container(name, path.to_owned());
        assert_eq!(Place::parse("web:/etc"), container("web", "/etc"));
        assert_eq!(Place::parse("web:etc"), container("web", "/etc"));
        assert_eq!(Place::parse("web:"), container("web", "/"));
        assert_eq!(Place::parse("./web:x"), Place::Host("./web:x"));
        assert_eq!(Place::parse("/a:b"), Place::Host("/a:b"));
        assert_eq!(Place::parse("file"), Place::Host("file"));
        assert_eq!(Place::parse("-"), Place::Stream);
    }

    /// If it fails, a copy lands elsewhere than Docker's would.
    #[test]
    fn goals_are_dockers() {
        let name = Path::new("src");
        let to = |is_directory, contents, target, found| {
            goal(is_directory, name, contents, target, found)
                .map(|goal| (goal.dir, goal.name))
                .map_err(|error| error.to_string())
        };
        let expect = |dir: &str, name: Option<&str>| Ok((dir.into(), name.map(PathBuf::from)));
        for is_directory in [false, true] {
            let into = to(is_directory, false, "/d", Found::Directory);
            assert_eq!(into, expect("/d", Some("src")));
            let new = to(is_directory, false, "/d/new", Found::Nothing);
            assert_eq!(new, expect("/d", Some("new")));
        }
        assert_eq!(to(true, true, "/d", Found::Directory), expect("/d", None));
        assert_eq!(to(false, false, "/f", Found::Other), expect("/", Some("f")));
        assert_eq!(
            to(false, false, "f", Found::Nothing),
            expect(".", Some("f"))
        );
        assert!(to(true, false, "/f", Found::Other).is_err());
        assert!(to(false, false, "/d/", Found::Nothing).is_err());
    }
}
