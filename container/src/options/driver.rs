//! `--log-driver`: where what a container prints is kept.

use serde::{Deserialize, Serialize};

/// Docker's drivers that there are here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// In files of the container's, which `logs` shows.
    #[default]
    JsonFile,
    /// In the host's journal, which `journalctl CONTAINER_NAME=NAME` shows.
    Journald,
    /// Nowhere.
    None,
}

impl LogDriver {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::JsonFile => "json-file",
            Self::Journald => "journald",
            Self::None => "none",
        }
    }
}
