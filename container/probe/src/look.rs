//! What there is to see.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::say;

/// No tree is walked further than this.
const MOST: u64 = 200_000;

/// Says what kernel this is and what it shows: counts of entries, as a program here can list them.
pub fn look() -> io::Result<()> {
    let line = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().to_owned()
    };
    say("kernel", line("/proc/sys/kernel/osrelease"))?;
    // Unlike for each boot of each kernel.
    say("boot", line("/proc/sys/kernel/random/boot_id"))?;
    let memory = line("/proc/meminfo");
    let total = memory.split_whitespace().nth(1).unwrap_or("0");
    say("memory_kib", total)?;
    say("cpus", std::thread::available_parallelism()?)?;
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let names = || names("/proc");
    say("processes", names().filter(|name| is_process(name)).count())?;
    let of_kernel =
        names().filter(|name| !is_process(name) && name != "self" && name != "thread-self");
    let mut proc = 0;
    for name in of_kernel {
        walk(&Path::new("/proc").join(name), &mut proc, &mut |_| true);
    }
    say("proc_entries", proc)?;
    let mut sys = 0;
    walk(Path::new("/sys"), &mut sys, &mut |_| true);
    say("sys_entries", sys)?;
    let mut parameters = 0;
    walk(Path::new("/proc/sys"), &mut parameters, &mut is_writable);
    say("writable_parameters", parameters)?;
    let mut nodes = 0;
    walk(Path::new("/dev"), &mut nodes, &mut |path| {
        let kind = fs::symlink_metadata(path).map(|data| data.file_type());
        kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device())
    });
    say("device_nodes", nodes)?;
    say("block_devices", self::names("/sys/block").count())?;
    say("pci_devices", self::names("/sys/bus/pci/devices").count())?;
    say("modules", line("/proc/modules").lines().count())
}

fn names(directory: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Counts what is below a path and counts, without following links.
fn walk(path: &Path, count: &mut u64, counts: &mut impl FnMut(&Path) -> bool) {
    if *count >= MOST {
        return;
    }
    let Ok(data) = fs::symlink_metadata(path) else {
        return;
    };
    if !data.is_dir() {
        *count += u64::from(counts(path));
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        walk(&entry.path(), count, counts);
    }
}

/// Whether it can be opened for writing, which changes nothing.
fn is_writable(path: &Path) -> bool {
    fs::OpenOptions::new().write(true).open(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If it fails, a link that leads up is walked for ever, or counts for what it leads to.
    #[test]
    fn links_are_counted_and_not_followed() {
        let dir = std::env::temp_dir().join(format!("cofferdam-probe-{}", std::process::id()));
        fs::create_dir_all(dir.join("below")).unwrap();
        fs::write(dir.join("below/file"), "").unwrap();
        std::os::unix::fs::symlink("..", dir.join("below/up")).unwrap();
        let mut count = 0;
        walk(&dir, &mut count, &mut |_| true);
        assert_eq!(count, 2);
        fs::remove_dir_all(dir).unwrap();
    }
}
