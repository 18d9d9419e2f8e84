//! What is asked of a container: Docker's options, by their names, as the command line reads them and
//! as the container keeps them.

mod bytes;
mod cpuset;
mod device;
mod driver;
mod health;
mod log;
mod mount;
mod network;
mod restart;
mod swap;
mod systemd;
mod ulimit;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::image::store::oci::Platform;
use crate::settings::{Settings, SettingsError};

pub use bytes::Bytes;
pub use cpuset::CpuSet;
pub use device::Device;
pub use driver::LogDriver;
pub use health::{Health, Period};
pub use log::LogLimit;
pub use mount::{Kind, Mount, Rights, Tmpfs};
pub use network::{AddHost, Network, Port, Ports, name as transport_name};
pub use restart::Restart;
pub use swap::MemorySwap;
pub use systemd::Systemd;
pub use ulimit::Ulimit;

/// Why an option's text is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// A file of variables or labels that cannot be read.
    #[error("cannot read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A variable without a name.
    #[error("invalid environment variable: {0:?}")]
    Variable(String),
    /// A security option that there is not.
    #[error(
        "--security-opt {0}: there are no-new-privileges, seccomp=FILE, seccomp=unconfined, \
         apparmor=unconfined and label=disable"
    )]
    Security(String),
    /// Health options that contradict each other or the image.
    #[error("{0}")]
    Health(&'static str),
    /// A storage option that there is not.
    #[error("--storage-opt {0}: there is size=BYTES")]
    Storage(String),
    /// Less memory and swap than memory.
    #[error("--memory-swap {0} is memory and swap together: it cannot be less than --memory {1}")]
    Swap(Bytes, Bytes),
    /// Swap without memory.
    #[error("--memory-swap goes with --memory")]
    SwapAlone,
    /// An image for another machine.
    #[error(
        "--platform {0}: a container runs what is for linux/amd64; 'pull --platform' gets others"
    )]
    Platform(Platform),
    /// An annotation without a name or a value.
    #[error("--annotation {0:?}: an annotation is NAME=VALUE")]
    Annotation(String),
    /// Options of a log that is not there.
    #[error("--log-opt is about --log-driver json-file, and it is {0}")]
    LogDriver(&'static str),
    /// A log option that there is not.
    #[error(
        "--log-opt {0}: there are max-size=BYTES (-1: no limit) and max-file=NUMBER, from 1 to 1000"
    )]
    Log(String),
    /// What is set for all containers.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// How a container is kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// By a VM with a kernel of its own.
    #[default]
    Vm,
    /// By the host's kernel: runc or crun does it.
    Process,
}

/// Who makes containers on the host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// The Open Container Initiative's own.
    Runc,
    /// The one in C.
    Crun,
}

impl Runtime {
    /// In the order in which they are taken.
    pub const ALL: [Self; 2] = [Self::Runc, Self::Crun];

    /// The program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }
}

/// Whether an image is asked for at its registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// Also if the store has it.
    Always,
    /// If the store does not have it.
    #[default]
    Missing,
    /// Not at all.
    Never,
}

