//! A container's time namespace: its monotonic clock and its time since boot are the guest's with an offset.
//! The clock that tells the date has none.

use std::collections::BTreeMap;
use std::fs;

use nix::sched::{CloneFlags, unshare};

use crate::error::{Context, Error, Result};
use crate::spec::{Spec, TimeOffset};

/// nix knows it not.
pub const NEWTIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

const FIELD: &str = "linux.timeOffsets";

/// Makes one if it is configured; processes that are made from here on are in it. It is made first, by who is
/// root of the guest: root of a user namespace may not open the file of the offsets.
pub fn create(spec: &Spec) -> Result<()> {
    let lines = lines(spec.linux.time_offsets.as_ref())?;
    if !spec.has_namespace("time") {
        return match lines.is_empty() {
            true => Ok(()),
            false => Err(Error::invalid(FIELD, "there is no time namespace")),
        };
    }
    unshare(NEWTIME).context(|| "make a time namespace".into())?;
    if lines.is_empty() {
        return Ok(());
    }
    fs::write("/proc/self/timens_offsets", &lines)
        .context(|| format!("set {FIELD} to {:?}", lines.trim_end()))
}

/// As `/proc/PID/timens_offsets` takes them.
fn lines(offsets: Option<&BTreeMap<String, TimeOffset>>) -> Result<String> {
    let line = |(clock, offset): (&String, &TimeOffset)| match clock.as_str() {
        "monotonic" | "boottime" => Ok(format!("{clock} {} {}\n", offset.secs, offset.nanosecs)),
        _ => Err(Error::invalid(FIELD, format!("{clock:?} has no offset"))),
    };
    offsets.into_iter().flatten().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a container's clocks differ from what was said, or a word that nobody knows is passed over.
    #[test]
    fn offsets_become_lines() {
        let lines = |text: &str| lines(Some(&serde_json::from_str(text).unwrap()));
        let both = r#"{"monotonic":{"secs":-7,"nanosecs":5},"boottime":{"secs":604800}}"#;
        assert_eq!(lines(both).unwrap(), "boottime 604800 0\nmonotonic -7 5\n");
        assert_eq!(lines("{}").unwrap(), "");
        assert!(lines(r#"{"realtime":{"secs":1}}"#).is_err());
        let mut spec = Spec::default();
        create(&spec).unwrap();
        spec.linux.time_offsets = serde_json::from_str(both).unwrap();
        assert!(create(&spec).is_err());
    }
}
