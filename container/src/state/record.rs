//! What is kept about a container.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::options::{Bytes, Health, Options, Port, Rights};

/// What was asked for. Only `rename` and `update` change it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name, unlike that of all others.
    pub name: String,
    /// When it was made, as RFC 3339 has it.
    pub created: String,
    /// The options.
    pub options: Options,
    /// The image's digest.
    pub image: String,
    /// What the image says about how it is run.
    pub image_config: ImageConfiguration,
    /// The image's layers: EROFS files, the lowest first.
    pub layers: Vec<PathBuf>,
    /// What is mounted from the host, in the order of the options' mounts from outside.
    pub shares: Vec<Share>,
    /// How it is asked whether it is well.
    #[serde(default)]
    pub health: Option<Health>,
}

impl Record {
    /// Where its image declares volumes.
    pub fn volumes_of_image(&self) -> Vec<String> {
        let config = self.image_config.config().as_ref();
        config
            .and_then(|config| config.volumes().clone())
            .unwrap_or_default()
    }
}

/// A directory or file of the host that is mounted in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it is in the container.
    pub target: String,
    /// The container may not write.
    pub read_only: bool,
    /// What it may leave there.
    #[serde(default)]
    pub rights: Rights,
    /// The volume that it is, if it is one.
    pub volume: Option<String>,
    /// The volume is the container's own, and goes with it.
    pub anonymous: bool,
}

/// How far a container is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It never ran.
    #[default]
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It ended and is about to start again.
    Restarting,
    /// It ended.
    Exited,
}

impl Status {
    /// Whether somebody must be there who runs it.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }

    /// Docker's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
        }
    }
}

/// Whether a container is well, as far as its health command says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Wellness {
    /// `starting`, `healthy` or `unhealthy`.
    pub status: String,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last five answers.
    pub log: Vec<Probe>,
}

/// An answer of a health command's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Probe {
    /// When it was asked (RFC 3339).
    pub start: String,
    /// When it had answered.
    pub end: String,
    /// How it ended; -1: not, or not in time.
    pub exit_code: i32,
    /// What it printed, 4 KiB at most.
    pub output: String,
}

/// What a container has on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The network's name.
    pub network: String,
    /// The container's address.
    pub address: Ipv4Addr,
    /// How many of its bits are the network's.
    pub prefix: u8,
    /// The host's address.
    pub gateway: Ipv4Addr,
    /// The interface's.
    pub mac: String,
}

/// How large a VM is, for the container in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSize {
    /// Its vCPUs.
    pub vcpus: u8,
    /// Memory that the container may have of it.
    pub memory: Bytes,
}

/// What changes about a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// How far it is.
    pub status: Status,
    /// The process that stands for the container on the host: its VM's monitor.
    pub pid: u32,
    /// Its shim.
    pub shim: u32,
    /// How its process ended, as a shell has it.
    pub exit_code: i32,
    /// It was killed for want of memory.
    pub oom_killed: bool,
    /// Why it could not be started or was lost.
    pub error: String,
    /// When it started last (RFC 3339).
    pub started: Option<String>,
    /// When it ended last.
    pub finished: Option<String>,
    /// How often it was started again by itself.
    pub restarts: u32,
    /// What its health command says; nothing without one.
    pub health: Option<Wellness>,
    /// The cgroup of the host's that limits its VM; none if the host lets us make none.
    pub cgroup: Option<PathBuf>,
    /// What its VM was started with; none on the host's kernel.
    pub vm: Option<VmSize>,
    /// What it has on a network of ours, while it runs.
    pub attached: Option<Attached>,
    /// The ports that are published, with those of the host that were chosen.
    pub ports: Vec<Port>,
}

impl State {
    /// Of a container whose shim was killed: nobody knows when, so it is now.
    pub(super) fn killed(self) -> Self {
        Self {
            status: Status::Exited,
            pid: 0,
            shim: 0,
            exit_code: 137,
            error: "its shim was killed".into(),
            finished: Some(Now::text()),
            attached: None,
            ..self
        }
    }
}

/// Now, by the host's clock.
#[derive(Clone, Copy, Debug)]
pub struct Now;

impl Now {
    /// As RFC 3339 has it.
    pub fn text() -> String {
        text(OffsetDateTime::now_utc())
    }
}

fn text(time: OffsetDateTime) -> String {
    // All its fields are in range, by its type.
    time.format(&Rfc3339).unwrap_or_default()
}

/// Reads an RFC 3339 time: seconds since 1970.
pub fn timestamp(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(time.unix_timestamp())
}
