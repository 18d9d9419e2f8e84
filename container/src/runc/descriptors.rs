//! Descriptors beyond the standard ones that an engine passes on to a process (`--preserve-fds`).
//!
//! Those of the host's mean nothing to the guest's kernel. What goes through them in one direction is copied as
//! the standard streams are: the process has a pipe of the same number.

use std::fs::{self, File};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use cofferdam_agent_protocol::stream::Name;
use rustix::fs::{OFlags, fcntl_getfl};

use super::shim::inherited;

/// Why one cannot be passed on.
#[derive(Debug, thiserror::Error)]
pub(super) enum DescriptorError {
    /// What it is.
    #[error(
        "--preserve-fds: descriptor {number} is {what}; what is copied to and from a guest is a pipe, a \
         file or a character device, open either for reading or for writing"
    )]
    Kind {
        /// Its number.
        number: RawFd,
        /// Its kind.
        what: &'static str,
    },
    /// Nothing can be told of it.
    #[error("--preserve-fds: cannot look at descriptor {number}")]
    Look {
        /// Its number.
        number: RawFd,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Which of so many behind the standard ones are open. To be asked before we open any ourselves.
pub(super) fn find(count: u32) -> Vec<RawFd> {
    let own = Path::new("/proc/self/fd");
    let names = fs::read_dir(own).into_iter().flatten().flatten();
    let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let last = RawFd::try_from(count).map_or(RawFd::MAX, |count| count.saturating_add(2));
    let mut all: Vec<RawFd> = numbers
        .filter(|number| (3..=last).contains(number))
        .collect();
    // That of the directory is closed again.
    all.retain(|number| own.join(number.to_string()).symlink_metadata().is_ok());
    all.sort_unstable();
    all
}

/// Takes those that the command line names, each with what the guest calls it; inputs first.
pub(super) fn take(numbers: &[RawFd]) -> Result<Vec<(Name, File)>, DescriptorError> {
    let one = |number: &RawFd| {
        let number = *number;
        let look = |source| DescriptorError::Look { number, source };
        let file = File::from(inherited(number).map_err(look)?);
        let kind = file.metadata().map_err(look)?.file_type();
        let flags = fcntl_getfl(&file).map_err(|error| look(error.into()))?;
        let refuse = |what| Err(DescriptorError::Kind { number, what });
        if kind.is_socket() {
            return refuse("a socket, whose other end is on another kernel");
        }
        if flags.contains(OFlags::PATH)
            || !(kind.is_fifo() || kind.is_file() || kind.is_char_device())
        {
            return refuse("no stream of bytes");
        }
        let place = number.unsigned_abs();
        match flags & OFlags::ACCMODE {
            OFlags::RDONLY => Ok((Name::Input(place), file)),
            OFlags::WRONLY => Ok((Name::Output(place), file)),
            _ => refuse("open for reading and writing"),
        }
    };
    let mut all = numbers.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    all.sort_by_key(|(name, _)| *name);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// If it fails, a process lacks a descriptor that it was to have, has it the wrong way round, or has one
    /// that cannot work.
    #[test]
    fn one_way_is_passed_on() {
        let (read, write) = io::pipe().unwrap();
        let file = File::open("/proc/self/status").unwrap();
        let both = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let (socket, _other) = UnixStream::pair().unwrap();
        let directory = File::open("/proc").unwrap();
        let good = [read.into_raw_fd(), write.into_raw_fd(), file.into_raw_fd()];
        let bad = [
            both.into_raw_fd(),
            socket.into_raw_fd(),
            directory.into_raw_fd(),
        ];
        let found = find(1 << 20);
        assert!(good.iter().chain(&bad).all(|number| found.contains(number)));
        assert!(find(0).is_empty() && !find(good[0].unsigned_abs() - 3).contains(&good[0]));
        let names: Vec<_> = take(&good)
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let [a, b, c] = good.map(RawFd::unsigned_abs);
        assert_eq!(names, [Name::Input(a), Name::Input(c), Name::Output(b)]);
        for (number, word) in bad
            .into_iter()
            .zip(["reading and writing", "socket", "no stream"])
        {
            let error = take(&[number]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
