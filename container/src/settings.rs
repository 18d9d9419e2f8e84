//! What holds for all containers of a host or of a user, unless one is made with something else: a file
//! in JSON.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use crate::{json, paths};

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// They cannot be read.
    #[error("cannot read the settings {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// They are not what they should be.
    #[error("the settings {path} are wrong")]
    Json {
        /// The file.
        path: PathBuf,
        /// In what way.
        #[source]
        source: serde_json::Error,
    },
}

/// The settings.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Options of logs, as `--log-opt` has them; Docker has the same in its `daemon.json`.
    pub log_opts: BTreeMap<String, String>,
}

impl Settings {
    /// Those of the first file that is there.
    pub fn load() -> Result<Self, SettingsError> {
        for path in paths::settings() {
            let text = match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|source| SettingsError::Read {
                    path: path.clone(),
                    source,
                })?,
            };
            return json::from_slice(&text).map_err(|source| SettingsError::Json { path, source });
        }
        Ok(Self::default())
    }

    /// The options of a container's log: its own, and before them those that it says nothing of.
    pub fn log_options(&self, own: &[String]) -> Vec<String> {
        let all = self.log_opts.iter();
        let all = all.map(|(name, value)| format!("{name}={value}"));
        all.chain(own.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a setting for all containers is not heard, or a misspelt one without a word.
    #[test]
    fn what_a_container_says_counts_more() {
        let text = br#"{"log-opts": {"max-size": "1m", "max-file": "3"}}"#;
        let settings: Settings = json::from_slice(text).unwrap();
        let own = ["max-size=2m".to_owned()];
        let all = settings.log_options(&own);
        assert_eq!(all, ["max-file=3", "max-size=1m", "max-size=2m"]);
        assert_eq!(Settings::default().log_options(&own), own);
        assert!(json::from_slice::<Settings>(br#"{"log-opt": {}}"#).is_err());
    }
}
