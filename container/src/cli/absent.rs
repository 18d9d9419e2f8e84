//! Commands and options of Docker's that are not here, and what does instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What is typed, and what to do.
const ABSENT: &[(&str, &str)] = &[
    (
        "build",
        "build with Podman, Docker or buildah, then 'save' there and 'load' here",
    ),
    (
        "compose",
        "Compose runs its containers in VMs by cofferdam-runc, see docs/compose.md",
    ),
    ("search", "look for images on the registry's own pages"),
    ("swarm", "clusters run containers by cofferdam-runc"),
    (
        "--gpus",
        "no GPU is passed on to a VM; --isolation=process with --device has the host's",
    ),
    (
        "--link",
        "containers on one network find each other by name: --network NAME",
    ),
    (
        "--userns",
        "a VM's users are none of the host's; rootless Podman with cofferdam-runc maps them, too",
    ),
];

/// What to tell somebody who typed one of them.
pub(super) fn instead(error: &clap::Error) -> Option<String> {
    let kind = match error.kind() {
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        _ => return None,
    };
    let Some(ContextValue::String(typed)) = error.get(kind) else {
        return None;
    };
    let (name, what) = ABSENT.iter().find(|(name, _)| name == typed)?;
    Some(format!("there is no {name}: {what}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::{Cli, help};

    /// If it fails, something is there and said not to be, or whoever knows it from Docker is not told what
    /// to do.
    #[test]
    fn what_is_absent_is_said_to_be() {
        let program = help::all(Cli::command());
        for (name, what) in ABSENT {
            let line = match name.starts_with("--") {
                true => vec!["cofferdam", "run", name],
                false => vec!["cofferdam", name],
            };
            let error = program.clone().try_get_matches_from(line).unwrap_err();
            assert!(instead(&error).unwrap().contains(what), "{name}");
        }
    }
}
