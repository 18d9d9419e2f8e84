//! The log.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// The file that it goes to; standard error where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// Levels of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What stops the VM.
    Error,
    /// What someone should look at.
    #[default]
    Warn,
    /// Milestones.
    Info,
    /// Details.
    Debug,
    /// Everything.
    Trace,
}