/// The options that `create` and `run` have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Options {
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Whether the input ends with that of the first client, as nobody said `-d`.
    #[arg(skip)]
    #[serde(default)]
    pub stdin_once: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Name of the container [default: one is made up]
    #[arg(long)]
    pub name: Option<String>,
    /// Set an environment variable; without a value it is taken from this one's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub env_file: Vec<PathBuf>,
    /// Set a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// Set an annotation of the OCI runtime specification
    #[arg(long, value_name = "NAME=VALUE")]
    pub annotation: Vec<String>,
    /// Whether the image is pulled first
    #[arg(long, value_enum, default_value_t)]
    #[serde(skip)]
    pub pull: Pull,
    /// What the image is for; a container runs what linux/amd64 runs
    #[arg(long, value_name = "OS/ARCH")]
    #[serde(skip)]
    pub platform: Option<Platform>,
    /// Read labels from a file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub label_file: Vec<PathBuf>,
    /// Write the container's ID to a file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub cidfile: Option<PathBuf>,

    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Host name [default: the container's short ID]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Domain name, of NIS
    #[arg(long, value_name = "NAME")]
    pub domainname: Option<String>,
    /// A further group of the user's, by number
    #[arg(long, value_name = "GID")]
    pub group_add: Vec<u32>,
    /// Signal that stops it [default: the image's, or TERM]
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds from that signal to KILL
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub stop_timeout: u32,
    /// An init process in the container that reaps what is left to it
    #[arg(long)]
    pub init: bool,
    /// Whether it gets what systemd needs: memory file systems, cgroups that it can write to, a terminal.
    /// With true, if its program is /sbin/init or called systemd
    #[arg(long, value_enum, default_value_t)]
    pub systemd: Systemd,
    /// Whether that is so.
    #[arg(skip)]
    pub is_systemd: bool,
    /// Start it again when it ends: no, always, unless-stopped, on-failure[:TIMES]
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub restart: Restart,

    /// Command that says whether the container is well, for its shell
    #[arg(long, value_name = "LINE", help_heading = HEALTH)]
    pub health_cmd: Option<String>,
    /// Time from one check to the next [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", help_heading = HEALTH)]
    pub health_interval: Option<Period>,
    /// Time that a check may take [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", help_heading = HEALTH)]
    pub health_timeout: Option<Period>,
    /// Failures in a row that make it unhealthy [default: the image's, or 3]
    #[arg(long, value_name = "NUMBER", help_heading = HEALTH)]
    pub health_retries: Option<u32>,
    /// Time from its start in which failures do not count [default: the image's, or 0s]
    #[arg(long, value_name = "TIME", help_heading = HEALTH)]
    pub health_start_period: Option<Period>,
    /// Leave out the image's check
    #[arg(long, help_heading = HEALTH)]
    pub no_healthcheck: bool,

    /// CPUs, also a fraction; the VM has as many vCPUs, rounded up [default: 1]
    #[arg(long, value_name = "NUMBER", help_heading = LIMITS, value_parser = cpus)]
    pub cpus: Option<f64>,
    /// Memory of the container; the VM has what its kernel needs on top
    #[arg(short, long, value_name = "BYTES", help_heading = LIMITS, value_parser = memory)]
    pub memory: Option<Bytes>,
    /// Memory and swap together; -1: no limit. A VM has no swap, so there it changes nothing
    #[arg(long, value_name = "BYTES", help_heading = LIMITS, allow_hyphen_values = true)]
    pub memory_swap: Option<MemorySwap>,
    /// CPUs of the host's that it runs on, with its VM: 0-3,6
    #[arg(long, value_name = "CPUS", help_heading = LIMITS)]
    pub cpuset_cpus: Option<CpuSet>,
    /// Its share of CPUs that are busy, beside others; 1024 is that of who says nothing
    #[arg(
        short, long, value_name = "NUMBER", help_heading = LIMITS,
        value_parser = clap::value_parser!(u64).range(2..=262_144)
    )]
    pub cpu_shares: Option<u64>,
    /// Number of processes; -1: no limit
    #[arg(long, value_name = "NUMBER", help_heading = LIMITS, allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", help_heading = LIMITS)]
    pub shm_size: Option<Bytes>,
    /// Resource limit of the process
    #[arg(long, value_name = "TYPE=SOFT[:HARD]", help_heading = LIMITS)]
    pub ulimit: Vec<Ulimit>,
    /// Options of the writable layer: size=BYTES
    #[arg(long, value_name = "OPTION", help_heading = LIMITS)]
    pub storage_opt: Vec<String>,
    /// Where what it prints is kept
    #[arg(long, value_enum, default_value_t, help_heading = LIMITS)]
    pub log_driver: LogDriver,
    /// Options of the log: max-size=BYTES of a file, max-file=NUMBER of them
    /// [default: max-size=10m max-file=5]
    #[arg(long, value_name = "OPTION", help_heading = LIMITS)]
    pub log_opt: Vec<String>,

    /// The root file system is read-only
    #[arg(long, help_heading = FILES)]
    pub read_only: bool,
    /// Mount a directory or file of the host, or a volume; OPTIONS: ro, rw, and with a VM suid, dev.
    /// Warning: with suid a container can leave programs there that run as root for whoever starts
    /// them on the host, with dev nodes of the host's devices; without, set-id bits are dropped
    #[arg(
        short, long, value_name = "[SOURCE:]TARGET[:OPTIONS]", help_heading = FILES,
        value_parser = Mount::from_volume
    )]
    pub volume: Vec<Mount>,
    /// Mount something: type=bind|volume|tmpfs,source=…,target=…[,readonly][,suid][,dev], the last two
    /// as for --volume
    #[arg(
        long, value_name = "OPTION,…", help_heading = FILES, value_parser = Mount::from_mount
    )]
    pub mount: Vec<Mount>,
    /// All that another container has from outside: its volumes, and directories and files of the host
    #[arg(long, value_name = "CONTAINER[:ro|rw]", help_heading = FILES)]
    #[serde(skip)]
    pub volumes_from: Vec<String>,
    /// Mount a memory file system
    #[arg(long, value_name = "TARGET[:OPTIONS]", help_heading = FILES)]
    pub tmpfs: Vec<Tmpfs>,
    /// A block device of the host's, as a disk; or /dev/fuse or /dev/net/tun, which the guest has
    #[arg(long, value_name = "SOURCE[:TARGET[:PERMISSIONS]]", help_heading = FILES)]
    pub device: Vec<Device>,

    /// Network: passt (needs no privilege), bridge or one of 'network create', none
    /// [default: passt, if the host has a network]
    #[arg(long, visible_alias = "net", value_name = "NETWORK", help_heading = NET)]
    pub network: Option<Network>,
    /// Address on its network [default: a free one]
    #[arg(long, value_name = "ADDRESS", help_heading = NET)]
    pub ip: Option<std::net::Ipv4Addr>,
    /// A further name on its network
    #[arg(long, value_name = "NAME", help_heading = NET)]
    pub network_alias: Vec<String>,
    /// Publish a port on the host, or several: 8000-8009:80-89
    #[arg(
        short, long, value_name = "[[ADDRESS:]HOST:]PORT[/tcp|/udp]", help_heading = NET
    )]
    pub publish: Vec<Ports>,
    /// A port that --publish-all publishes, too
    #[arg(long, value_name = "PORT[/tcp|/udp]", help_heading = NET)]
    pub expose: Vec<Ports>,
    /// Publish all ports that the image exposes, on free ports of the host
    #[arg(short = 'P', long, help_heading = NET)]
    pub publish_all: bool,
    /// A line more in /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", help_heading = NET)]
    pub add_host: Vec<AddHost>,
    /// Name server [default: the host's]
    #[arg(long, value_name = "ADDRESS", help_heading = NET)]
    pub dns: Vec<std::net::IpAddr>,
    /// Domain that names are looked for in
    #[arg(long, value_name = "DOMAIN", help_heading = NET)]
    pub dns_search: Vec<String>,
    /// Option of the resolver
    #[arg(long, value_name = "OPTION", help_heading = NET)]
    pub dns_option: Vec<String>,

    /// How the container is kept apart
    #[arg(long, value_enum, default_value_t, help_heading = WALLS)]
    pub isolation: Isolation,
    /// With --isolation=process: who makes it [default: the first that is there]
    #[arg(long, value_enum, help_heading = WALLS)]
    pub runtime: Option<Runtime>,
    /// Kernel of the VM [default: the default guest's]
    #[arg(long, value_name = "FILE", help_heading = WALLS)]
    pub kernel: Option<PathBuf>,
    /// Add a capability (in the container's own kernel)
    #[arg(long, value_name = "NAME", help_heading = WALLS)]
    pub cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "NAME", help_heading = WALLS)]
    pub cap_drop: Vec<String>,
    /// All capabilities, and nothing hidden (of the container's own kernel)
    #[arg(long, help_heading = WALLS)]
    pub privileged: bool,
    /// Security option: no-new-privileges, seccomp=FILE (a profile as Docker's), seccomp=unconfined
    #[arg(long, value_name = "OPTION", help_heading = WALLS)]
    pub security_opt: Vec<String>,
    /// Kernel parameter
    #[arg(long, value_name = "NAME=VALUE", help_heading = WALLS)]
    pub sysctl: Vec<String>,

    /// Image, then command and arguments instead of the image's; what stands behind the image is no option
    #[arg(value_names = ["IMAGE", "COMMAND"], required = true, num_args = 1.., trailing_var_arg = true)]
    #[serde(skip)]
    pub words: Vec<String>,
    /// Its image.
    #[arg(skip)]
    pub image: String,
    /// Command and arguments, instead of the image's.
    #[arg(skip)]
    pub command: Vec<String>,
}

