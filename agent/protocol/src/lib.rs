//! What the host and the agent in a container's VM say to each other: a ttrpc service
//! ([`api`], [`service`]) on one vsock port, byte streams on another ([`stream`]). And what both find
//! out in the same way, each on its own kernel.

pub mod cgroup;
pub mod client;
pub mod clock;
pub mod devices;
pub mod names;
pub mod procfs;
pub mod stream;
pub mod users;

#[allow(
    missing_docs,
    missing_debug_implementations,
    clippy::all,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

/// The messages of `agent.proto`.
pub use generated::agent as api;
/// The service of `agent.proto`.
pub use generated::agent_ttrpc as service;

pub use client::{Client, ClientError};

/// The version of the protocol; both sides have the same or do not talk.
pub const VERSION: u32 = 4;

/// The guest's vsock port of the ttrpc service.
pub const CONTROL_PORT: u32 = 1024;

/// The guest's vsock port of the streams.
pub const STREAM_PORT: u32 = 1025;

/// The host's vsock port where questions to its name servers are answered ([`names`]).
pub const NAMES_PORT: u32 = 1026;

/// The service's name on the wire.
pub const SERVICE: &str = "cofferdam.agent.v1.Agent";

/// The directory in the guest below which storages are mounted.
pub const STORAGE: &str = "/run/cofferdam/storage";

/// The directory in the guest that has `resolv.conf`, `hosts` and `hostname` as the host gave them:
/// sources for binds.
pub const ETC: &str = "/run/cofferdam/etc";
