//! What the guest is told to do, and what it says that it did.

use super::Set;

/// How a job's speed is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// MiB per second: more is better.
    Bytes,
    /// Thousands of operations per second: more is better.
    Operations,
    /// Microseconds for each operation: less is better.
    Time,
}

impl Unit {
    /// The unit's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bytes => "MiB/s",
            Self::Operations => "1000/s",
            Self::Time => "µs",
        }
    }

    /// The speed of a job that took so long.
    pub fn value(self, done: &Done, nanos: f64) -> f64 {
        match self {
            Self::Bytes => float(done.bytes) / f64::from(1 << 20) / nanos * 1e9,
            Self::Operations => float(done.operations) / nanos * 1e6,
            Self::Time => nanos / 1000.0 / float(done.operations),
        }
    }
}

/// A whole number that a job counts, as one to calculate with.
pub fn float(number: u64) -> f64 {
    // Far below 2^53 in all that is measured here.
    #[expect(clippy::cast_precision_loss)]
    let number = number as f64;
    number
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Stable name: what the guest is told, without the count.
    pub id: String,
    /// What people call it.
    pub label: String,
    /// How its speed is told.
    pub unit: Unit,
    count: u32,
}

impl Job {
    /// What the guest is told.
    pub fn told(&self) -> String {
        format!("{}:{}", self.id, self.count)
    }
}

/// The jobs of a set.
pub fn jobs(set: Set) -> Vec<Job> {
    match set {
        Set::Block => block(),
        Set::Net => net(),
        Set::Vsock => vsock(),
        Set::Fs => fs(),
    }
}

/// The kernel's command line that has them done: a parameter that the kernel does not know becomes
/// a variable of init's. They are not init's arguments, because QEMU's microvm appends its devices
/// to the command line, and behind ` -- ` no driver would see them.
pub fn cmdline(jobs: &[Job]) -> String {
    let told: Vec<_> = jobs.iter().map(Job::told).collect();
    format!("quiet jobs={}", told.join(","))
}

/// Small requests at random places and large ones in a row, past the guest's page cache and
/// through it, one at a time and many.
fn block() -> Vec<Job> {
    let mut jobs = Vec::new();
    for cache in ["direct", "buffered"] {
        for (size, name, order, count) in [
            (4096, "4 KiB", "random", 256),
            (1 << 20, "1 MiB", "sequential", 8),
        ] {
            for operation in ["read", "write"] {
                for depth in [1, 32_u32] {
                    jobs.push(Job {
                        id: format!("block:{operation}:{size}:{order}:{cache}:{depth}"),
                        label: format!("{name} {order} {operation}, {cache}, depth {depth}"),
                        unit: Unit::Bytes,
                        count: count.max(depth),
                    });
                }
            }
        }
    }
    jobs
}

fn job(id: &str, label: &str, unit: Unit, count: u32) -> Job {
    Job {
        id: id.into(),
        label: label.into(),
        unit,
        count,
    }
}

/// TCP each way, the smallest round trip, and small datagrams each way.
fn net() -> Vec<Job> {
    let (bytes, operations) = (Unit::Bytes, Unit::Operations);
    vec![
        job("stream:tcp:send:65536", "TCP to the host", bytes, 64),
        job("stream:tcp:receive:65536", "TCP to the guest", bytes, 64),
        job(
            "stream:tcp:echo:1",
            "TCP round trip of a byte",
            Unit::Time,
            256,
        ),
        job(
            "packets:send:64",
            "UDP of 64 bytes to the host",
            operations,
            1024,
        ),
        job(
            "packets:receive:64",
            "UDP of 64 bytes to the guest",
            operations,
            1024,
        ),
    ]
}

/// A small round trip, and streams each way.
fn vsock() -> Vec<Job> {
    let bytes = Unit::Bytes;
    vec![
        job(
            "stream:vsock:echo:32",
            "round trip of 32 bytes",
            Unit::Time,
            256,
        ),
        job("stream:vsock:send:65536", "stream to the host", bytes, 64),
        job(
            "stream:vsock:receive:65536",
            "stream to the guest",
            bytes,
            64,
        ),
    ]
}

/// Many small files: made, and asked for when the guest's caches are empty.
fn fs() -> Vec<Job> {
    let operations = Unit::Operations;
    vec![
        job(
            "files:create:4096",
            "files of 4 KiB, unpacked",
            operations,
            128,
        ),
        job(
            "files:stat:4096",
            "stat of files, caches cold",
            operations,
            256,
        ),
    ]
}

/// What the guest says of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Operations in the measured part.
    pub operations: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// How long they took.
    pub nanos: u64,
}

impl Done {
    /// Finds the line `io JOB OPERATIONS BYTES NANOSECONDS` of a job in what the guest said.
    pub fn find(said: &str, told: &str) -> Option<Self> {
        let mut words = said.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("io") && words.next() == Some(told)).then_some(words)
        })?;
        let mut number = || words.next()?.parse().ok();
        Some(Self {
            operations: number()?,
            bytes: number()?,
            nanos: number()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::what::What;

    /// If it fails, the kernel cuts the jobs off: it takes 2,047 bytes, of which the peer's devices
    /// need some.
    #[test]
    fn all_jobs_reach_init() {
        for what in What::ALL {
            let What::Io(set) = what else { continue };
            let jobs = jobs(set);
            let line = cmdline(&jobs);
            assert!(line.len() < 1500, "{line}");
            assert_eq!(line.split_whitespace().count(), 2, "{line}");
        }
    }

    /// If it fails, a job's figures are those of another, or noise on the console hides them.
    #[test]
    fn a_job_has_its_line() {
        let said = "noise\r\nio a:1 1 2 3\r\nio a:10 4 5 6\r\nio done\r\n";
        let done = Done::find(said, "a:10").unwrap();
        assert_eq!((done.operations, done.bytes, done.nanos), (4, 5, 6));
        assert_eq!(Done::find(said, "a"), None);
        assert_eq!(Done::find("io a:1 1 x 3", "a:1"), None);
        assert_eq!(Unit::Bytes.value(&done, 5e9 / 1048576.0), 1.0);
    }
}