const HEALTH: &str = "Health";
const LIMITS: &str = "Limits";
const FILES: &str = "Files";
const NET: &str = "Network";
const WALLS: &str = "Walls";

/// Less than this runs nothing: a shell has no room beside what the kernel counts as its own.
const LEAST_MEMORY: Bytes = Bytes(6 << 20);
/// More than any host has, and than a guest's addresses reach.
const MOST_MEMORY: Bytes = Bytes(4 << 40);

/// An amount of memory that a container can run with.
pub fn memory(text: &str) -> Result<Bytes, String> {
    match text.parse::<Bytes>()? {
        bytes if bytes < LEAST_MEMORY => Err(format!("a container needs at least {LEAST_MEMORY}")),
        bytes if bytes > MOST_MEMORY => Err(format!("a container can have at most {MOST_MEMORY}")),
        bytes => Ok(bytes),
    }
}

/// A number of CPUs, also a fraction.
pub fn cpus(text: &str) -> Result<f64, String> {
    let most = f64::from(cofferdam::config::MAX_CPUS);
    match text.parse() {
        Ok(cpus) if 0.01 <= cpus && cpus <= most => Ok(cpus),
        _ => Err(format!("expected a number of CPUs from 0.01 to {most}")),
    }
}

/// CPUs in billionths.
#[expect(clippy::cast_possible_truncation, reason = "a few CPUs at most")]
pub fn nanocpus(cpus: f64) -> i64 {
    (cpus * 1e9).round() as i64
}

/// What the security options say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Processes gain no privilege by running a program.
    pub no_new_privileges: bool,
    /// A profile of system calls.
    pub seccomp: Option<PathBuf>,
}

impl Options {
    /// Tells the image from its command.
    fn tell_apart(&mut self) {
        let mut words = std::mem::take(&mut self.words).into_iter();
        if let Some(image) = words.next() {
            (self.image, self.command) = (image, words.collect());
        }
    }

    /// Tells the image from its command, and reads what is elsewhere: files of variables, and variables of our own. Checks what no single
    /// option says.
    pub fn resolve(&mut self) -> Result<(), OptionsError> {
        self.tell_apart();
        let mut labels = lines(std::mem::take(&mut self.label_file))?;
        labels.append(&mut self.label);
        self.label = labels;
        let mut env = lines(std::mem::take(&mut self.env_file))?;
        env.append(&mut self.env);
        for variable in env {
            if variable.is_empty() || variable.starts_with('=') {
                return Err(OptionsError::Variable(variable));
            }
            if variable.contains('=') {
                self.env.push(variable);
            } else if let Ok(value) = std::env::var(&variable) {
                self.env.push(format!("{variable}={value}"));
            }
        }
        self.check_limits()?;
        match self.log_driver {
            LogDriver::JsonFile => {
                self.log_opt = Settings::load()?.log_options(&self.log_opt);
                self.log_limit()?;
            }
            other if !self.log_opt.is_empty() => {
                return Err(OptionsError::LogDriver(other.name()));
            }
            _ => {}
        }
        let is_bad = |text: &&String| text.split_once('=').is_none_or(|(name, _)| name.is_empty());
        if let Some(bad) = self.annotation.iter().find(is_bad) {
            return Err(OptionsError::Annotation(bad.clone()));
        }
        self.security()?;
        self.disk_size()?;
        Ok(())
    }

    /// Whether the limits go together.
    pub fn check_limits(&self) -> Result<(), OptionsError> {
        match (self.memory_swap, self.memory) {
            (Some(MemorySwap::Limit(both)), Some(memory)) if both < memory => {
                return Err(OptionsError::Swap(both, memory));
            }
            (Some(MemorySwap::Limit(_)), None) => return Err(OptionsError::SwapAlone),
            _ => {}
        }
        match &self.platform {
            Some(platform) if *platform != Platform::default() => {
                Err(OptionsError::Platform(platform.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The security options. There is no mandatory access control in the guest, and no filter of
    /// system calls but the guest's kernel itself, so what turns them off is granted.
    pub fn security(&self) -> Result<Security, OptionsError> {
        let mut security = Security::default();
        for option in &self.security_opt {
            match option.replace(':', "=").as_str() {
                "no-new-privileges" | "no-new-privileges=true" => security.no_new_privileges = true,
                "no-new-privileges=false" => security.no_new_privileges = false,
                "apparmor=unconfined" | "label=disable" => {}
                "seccomp=unconfined" => security.seccomp = None,
                other => match other.strip_prefix("seccomp=") {
                    Some("" | "builtin") | None => {
                        return Err(OptionsError::Security(option.clone()));
                    }
                    // What was replaced may have been a part of its name.
                    Some(_) => security.seccomp = option.get(8..).map(PathBuf::from),
                },
            }
        }
        Ok(security)
    }

    /// Bytes of the writable layer, if they are given.
    pub fn disk_size(&self) -> Result<Option<Bytes>, OptionsError> {
        let mut size = None;
        for option in &self.storage_opt {
            let bytes = option.strip_prefix("size=").map(str::parse);
            match bytes {
                Some(Ok(bytes)) => size = Some(bytes),
                _ => return Err(OptionsError::Storage(option.clone())),
            }
        }
        Ok(size)
    }

    /// How large the log may be.
    pub fn log_limit(&self) -> Result<LogLimit, OptionsError> {
        LogLimit::of(&self.log_opt)
    }

    /// The labels, with the image's.
    pub fn labels(&self) -> BTreeMap<String, String> {
        pairs(&self.label)
    }

    /// All that is to be mounted from outside.
    pub fn mounts(&self) -> impl Iterator<Item = &Mount> {
        self.volume.iter().chain(&self.mount)
    }
}

/// The lines of files, without empty ones and comments.
fn lines(files: Vec<PathBuf>) -> Result<Vec<String>, OptionsError> {
    let mut all = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|source| OptionsError::File { path, source })?;
        let lines = text.lines().map(str::trim_start);
        let said = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        all.extend(said.map(str::to_owned));
    }
    Ok(all)
}

/// `NAME=VALUE` texts as a map; without a value it is empty.
pub fn pairs(all: &[String]) -> BTreeMap<String, String> {
    let split = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    all.iter().map(split).collect()
}

/// Texts in their JSON form, by `FromStr` and `Display`.
macro_rules! as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use as_text;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parse(text: &str) -> Options {
        let parsed = Cli::try_parse_from(std::iter::once("run").chain(text.split(' ')));
        let mut options = parsed.unwrap().options;
        options.tell_apart();
        options
    }

    /// If it fails, what the user types does not arrive, or options after the image are taken for
    /// ours.
    #[test]
    fn options_are_dockers() {
        let options = parse(
            "-it --rm --name web -e A=1 --env=B=2 -w /srv -u 1000:100 -m 64m --cpus 1.5 -v /a:/b:ro \
             --tmpfs /t:size=1m -p 8080:80 --ulimit nofile=10:20 busybox sh -c -x --rm",
        );
        assert!(options.interactive && options.tty && options.rm);
        assert_eq!(options.name.as_deref(), Some("web"));
        assert_eq!(options.env, ["A=1", "B=2"]);
        assert_eq!(options.memory, Some(Bytes(64 << 20)));
        assert_eq!(options.command, ["sh", "-c", "-x", "--rm"]);
        assert_eq!(options.image, "busybox");
        for (text, command) in [
            ("busybox --version", &["--version"][..]),
            ("busybox --name z", &["--name", "z"]),
            ("--entrypoint echo busybox -- test", &["--", "test"]),
            ("-- busybox -h", &["-h"]),
        ] {
            assert_eq!(parse(text).command, command, "{text}");
        }
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(
            crate::json::from_slice::<Options>(text.as_bytes()).unwrap(),
            options
        );
    }

    /// If it fails, an option that does nothing is taken without a word.
    #[test]
    fn what_is_not_there_is_refused() {
        for text in [
            "--gpus all x",
            "--network host x",
            "--cpus 0 x",
            "-m 1x x",
            "-m 1k x",
            "-m 100000g x",
            "-m 64m --memory-swap 32m x",
            "--memory-swap 32m x",
            "--cpuset-cpus x x",
            "--cpu-shares 1 x",
            "--platform linux/arm64 x",
            "--annotation x x",
            "--log-driver syslog x",
            "--log-driver none --log-opt max-size=1m x",
            "--security-opt seccomp=builtin x",
            "--security-opt apparmor=docker-default x",
            "--storage-opt colour=red x",
            "--log-opt max-size=much x",
            "--restart sometimes x",
        ] {
            let parsed = Cli::try_parse_from(std::iter::once("run").chain(text.split(' ')));
            let refused = match parsed {
                Ok(mut cli) => cli.options.resolve().is_err(),
                Err(_) => true,
            };
            assert!(refused, "{text}");
        }
    }

    /// If it fails, variables from files or from our own environment are lost or misread.
    #[test]
    fn variables_are_resolved() {
        let path = std::env::temp_dir().join(format!("cofferdam-env-{}", std::process::id()));
        std::fs::write(&path, "# no\n\n  A=1\nB=x=y\nPATH\nNOT_THERE_AT_ALL\n").unwrap();
        let mut options = parse("-e C=3 x");
        options.env_file.push(path.clone());
        options.resolve().unwrap();
        std::fs::remove_file(path).unwrap();
        let own = format!("PATH={}", std::env::var("PATH").unwrap());
        assert_eq!(options.env, ["A=1", "B=x=y", &own, "C=3"]);
        let mut options = parse("-e =x y");
        assert!(options.resolve().is_err());
    }
}
